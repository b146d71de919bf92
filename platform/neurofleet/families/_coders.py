"""Encoders from inputs to features, and the decoders that mirror them: dense layers, or convolutions that halve; and
pixels as numbers in [0, 1].

Shape suffixes: B batch, N numbers in a row of inputs, K code, F features, C channels, Y and X pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from neurofleet.errors import ConfigError
from neurofleet.families._layers import numbers
from neurofleet.spec import DataSpec

Activation = Callable[[Tensor], Tensor]


class Code(NamedTuple):
    """What an encoder says: the code (or its mean) [B, K], and the logarithm of its variance or None."""

    mean: Tensor
    log_variance: Tensor | None


class Pixels(nn.Module):
    """Standardised images [B, *spec.shape] as pixels in [0, 1], where 1 is the brightest of the training rows."""

    white: Tensor

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("white", torch.tensor(255.0))

    def start(self, inputs: Tensor) -> None:
        """Learn what is white: images need not use all of a byte."""
        mean, std = self._statistics(inputs)
        self.white.copy_((inputs * std + mean).max().round().clamp(min=1))

    def forward(self, inputs: Tensor) -> Tensor:
        mean, std = self._statistics(inputs)
        return inputs * (std / self.white) + mean / self.white

    def standardised(self, pixels: Tensor) -> Tensor:
        mean, std = self._statistics(pixels)
        return pixels * (self.white / std) - mean / std

    def _statistics(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        mean = torch.tensor(self.spec.input_mean, dtype=inputs.dtype, device=inputs.device).view(-1, 1, 1)
        return mean, torch.tensor(self.spec.input_std, dtype=inputs.dtype, device=inputs.device).view(-1, 1, 1)


def _linears(sizes: list[int]) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(sizes))


class DenseEncoder(nn.Module):
    """[B, *spec.shape] -> [B, num_features] by dense layers, each followed by the activation."""

    def __init__(self, spec: DataSpec, hidden: list[int], activation: Activation) -> None:
        super().__init__()
        self.layers, self.activation = _linears([spec.num_inputs, *hidden]), activation
        self.num_features = [spec.num_inputs, *hidden][-1]

    def forward(self, inputs: Tensor) -> Tensor:
        values_BF = numbers(inputs)
        for layer in self.layers:
            values_BF = self.activation(layer(values_BF))
        return values_BF


class DenseDecoder(nn.Module):
    """[B, K] -> [B, N], through the encoder's layers in reverse; the last one is linear."""

    def __init__(self, spec: DataSpec, hidden: list[int], code: int, activation: Activation) -> None:
        super().__init__()
        self.layers, self.activation = _linears([code, *reversed(hidden)]), activation
        self.readout = nn.Linear([code, *reversed(hidden)][-1], spec.num_inputs)

    def set_offset(self, values: Tensor) -> None:
        """What comes out before anything is learnt, [N]."""
        self.readout.bias.copy_(values)

    def forward(self, code_BK: Tensor) -> Tensor:
        values_BF = code_BK
        for layer in self.layers:
            values_BF = self.activation(layer(values_BF))
        return self.readout(values_BF)


def halved_sides(spec: DataSpec, num_stages: int) -> list[tuple[int, int]]:
    """Height and width before each stage, and after the last; an odd side is rounded up."""
    if num_stages < 1 or min(spec.shape[1:]) < 2**num_stages:
        side = min(spec.shape[1:])
        raise ConfigError(
            f"a convolutional autoencoder halves the image once per stage: it needs at least one stage, and images of "
            f"at least {2 ** max(num_stages, 1)} pixels a side, got {num_stages} stages and {side} pixels "
            f"({spec.name}); give family.channels 1 to {side.bit_length() - 1} entries"
        )
    sides = [(spec.shape[1], spec.shape[2])]
    for _ in range(num_stages):
        sides.append(((sides[-1][0] + 1) // 2, (sides[-1][1] + 1) // 2))
    return sides


class ConvolutionalEncoder(nn.Module):
    """[B, C, Y, X] -> [B, num_features]: convolutions with stride 2, then dense layers."""

    def __init__(self, spec: DataSpec, channels: list[int], hidden: list[int], activation: Activation) -> None:
        super().__init__()
        height, width = halved_sides(spec, len(channels))[-1]
        pairs = pairwise([spec.shape[0], *channels])
        self.stages = nn.ModuleList(nn.Conv2d(before, after, 3, stride=2, padding=1) for before, after in pairs)
        sizes = [channels[-1] * height * width, *hidden]
        self.layers, self.activation, self.num_features = _linears(sizes), activation, sizes[-1]
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, inputs: Tensor) -> Tensor:
        images_BCYX = inputs
        for stage in self.stages:
            images_BCYX = self.activation(stage(images_BCYX))
        values_BF = images_BCYX.flatten(1)
        for layer in self.layers:
            values_BF = self.activation(layer(values_BF))
        return values_BF


class ConvolutionalDecoder(nn.Module):
    """[B, K] -> [B, N]: dense layers, then transposed convolutions that double the image."""

    def __init__(
        self, spec: DataSpec, channels: list[int], hidden: list[int], code: int, activation: Activation
    ) -> None:
        super().__init__()
        sides = halved_sides(spec, len(channels))[::-1]
        self.smallest = (channels[-1], *sides[0])
        self.layers = _linears([code, *reversed(hidden), channels[-1] * sides[0][0] * sides[0][1]])
        stages = []
        for (before, after), (small, large) in zip(
            pairwise([*reversed(channels), spec.shape[0]]), pairwise(sides), strict=True
        ):
            # A stage gives 2 * side - 1 pixels, and one more where the image that the encoder halved was even.
            extra = (large[0] - (2 * small[0] - 1), large[1] - (2 * small[1] - 1))
            stages.append(nn.ConvTranspose2d(before, after, 3, stride=2, padding=1, output_padding=extra))
        self.stages, self.activation = nn.ModuleList(stages), activation
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def set_offset(self, values: Tensor) -> None:
        """What comes out before anything is learnt, [N]; a channel has one value."""
        bias = self.stages[-1].bias
        assert isinstance(bias, nn.Parameter)
        bias.copy_(values.view(len(bias), -1).mean(dim=1))

    def forward(self, code_BK: Tensor) -> Tensor:
        values_BF = code_BK
        for layer in self.layers:
            values_BF = self.activation(layer(values_BF))
        images_BCYX = values_BF.view(-1, *self.smallest)
        for index, stage in enumerate(self.stages):
            images_BCYX = stage(self.activation(images_BCYX) if index else images_BCYX)
        return images_BCYX.flatten(1)


def row_mean(values_BN: Tensor, known_BN: Tensor | None) -> Tensor:
    """[B], the mean over what is known of each row (None: all)."""
    if known_BN is None:
        return values_BN.mean(dim=1)
    return (values_BN * known_BN).sum(dim=1) / known_BN.sum(dim=1).clamp(min=1)


def crowding(code_BK: Tensor) -> Tensor:
    """How evenly units share a row's code [B]: the L1 norm over the L2 norm, 1 where all speak alike, and
    1 / sqrt(K) where one speaks alone."""
    length_B = (code_BK.square().sum(dim=1) + 1e-12).sqrt()
    return code_BK.abs().sum(dim=1) / (length_B * math.sqrt(code_BK.shape[1]))
