"""From the inputs of each kind to the tokens of a transformer: (tokens [B, T, D], which of them are there or None).

Shape suffixes: B batch, T tokens, D width, C channels, Y and X pixels or patches.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neurofleet.errors import ConfigError
from neurofleet.spec import DataSpec


def sincos(num_places: int, width: int) -> Tensor:
    """Sines and cosines of each place (Vaswani et al. 2017), [num_places, width]; an odd width ends in a zero.

    Wavelengths go from 4 places to 4 times all of them.  Those of the paper, up to 63,000, would leave most units
    alike at all of a small image's places.
    """
    num_waves = width // 2
    exponents = torch.arange(num_waves, dtype=torch.float64) / max(num_waves - 1, 1)
    angles = torch.arange(num_places, dtype=torch.float64)[:, None] * (math.pi / 2) * num_places**-exponents
    both = torch.cat([angles.sin(), angles.cos()], dim=1)
    return F.pad(both, (0, width - both.shape[1])).to(torch.get_default_dtype())


class PatchTokens(nn.Module):
    """Patches of an image (Dosovitskiy et al. 2021), each with the sines and cosines of its row and its column, as in
    SimpleViT (Beyer, Zhai and Kolesnikov 2022).

    Before the cut stand convolutions, each pooled to half the size: with few images they teach a transformer what is
    near what (compact convolutional transformers, Hassani et al. 2021).  Patches that do not fill the image reach over
    its edges, evenly on both sides.

    patch_size: pixels a side; None for about an eighth of the image's shorter side, but at least 2
    stem:       channels of each convolution; a patch has to be a multiple of what they shrink the image by
    """

    places_TD: Tensor

    def __init__(self, *, spec: DataSpec, width: int, patch_size: int | None, stem: list[int]) -> None:
        super().__init__()
        num_channels, height, breadth = spec.shape
        shrink = 2 ** len(stem)
        size = _patch_size(patch_size, shrink, spec)
        self.stem = nn.ModuleList(
            nn.Conv2d(before, after, 5, padding=2) for before, after in pairwise([num_channels, *stem])
        )
        cut, height, breadth = size // shrink, -(-height // shrink), -(-breadth // shrink)
        self.cut = nn.Conv2d(stem[-1] if stem else num_channels, width, cut, stride=cut)
        self.grid = -(-height // cut), -(-breadth // cut)
        rows, columns = self.grid[0] * cut - height, self.grid[1] * cut - breadth
        self.padding = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
        self.norm = nn.LayerNorm(width, bias=False)
        by_row, by_column = sincos(self.grid[0], width // 2), sincos(self.grid[1], width - width // 2)
        places = torch.cat(
            [by_row[:, None].expand(-1, self.grid[1], -1), by_column[None].expand(self.grid[0], -1, -1)], dim=2
        )
        self.register_buffer("places_TD", places.flatten(0, 1), persistent=False)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images_BCYX: Tensor) -> tuple[Tensor, None]:
        for convolution in self.stem:
            # Pooling first leaves the activation a quarter of the pixels; `ceil` keeps the last of an odd number.
            images_BCYX = F.gelu(F.max_pool2d(convolution(images_BCYX), 2, ceil_mode=True))
        if any(self.padding):
            images_BCYX = F.pad(images_BCYX, self.padding)
        patches_BTD = self.cut(images_BCYX).flatten(2).transpose(1, 2)
        return self.norm(patches_BTD) + self.places_TD, None


def _patch_size(wanted: int | None, shrink: int, spec: DataSpec) -> int:
    """A multiple of `shrink`, at most the image's shorter side."""
    side = min(spec.shape[1:])
    if shrink > side:
        raise ConfigError(
            f"family.stem halves the image once a convolution: {shrink.bit_length() - 1} need images of "
            f"at least {shrink} pixels a side, got {side} ({spec.name}); "
            f"give family.stem at most {side.bit_length() - 1} entries"
        )
    if wanted is None:
        return max(2 if shrink == 1 else shrink, round(side / 8 / shrink) * shrink)
    if wanted < 1 or wanted > side or wanted % shrink:
        nearest = min(max(round(wanted / shrink), 1), side // shrink) * shrink
        raise ConfigError(
            f"family.patch_size needs a multiple of {shrink} from {shrink} to {side} for images of "
            f"{spec.shape[1]}x{spec.shape[2]} ({spec.name}) and {shrink.bit_length() - 1} convolutions in family.stem, "
            f"got {wanted}; try {nearest}"
        )
    return wanted


class StepTokens(nn.Module):
    """Steps of a sequence, each with the sines and cosines of its place; NaN marks steps after a shorter one's end."""

    places_TD: Tensor

    def __init__(self, *, spec: DataSpec, width: int) -> None:
        super().__init__()
        num_steps, num_channels = spec.shape
        self.project = nn.Linear(num_channels, width)
        self.norm = nn.LayerNorm(width, bias=False)
        self.register_buffer("places_TD", sincos(num_steps, width), persistent=False)

    def forward(self, steps_BTC: Tensor) -> tuple[Tensor, Tensor]:
        valid_BT = _at_least_one(~steps_BTC.isnan().all(dim=2))
        return self.norm(self.project(steps_BTC.nan_to_num())) + self.places_TD[: steps_BTC.shape[1]], valid_BT


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
