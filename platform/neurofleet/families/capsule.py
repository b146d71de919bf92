"""Capsule network for images, after Sabour, Frosst and Hinton 2017, "Dynamic routing between capsules".

A capsule is a small group of units: the length of its vector says how probable a thing is, the direction in what pose.
Convolutions end in primary capsules, one for each type and place.  Each predicts the vector of every class's capsule,
and routing by agreement decides whom it speaks to: its coupling coefficients grow where its prediction lies along what
all of them together say.

The predictions are never laid out.  They are the products of the primary vectors with one matrix per pair, and both
what routing asks of them (their weighted sum, and their agreement with a vector) is one matrix product per class over
all primary capsules at once: half the memory, and the work is done where a CPU is fastest.

Shape suffixes: B batch, C channels, Y and X pixels, N primary capsules, E their size, J class capsules, D their size,
F = N * E.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neurofleet.errors import ConfigError
from neurofleet.families._base import Objective
from neurofleet.families._layers import RandomAffine
from neurofleet.families._supervised import SupervisedFamily
from neurofleet.spec import DataSpec
from neurofleet.steps import Batch, Context

PRESENT, ABSENT = 0.9, 0.1  # lengths beyond which the margin loss wants no more
ABSENT_WEIGHT = 0.5  # so that early in training the many absent classes do not shrink every capsule
SHOWN_ROWS, SHOWN_STEPS, SHOWN_REACH = 3, 9, 0.25  # of the picture: images, and how far a dimension is moved
INITIAL_SCALE = 3.0  # of routing: the class capsules then begin at lengths that learn, however many primary ones speak
TINY = 1e-9


def squash(vectors: Tensor) -> Tensor:
    """Vectors [..., D] of any length n in the same direction, with length n^2 / (1 + n^2)."""
    square = vectors.square().sum(dim=-1, keepdim=True) + TINY
    return vectors * (square.sqrt() / (1 + square))


class Routing(nn.Module):
    """Class capsules out of primary ones: [B, N, E] -> the vectors [J, B, D] before they are squashed."""

    def __init__(self, num_inputs: int, input_size: int, num_outputs: int, output_size: int, iterations: int) -> None:
        super().__init__()
        self.iterations = iterations
        scale = INITIAL_SCALE / math.sqrt(num_inputs * input_size)
        self.weight = nn.Parameter(torch.randn(num_outputs, num_inputs * input_size, output_size) * scale)

    def forward(self, primary_BNE: Tensor) -> Tensor:
        couplings_JBN = self.couplings(primary_BNE.detach())
        return self._sums(primary_BNE, couplings_JBN, self.weight)

    def couplings(self, primary_BNE: Tensor) -> Tensor:
        """Coefficients [J, B, N] that sum to one over the classes.

        No gradient goes through them, as in many reimplementations (the authors' own code has it go through all
        iterations): it takes the last weighted sum alone.
        """
        weight_JFD = self.weight.detach()
        # All alike at first: a number, for which nothing has to be laid out.
        couplings_JBN = primary_BNE.new_full((1, 1, 1), 1 / len(weight_JFD))
        logits_JBN = torch.zeros_like(couplings_JBN)
        for _ in range(self.iterations - 1):
            outputs_JBD = squash(self._sums(primary_BNE, couplings_JBN, weight_JFD))
            towards_JBNE = (outputs_JBD @ weight_JFD.mT).unflatten(-1, primary_BNE.shape[1:])
            logits_JBN = logits_JBN + (towards_JBNE * primary_BNE).sum(dim=-1)
            couplings_JBN = logits_JBN.softmax(dim=0)
        return couplings_JBN.expand(len(weight_JFD), *primary_BNE.shape[:2])

    @staticmethod
    def _sums(primary_BNE: Tensor, couplings_JBN: Tensor, weight_JFD: Tensor) -> Tensor:
        return (couplings_JBN.unsqueeze(-1) * primary_BNE).flatten(-2) @ weight_JFD


class Capsule(SupervisedFamily):
    """Stages of convolutions, each halving the image by max-pooling; primary capsules; a capsule for every class.

    In: [B, channels, height, width].
    Out: [B, spec.num_outputs], the log-odds of the capsules' lengths: log n^2 for a vector of n before the squashing.
    Loss: the margin loss of the lengths; in training also `reconstruction` times the squared error of the standardised
    image that a decoder makes from the capsules of the classes that are there, all others masked.

    channels:           of each stage
    kernel_size:        of the stages, odd
    primary_types:      primary capsules at every place
    primary_size:       units of a primary capsule
    primary_kernel:     of the convolution that makes them, odd
    primary_stride:     of the same
    capsule_size:       units of a class's capsule
    routing_iterations: 1 couples all alike
    decoder:            units of each hidden layer
    reconstruction:     weight of the decoder's error, summed over the pixels.  The paper's 0.0005, for pixels from 0 to
                        1, is 0.00005 for the standardised pixels of MNIST, whose variance was 0.095
    augmentation:       degrees, scale, translation of random affine distortions in training; zeros for none
    """

    kinds: ClassVar[frozenset[str]] = frozenset({"image"})
    tasks: ClassVar[frozenset[str]] = frozenset({"multiclass", "binary", "multilabel"})

    def __init__(
        self,
        *,
        spec: DataSpec,
        channels: list[int],
        kernel_size: int,
        primary_types: int,
        primary_size: int,
        primary_kernel: int,
        primary_stride: int,
        capsule_size: int,
        routing_iterations: int,
        decoder: list[int],
        reconstruction: float,
        augmentation: Mapping[str, float],
    ) -> None:
        super().__init__(spec=spec, label_smoothing=0.0)
        sizes = {"primary_types": primary_types, "primary_size": primary_size, "primary_stride": primary_stride}
        sizes |= {"capsule_size": capsule_size, "routing_iterations": routing_iterations}
        self._check(spec, channels, decoder, sizes, {"kernel_size": kernel_size, "primary_kernel": primary_kernel})
        if not reconstruction >= 0:
            raise ConfigError(f"family.reconstruction needs a weight >= 0, got {reconstruction}")
        self.convolutions, self.norms = nn.ModuleList(), nn.ModuleList()
        for before, after in pairwise([spec.shape[0], *channels]):
            self.convolutions.append(nn.Conv2d(before, after, kernel_size, padding=kernel_size // 2, bias=False))
            self.norms.append(nn.GroupNorm(1, after))
        self.primary = nn.Conv2d(
            channels[-1], primary_types * primary_size, primary_kernel, primary_stride, padding=primary_kernel // 2
        )
        self.primary_size = primary_size
        places = [((side >> len(channels)) - 1) // primary_stride + 1 for side in spec.shape[1:]]
        self.routing = Routing(
            primary_types * places[0] * places[1], primary_size, spec.num_outputs, capsule_size, routing_iterations
        )
        widths = [spec.num_outputs * capsule_size, *decoder, spec.num_inputs]
        self.decoder = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))
        self.reconstruction = reconstruction
        self.distort = RandomAffine.from_config(augmentation, spec, site=0)
        self.to(memory_format=torch.channels_last)

    @staticmethod
    def _check(
        spec: DataSpec, channels: list[int], decoder: list[int], sizes: Mapping[str, int], kernels: Mapping[str, int]
    ) -> None:
        if not channels or min([*channels, *decoder]) < 1:
            raise ConfigError(
                "Capsule needs at least one stage, and layers of at least one unit, got "
                f"channels={list(channels)}, decoder={list(decoder)}"
            )
        for name, value in sizes.items():
            if value < 1:
                raise ConfigError(f"family.{name} needs at least 1, got {value}")
        for name, value in kernels.items():
            if value < 1 or value % 2 == 0:
                raise ConfigError(f"family.{name} needs an odd number, got {value}; try {max(value + 1, 1) | 1}")
        side = min(spec.shape[1:])
        if side < 2 ** len(channels):
            raise ConfigError(
                f"Capsule halves the image once per stage: {len(channels)} stages need images of at least "
                f"{2 ** len(channels)} pixels a side, got {side} ({spec.name}); "
                f"give family.channels at most {side.bit_length() - 1} entries"
            )

    def augment(self, inputs: Tensor, context: Context) -> Tensor:
        return self.distort(inputs, context)

    def features(self, inputs: Tensor, context: Context | None = None) -> Tensor:
        """The primary capsules, all in a row: what is where in the image and in what pose, for any class to use."""
        return self.primary_capsules(inputs).flatten(1)

    @property
    def heads(self) -> tuple[str, ...]:
        return ("routing", "decoder")

    def forward(self, inputs: Tensor, context: Context | None = None) -> Tensor:
        return self._log_odds(self.vectors(inputs))

    def vectors(self, inputs: Tensor) -> Tensor:
        """Images -> the class capsules [B, J, D] before they are squashed."""
        return self.routing(self.primary_capsules(inputs)).transpose(0, 1)

    def primary_capsules(self, inputs: Tensor) -> Tensor:
        """Images -> [B, N, E], squashed."""
        images_BCYX = inputs
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            images_BCYX = F.relu(norm(F.max_pool2d(convolution(images_BCYX), 2)))
        primary_BCYX = self.primary(images_BCYX)  # channels-last: the units of a capsule lie side by side
        primary_BNE = primary_BCYX.permute(0, 2, 3, 1).reshape(len(inputs), -1, self.primary_size)
        return squash(primary_BNE)

    @staticmethod
    def _log_odds(vectors_BJD: Tensor) -> Tensor:
        """A squashed vector's length n^2 / (1 + n^2), taken for a probability, has the odds n^2."""
        return (vectors_BJD.square().sum(dim=-1) + TINY).log()

    def decode(self, squashed_BJD: Tensor, present_BJ: Tensor) -> Tensor:
        """Standardised images from the capsules of the classes that are there; the others are masked."""
        hidden_BH = (squashed_BJD * present_BJ.unsqueeze(-1)).flatten(1)
        for layer in self.decoder[:-1]:
            hidden_BH = F.relu(layer(hidden_BH))
        return self.decoder[-1](hidden_BH).view(-1, *self.spec.shape)

    def objective(self, batch: Batch, context: Context) -> Objective:
        inputs, targets = batch
        inputs = self.augment(inputs, context)
        vectors_BJD = self.vectors(inputs)
        outputs = self._log_odds(vectors_BJD)
        loss = self.loss(outputs, targets, context)
        metrics: dict[str, Tensor] = self._quick_metrics(outputs, targets) if context.measure else {}
        if context.training:
            rebuilt = self.decode(squash(vectors_BJD), self._present(targets, vectors_BJD))
            errors_B = (rebuilt - inputs).square().flatten(1).sum(dim=1)
            loss = loss + self.reconstruction * errors_B.mean()
            if context.measure:
                metrics["reconstruction_error"] = errors_B.detach() / self.spec.num_inputs
        return Objective(loss, metrics)

    def loss(self, outputs: Tensor, targets: Tensor, context: Context) -> Tensor:
        """The margin loss, summed over the classes."""
        lengths_BJ, present_BJ = outputs.sigmoid(), self._present(targets, outputs)
        present_loss = present_BJ * F.relu(PRESENT - lengths_BJ).square()
        absent_loss = ABSENT_WEIGHT * (1 - present_BJ) * F.relu(lengths_BJ - ABSENT).square()
        return (present_loss + absent_loss).sum(dim=1).mean()

    def _present(self, targets: Tensor, like: Tensor) -> Tensor:
        """1 for a class that is there, else 0: [B, J]."""
        if self.spec.task == "multiclass":
            classes = torch.arange(self.spec.num_outputs, device=targets.device)
            return (targets.unsqueeze(-1) == classes).to(like.dtype)
        return targets.to(like.dtype)

    def exhibits(self, batch: Batch) -> dict[str, dict[str, Tensor]]:
        """Those of a classifier, and images rebuilt while each dimension of the winning capsule is moved, as in the
        paper's figure 4."""
        vectors_BJD = self.vectors(batch[0])
        winner_B = vectors_BJD.square().sum(dim=-1).argmax(dim=1)
        rows_R = torch.stack([(winner_B == one).nonzero()[0, 0] for one in winner_B.unique()[:SHOWN_ROWS]])
        present_RJ = F.one_hot(winner_B[rows_R], vectors_BJD.shape[1]).to(vectors_BJD.dtype)
        squashed_RJD = squash(vectors_BJD[rows_R])
        num_rows, num_classes, size = squashed_RJD.shape
        moves_S = torch.linspace(-SHOWN_REACH, SHOWN_REACH, SHOWN_STEPS, device=self.device).to(squashed_RJD.dtype)
        moves_DSD = moves_S.view(1, -1, 1) * torch.eye(size, device=self.device).to(moves_S.dtype).unsqueeze(1)
        moved = squashed_RJD.view(num_rows, 1, 1, num_classes, size) + moves_DSD.view(1, size, -1, 1, size)
        present = present_RJ.view(num_rows, 1, 1, num_classes, 1).expand_as(moved[..., :1])
        rebuilt = self.decode(moved.flatten(0, 2), present.flatten(0, 2).squeeze(-1))
        return super().exhibits(batch) | {
            "capsule_dimensions": {
                "images": self._raw(batch[0][rows_R]),
                "reconstructions": self._raw(rebuilt).view(num_rows, size, SHOWN_STEPS, *self.spec.shape),
                "moves": moves_S,
            }
        }

    def _raw(self, images: Tensor) -> Tensor:
        """Standardised images [B, *spec.shape] in the user's units."""
        mean, std = (images.new_tensor(values).view(-1, 1, 1) for values in (self.spec.input_mean, self.spec.input_std))
        return images * std + mean
