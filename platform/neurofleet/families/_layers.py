"""Building blocks that several families share; each random one is a function of the context.

A layer that draws is given a `site`, its number within the network, and takes the context; without one (at serving
time) or outside training it is deterministic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neurofleet import counter
from neurofleet.errors import ConfigError, nearest
from neurofleet.spec import DataSpec
from neurofleet.steps import Context

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": F.gelu,
}


def activation_by_name(name: str) -> Callable[[Tensor], Tensor]:
    if name not in ACTIVATIONS:
        raise ConfigError(f"family.activation needs a known activation, got {name!r}; {nearest(name, ACTIVATIONS)}")
    return ACTIVATIONS[name]


def is_off(setting: float | Tensor) -> bool:
    """Whether a setting is 0.  In a stack of trials it may be a tensor, each trial's own, which counts as on."""
    return not isinstance(setting, Tensor) and setting == 0


def checked_rate(rate: float) -> float:
    if not 0 <= rate < 1:
        raise ConfigError(f"family.dropout needs 0 <= dropout < 1, got {rate}")
    return rate


def numbers(inputs: Tensor) -> Tensor:
    """Standardised inputs [B, *shape] as one row of numbers each, [B, prod(shape)]; after a sequence's end they are 0,
    the mean."""
    return torch.nan_to_num(inputs.flatten(1))


def fingerprints(inputs: Tensor) -> Tensor:
    """int32 [B], numbers of rows that follow from their inputs alone (and wrap around)."""
    words_BN = (numbers(inputs) * 1024).round().to(torch.int32)
    factors_N = counter.fold(0, torch.arange(words_BN.shape[1], dtype=torch.int32, device=inputs.device))
    return (words_BN * factors_N).sum(dim=1).to(torch.int32)


def squared_distances(rows_BF: Tensor, others_UF: Tensor) -> Tensor:
    """[B, U] by one matrix product, in float32 at least whatever autocast says, since little may be left of two large
    numbers; where nothing is, rounding may take it below zero."""
    with torch.autocast(rows_BF.device.type, enabled=False):
        dtype = torch.promote_types(torch.promote_types(rows_BF.dtype, others_UF.dtype), torch.float32)
        rows_BF, others_UF = rows_BF.to(dtype), others_UF.to(dtype)
        cross_BU = torch.addmm(rows_BF.square().sum(1, keepdim=True), rows_BF, others_UF.T, alpha=-2)
        return cross_BU + others_UF.square().sum(1)


class Dropout(nn.Module):
    """Inverted dropout (Srivastava et al. 2014) whose mask is a function of (seed, step, site, global row)."""

    def __init__(self, rate: float, site: int) -> None:
        super().__init__()
        self.rate = checked_rate(rate)
        self.site = site

    def forward(self, inputs: Tensor, context: Context | None) -> Tensor:
        if context is None or not context.training or is_off(self.rate):
            return inputs
        keep = counter.bernoulli(context.key(self.site), context.rows, tuple(inputs.shape[1:]), 1 - self.rate)
        return inputs * keep * (1 / (1 - self.rate))


class RandomAffine:
    """Random rotation, scaling and translation of images, one draw per row, at training only.

    degrees:     largest rotation to either side
    scale:       largest relative change of size to either side, as in 0.1 for 90 % to 110 %
    translation: largest shift to either side, as a fraction of the image's side
    """

    def __init__(self, *, degrees: float, scale: float, translation: float, site: int) -> None:
        for name, value in (("degrees", degrees), ("scale", scale), ("translation", translation)):
            if not value >= 0:
                raise ConfigError(f"family.augmentation.{name} needs a number >= 0, got {value}")
        if scale >= 1:
            raise ConfigError(f"family.augmentation.scale needs a number below 1, got {scale}")
        self.radians, self.scale, self.translation = math.radians(degrees), scale, translation
        self.site = site

    @classmethod
    def from_config(cls, augmentation: Mapping[str, float], spec: DataSpec, site: int) -> RandomAffine:
        """Raises ConfigError for a wrong key or number, and where anything but images is to be distorted."""
        wanted = ("degrees", "scale", "translation")
        if set(augmentation) != set(wanted):
            got = ", ".join(map(str, augmentation)) or "none"
            raise ConfigError(f"family.augmentation needs the keys {', '.join(wanted)}, got {got}")
        if spec.kind != "image" and any(augmentation.values()):
            raise ConfigError(
                f"family.augmentation needs images, got {spec.name}, which is {spec.kind}; set its numbers to 0.0"
            )
        return cls(**augmentation, site=site)

    def __call__(self, images: Tensor, context: Context) -> Tensor:
        """images [batch, channels, height, width] -> the same shape."""
        if not context.training or all(map(is_off, (self.radians, self.scale, self.translation))):
            return images
        draws = counter.uniform(context.key(self.site), context.rows, (4,), images.dtype) * 2 - 1
        angle, scale = draws[:, 0] * self.radians, 1 + draws[:, 1] * self.scale
        shift = draws[:, 2:] * (2 * self.translation)  # affine_grid measures the image as [-1, 1]
        cosine, sine = torch.cos(angle) * scale, torch.sin(angle) * scale
        proportion = images.shape[2] / images.shape[3]  # a turn measures both sides in pixels
        rows = torch.stack(
            [cosine, -sine * proportion, shift[:, 0], sine / proportion, cosine, shift[:, 1]], dim=1
        ).view(-1, 2, 3)
        height, width = images.shape[2:]
        # `F.affine_grid`, which a stack of trials cannot run: torch 2.13 has no rule for it under `vmap`.
        grid = (_places(height, width, images) @ rows.mT).unflatten(1, (height, width))
        # Standardised images have a background that is not zero: the border's value fills what comes into view.
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


class RandomErasing:
    """A square of each image, wherever its middle may lie, becomes the mean (Cutout: DeVries and Taylor 2017), at
    training only.

    side: of the square, as a share of the image's shorter one
    """

    def __init__(self, side: float, spec: DataSpec, site: int) -> None:
        if not 0 <= side < 1:
            raise ConfigError(f"family.erasing needs 0 <= erasing < 1, got {side}")
        if spec.kind != "image" and side:
            raise ConfigError(f"family.erasing needs images, got {spec.name}, which is {spec.kind}; set 0.0")
        self.side, self.site = side, site

    def __call__(self, images: Tensor, context: Context) -> Tensor:
        """images [batch, channels, height, width], standardised -> the same shape."""
        if not context.training or is_off(self.side):
            return images
        height, width = images.shape[2:]
        middles_B2 = counter.uniform(context.key(self.site), context.rows, (2,), images.dtype)
        reach = self.side * min(height, width) / 2
        down_BY, across_BX = (
            (torch.arange(size, dtype=images.dtype, device=images.device) + 0.5 - middle * size).abs() < reach
            for size, middle in zip((height, width), middles_B2.unsqueeze(2).unbind(1), strict=True)
        )
        return images.masked_fill((down_BY.unsqueeze(2) & across_BX.unsqueeze(1)).unsqueeze(1), 0.0)


def _places(height: int, width: int, like: Tensor) -> Tensor:
    """The middles of all pixels as (x, y, 1), the image's sides at -1 and 1: [height * width, 3]."""
    down, across = (
        (torch.arange(size, dtype=like.dtype, device=like.device) * 2 + 1) / size - 1 for size in (height, width)
    )
    y, x = torch.meshgrid(down, across, indexing="ij")
    return torch.stack([x, y, torch.ones_like(x)], dim=-1).view(-1, 3)
