"""Generators and critics: networks that turn noise into rows, and rows into one score each.

Images come from sub-pixel convolutions (Shi et al. 2016, "Real-Time Single Image and Video Super-Resolution"): the
network ends, and its critic begins, on patches of pixels as channels, which takes a CPU half the time of DCGAN's
strided convolutions on single pixels (Radford et al. 2016).  Norms are per sample (Ba, Kiros and Hinton 2016), and
only in the generator: what a critic says of a row must not depend on other rows, or its gradient penalty would not be
a row's own.  Shape suffixes: B batch, Z noise, C channels, Y and X pixels (or patches), F features.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neurofleet.errors import ConfigError
from neurofleet.spec import DataSpec

SLOPE = 0.2  # of the critics' leaky rectifiers, as in DCGAN


class DenseGenerator(nn.Module):
    """In: noise [B, Z].  Out: rows [B, *shape], unbounded.  No norm: a row's own size is what its noise has to say,
    and with one the samples of tables lie seven times as far from the rows."""

    def __init__(self, *, noise: int, hidden: list[int], shape: tuple[int, ...]) -> None:
        super().__init__()
        sizes = [noise, *hidden]
        layers: list[nn.Module] = []
        for size, following in itertools.pairwise(sizes):
            layers += [nn.Linear(size, following), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.readout = nn.Linear(sizes[-1], torch.Size(shape).numel())
        self.shape = shape

    def forward(self, noise_BZ: Tensor) -> Tensor:
        return self.readout(self.layers(noise_BZ)).unflatten(1, self.shape)


class DenseCritic(nn.Module):
    """In: rows [B, *shape].  Out: scores [B]."""

    def __init__(self, *, hidden: list[int], shape: tuple[int, ...]) -> None:
        super().__init__()
        sizes = [torch.Size(shape).numel(), *hidden]
        layers: list[nn.Module] = []
        for size, following in itertools.pairwise(sizes):
            layers += [nn.Linear(size, following), nn.LeakyReLU(SLOPE)]
        self.layers = nn.Sequential(*layers)
        self.readout = nn.Linear(sizes[-1], 1)

    def features(self, rows: Tensor) -> Tensor:
        """What the score is read from, [B, F]."""
        return self.layers(rows.flatten(1))

    def forward(self, rows: Tensor) -> Tensor:
        return self.readout(self.features(rows)).squeeze(1)


class MapNorm(nn.GroupNorm):
    """Layer normalisation of maps [B, C, Y, X].  torch's own has no rule for `vmap` where channels are last in memory:
    there the formula runs."""

    def __init__(self, channels: int) -> None:
        super().__init__(1, channels)

    def forward(self, input: Tensor) -> Tensor:
        if not torch._C._functorch.is_functorch_wrapped_tensor(input):
            return super().forward(input)
        variance_B111, mean_B111 = torch.var_mean(input, dim=(1, 2, 3), correction=0, keepdim=True)
        scale_C11, shift_C11 = self.weight[:, None, None], self.bias[:, None, None]
        return (input - mean_B111) * (variance_B111 + self.eps).rsqrt() * scale_C11 + shift_C11


class ImageGenerator(nn.Module):
    """A dense layer to the smallest map, then stages that double it, then a convolution whose channels are patches.

    In: noise [B, Z].  Out: images [B, C, height, width] between `low` and `high`, the training pixels' own range.
    """

    low: Tensor
    high: Tensor

    def __init__(self, *, noise: int, channels: list[int], patch: int, shape: tuple[int, ...], norm: str) -> None:
        super().__init__()
        sizes = list(reversed(channels))  # they are counted from the pixels
        self.shape = shape
        self.padded = padded(shape, channels, patch)
        scale = patch << (len(channels) - 1)
        self.map = (self.padded[0] // scale, self.padded[1] // scale, sizes[0])
        self.dense = nn.Linear(noise, torch.Size(self.map).numel())
        self.stages = nn.ModuleList(
            nn.ConvTranspose2d(size, following, 4, stride=2, padding=1) for size, following in itertools.pairwise(sizes)
        )
        self.norms = nn.ModuleList(MapNorm(size) if norm == "layer" else nn.Identity() for size in sizes)
        self.readout = nn.Conv2d(sizes[-1], shape[0] * patch**2, 3, padding=1)
        self.patch = patch
        self.register_buffer("low", torch.full((shape[0], 1, 1), -1.0))
        self.register_buffer("high", torch.full((shape[0], 1, 1), 1.0))

    def forward(self, noise_BZ: Tensor) -> Tensor:
        map_BCYX = F.relu(self.norms[0](self.dense(noise_BZ).unflatten(1, self.map).permute(0, 3, 1, 2)))
        for stage, norm in zip(self.stages, self.norms[1:], strict=True):
            map_BCYX = F.relu(norm(stage(map_BCYX)))
        images_BCYX = from_patches(self.readout(map_BCYX), self.patch)
        top, left = margins(self.shape, self.padded)
        images_BCYX = images_BCYX[:, :, top : top + self.shape[1], left : left + self.shape[2]]
        return self.low + (self.high - self.low) * torch.sigmoid(images_BCYX)


class ImageCritic(nn.Module):
    """The generator's mirror image.  In: images [B, C, height, width].  Out: scores [B]."""

    def __init__(self, *, channels: list[int], patch: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        height, width = self.padded = padded(shape, channels, patch)
        (top, left), self.patch = margins(shape, self.padded), patch
        self.padding = [left, width - shape[2] - left, top, height - shape[1] - top]
        self.stem = nn.Conv2d(shape[0] * patch**2, channels[0], 3, padding=1)
        self.stages = nn.ModuleList(
            nn.Conv2d(size, following, 4, stride=2, padding=1) for size, following in itertools.pairwise(channels)
        )
        scale = patch << (len(channels) - 1)
        self.readout = nn.Linear(channels[-1] * (height // scale) * (width // scale), 1)

    def features(self, images_BCYX: Tensor) -> Tensor:
        """What the score is read from, [B, F]."""
        if any(self.padding):
            images_BCYX = F.pad(images_BCYX, self.padding)
        map_BCYX = F.leaky_relu(self.stem(to_patches(images_BCYX, self.patch)), SLOPE)
        for stage in self.stages:
            map_BCYX = F.leaky_relu(stage(map_BCYX), SLOPE)
        return map_BCYX.permute(0, 2, 3, 1).flatten(1)

    def forward(self, images_BCYX: Tensor) -> Tensor:
        return self.readout(self.features(images_BCYX)).squeeze(1)


def to_patches(images_BCYX: Tensor, patch: int) -> Tensor:
    """[B, C, Y, X] -> [B, patch * patch * C, Y / patch, X / patch], channels last in memory: convolutions hand their
    gradients on in that layout, and every operation that meets two layouts takes many times as long."""
    height, width = images_BCYX.shape[2] // patch, images_BCYX.shape[3] // patch
    split = images_BCYX.unflatten(3, (width, patch)).unflatten(2, (height, patch))
    return split.permute(0, 2, 4, 3, 5, 1).flatten(3).permute(0, 3, 1, 2)


def from_patches(map_BCYX: Tensor, patch: int) -> Tensor:
    """The inverse of `to_patches`."""
    split = map_BCYX.permute(0, 2, 3, 1).unflatten(3, (patch, patch, map_BCYX.shape[1] // patch**2))
    return split.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def padded(shape: tuple[int, ...], channels: list[int], patch: int) -> tuple[int, int]:
    """The least height and width that patches and stages divide."""
    scale = patch << (len(channels) - 1)
    return -(-shape[1] // scale) * scale, -(-shape[2] // scale) * scale


def margins(shape: tuple[int, ...], padded: tuple[int, int]) -> tuple[int, int]:
    """Pixels above and left of an image in the middle of its padded one."""
    return (padded[0] - shape[1]) // 2, (padded[1] - shape[2]) // 2


def scale_weights(network: nn.Module, slope: float) -> None:
    """Weights that keep the size of signals through rectifiers with this slope (He et al. 2015): torch's own shrink
    them layer by layer, and a critic has no norms that would mend it."""
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            # Of a transposed convolution with stride 2 a quarter of the kernel meets each pixel.
            transposed = isinstance(layer, nn.ConvTranspose2d)
            fan_in = layer.weight.shape[0] * layer.weight[0, 0].numel() / 4 if transposed else layer.weight[0].numel()
            gain = 1.0 if name == "readout" else math.sqrt(2 / (1 + slope**2))
            nn.init.normal_(layer.weight, 0.0, gain / math.sqrt(fan_in))
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)


def networks(
    spec: DataSpec, *, noise: int, hidden: list[int], channels: list[int], patch: int, norm: str
) -> tuple[DenseGenerator | ImageGenerator, DenseCritic | ImageCritic]:
    """A generator and a critic for such rows: convolutions for images, perceptrons for tables and sequences."""
    if not hidden or not channels or min(noise, patch, *hidden, *channels) < 1:
        raise ConfigError(
            "GAN needs positive noise and patch, and at least one positive entry in hidden and in channels, got "
            f"noise={noise}, patch={patch}, hidden={list(hidden)}, channels={list(channels)}"
        )
    if norm not in ("layer", "none"):
        raise ConfigError(f"family.norm needs layer or none, got {norm!r}")
    generator: DenseGenerator | ImageGenerator
    critic: DenseCritic | ImageCritic
    if spec.kind == "image":
        _check_size(spec, channels, patch)
        generator = ImageGenerator(noise=noise, channels=channels, patch=patch, shape=spec.shape, norm=norm)
        critic = ImageCritic(channels=channels, patch=patch, shape=spec.shape)
    else:
        generator = DenseGenerator(noise=noise, hidden=hidden, shape=spec.shape)
        critic = DenseCritic(hidden=hidden, shape=spec.shape)
    scale_weights(generator, 0.0)
    scale_weights(critic, SLOPE)
    return generator, critic


def _check_size(spec: DataSpec, channels: list[int], patch: int) -> None:
    side, scale = min(spec.shape[1:]), patch << (len(channels) - 1)
    if side < scale:
        raise ConfigError(
            f"GAN halves the image in each of {len(channels)} - 1 stages after patches of {patch}: it needs images of "
            f"at least {scale} pixels a side, got {side} ({spec.name}); "
            f"give family.channels at most {max((side // patch).bit_length(), 1)} entries and a patch within {side}"
        )
