"""From the inputs of each kind to the tokens of a transformer: (tokens [B, T, D], which of them are there or None).

Shape suffixes: B batch, T tokens, D width, C channels, Y and X pixels or patches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neurofleet.errors import ConfigError
from neurofleet.spec import DataSpec


def sincos(num_places: int, width: int) -> Tensor:
    """Sines and cosines of each place (Vaswani et al. 2017), [num_places, width]; an odd width ends in a zero."""
    frequencies = 10_000.0 ** -torch.linspace(0, 1, width // 2, dtype=torch.float64)
    angles = torch.arange(num_places, dtype=torch.float64)[:, None] * frequencies
    both = torch.cat([angles.sin(), angles.cos()], dim=1)
    return F.pad(both, (0, width - both.shape[1])).to(torch.get_default_dtype())


class PatchTokens(nn.Module):
    """Patches of an image (Dosovitskiy et al. 2021), each with the sines and cosines of its row and its column, as in
    SimpleViT (Beyer, Zhai and Kolesnikov 2022).

    Before the cut a 5x5 convolution lets neighbouring patches overlap ("Early convolutions help transformers see
    better", Xiao et al. 2021).  Where patches do not fill the image they reach over its edges, evenly on both sides.

    patch_size:    pixels a side; None for an eighth of the image's shorter side, but at least 2
    stem_channels: of the convolution; 0 for none
    """

    def __init__(self, *, spec: DataSpec, width: int, patch_size: int | None, stem_channels: int) -> None:
        super().__init__()
        num_channels, height, breadth = spec.shape
        side = min(height, breadth)
        size = max(2, round(side / 8)) if patch_size is None else patch_size
        if not 1 <= size <= side:
            raise ConfigError(
                f"family.patch_size needs 1 to {side} pixels for images of {height}x{breadth} ({spec.name}), "
                f"got {size}; try {min(max(size, 1), side)}"
            )
        self.grid = -(-height // size), -(-breadth // size)
        rows, columns = self.grid[0] * size - height, self.grid[1] * size - breadth
        self.padding = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
        self.stem = nn.Conv2d(num_channels, stem_channels, 5, padding=2) if stem_channels else None
        self.cut = nn.Conv2d(stem_channels or num_channels, width, size, stride=size)
        self.norm = nn.LayerNorm(width, bias=False)
        by_row, by_column = sincos(self.grid[0], width // 2), sincos(self.grid[1], width - width // 2)
        places = torch.cat(
            [by_row[:, None].expand(-1, self.grid[1], -1), by_column[None].expand(self.grid[0], -1, -1)], dim=2
        )
        self.register_buffer("places_TD", places.flatten(0, 1), persistent=False)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images_BCYX: Tensor) -> tuple[Tensor, None]:
        if self.stem is not None:
            images_BCYX = F.gelu(self.stem(images_BCYX))
        if any(self.padding):
            images_BCYX = F.pad(images_BCYX, self.padding)
        patches_BTD = self.cut(images_BCYX).flatten(2).transpose(1, 2)
        return self.norm(patches_BTD) + self.places_TD, None


class StepTokens(nn.Module):
    """Steps of a sequence, each with the sines and cosines of its place; NaN marks steps after a shorter one's end."""

    def __init__(self, *, spec: DataSpec, width: int) -> None:
        super().__init__()
        num_steps, num_channels = spec.shape
        self.project = nn.Linear(num_channels, width)
        self.norm = nn.LayerNorm(width, bias=False)
        self.register_buffer("places_TD", sincos(num_steps, width), persistent=False)

    def forward(self, steps_BTC: Tensor) -> tuple[Tensor, Tensor]:
        valid_BT = _at_least_one(~steps_BTC.isnan().all(dim=2))
        return self.norm(self.project(steps_BTC.nan_to_num())) + self.places_TD, valid_BT


class TextTokens(nn.Module):
    """Embeddings of a text's tokens, and of the n-grams that end in them: what a small network would spend its first
    layers on.  n-grams share `buckets` rows by their hash (Joulin et al. 2017 for words, Clark et al. 2022 and
    Pagnoni et al. 2024 for characters); their rows start at zero, so one never seen says nothing, like a count of zero.

    ngrams:  the lengths n, each at least 2
    buckets: rows of each length's table
    """

    def __init__(self, *, spec: DataSpec, width: int, ngrams: list[int], buckets: int) -> None:
        super().__init__()
        if any(length < 2 for length in ngrams) or len(set(ngrams)) < len(ngrams):
            raise ConfigError(f"family.ngrams needs different lengths of at least 2, got {list(ngrams)}")
        if buckets < 1:
            raise ConfigError(f"family.ngram_buckets needs at least 1, got {buckets}")
        self.buckets, self.ngrams = buckets, tuple(sorted(ngrams))
        self.table_VD = nn.Parameter(torch.randn(spec.num_tokens, width) * 0.02)
        self.ngram_table = nn.Parameter(torch.zeros(len(ngrams) * buckets, width)) if ngrams else None
        self.norm = nn.LayerNorm(width, bias=False)

    def forward(self, tokens_BT: Tensor) -> tuple[Tensor, Tensor]:
        embedded_BTD = F.embedding(tokens_BT, self.table_VD)
        if self.ngram_table is not None:
            for places_BT in self.places(tokens_BT):
                embedded_BTD = embedded_BTD + F.embedding(places_BT, self.ngram_table)
        return self.norm(embedded_BTD), _at_least_one(tokens_BT != 0)

    def places(self, tokens_BT: Tensor) -> list[Tensor]:
        """Where in the table the n-gram of each length that ends at each token stands; before the text stands padding.

        The hash is that of Rabin and Karp: a polynomial modulo a prime; then modulo the buckets.
        """
        places, hashed_BT, earlier_BT = [], tokens_BT, tokens_BT
        for length in range(2, max(self.ngrams) + 1):
            earlier_BT = F.pad(earlier_BT[:, :-1], (1, 0))
            hashed_BT = (hashed_BT * 1_000_003 + earlier_BT) % _PRIME
            if length in self.ngrams:
                offset = self.ngrams.index(length) * self.buckets
                places.append(hashed_BT % self.buckets + offset)
        return places


_PRIME = (1 << 31) - 1  # times a million it stays far below 2^63


def _at_least_one(valid_BT: Tensor) -> Tensor:
    """A row of padding alone has its first place, so that there is something to look at."""
    return valid_BT | (torch.arange(valid_BT.shape[1], device=valid_BT.device) == 0)
