"""Spiking network: leaky integrate-and-fire neurons, trained by surrogate gradients (Neftci, Mostafa and Zenke 2019).

A neuron's potential leaks, gathers current, and sends a spike when it passes 1, which is then taken off:

    potential[t] = leak * potential[t-1] + current[t] - spike[t-1],    spike[t] = potential[t] > 1

These are the equations of snntorch's `Leaky` (reset by subtraction), whose modules remember their state between calls;
here a step is a pure function, and each layer takes all steps of time at once, so that a convolution is one call.  A
spike has no derivative: going back, that of a smooth step stands in (Zenke and Ganguli 2018: fast sigmoid; Fang et al.
2021: arctangent).  The readout gathers without spikes, and its mean potential is the answer.

Shape suffixes: T steps of time, B batch, F features, C channels, O outputs; `_TB_` has both in one axis, T first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neurofleet import counter
from neurofleet.errors import ConfigError
from neurofleet.families._inner import StartsFromInputs
from neurofleet.families._layers import RandomAffine
from neurofleet.families._spikes import fire, gather
from neurofleet.spec import DataSpec
from neurofleet.steps import Batch, Context

ARCHITECTURES = ("dense", "convolutional")
CODINGS = ("direct", "rate", "latency")
SURROGATES = ("fast_sigmoid", "arctangent")
DISTORTION, RATE = 0, 1  # sites
SHOWN_ROWS, SHOWN_NEURONS = 3, 60  # in the raster: rows of the data, neurons of a layer


class Course(NamedTuple):
    """What a pass came to: outputs [B, O], spikes of each layer [T, B, ...], potentials of the readout [T, B, O], and
    which steps were still within the row [T, B]."""

    outputs: Tensor
    spikes: list[Tensor]
    potentials: Tensor
    valid: Tensor


class Spiking(StartsFromInputs):
    """Layers of leaky integrate-and-fire neurons.

    In: [B, *spec.shape], shown for `num_steps`.
    Out: [B, spec.num_outputs] logits or values.
    Loss: by task, see `neurofleet.families._supervised`.
    Scores: spikes, how many one answer takes; spike_rate, per neuron and step.

    architecture:    dense, or convolutional for images: stages of a convolution and max-pooling before the dense layers
    hidden:          neurons of each dense layer
    channels:        of each convolutional stage
    kernel_size:     odd
    norm:            layer (of a row's currents at one step; a dense layer that sees the inputs has none) or none
    num_steps:       of time
    own_time:        whether a sequence is seen step by step, as long as it lasts; else it is shown as a whole
    coding:          direct: the input is a current; rate: of spikes, drawn in training and evenly spaced else; latency:
                     one spike, the sooner the larger the input, and none for the least
    leak:            what is left of a potential after a step
    surrogate:       fast_sigmoid or arctangent
    slope:           of the surrogate; the higher, the nearer to 1 a potential has to be to learn
    label_smoothing: of classification, in training
    augmentation:    of images: degrees, scale, translation of random affine distortions in training; zeros for none
    """

    kinds: ClassVar[frozenset[str]] = frozenset({"tabular", "image", "sequence"})

    def __init__(
        self,
        *,
        spec: DataSpec,
        architecture: str,
        hidden: list[int],
        channels: list[int],
        kernel_size: int,
        norm: str,
        num_steps: int,
        own_time: bool,
        coding: str,
        leak: float,
        surrogate: str,
        slope: float,
        label_smoothing: float,
        augmentation: Mapping[str, float],
    ) -> None:
        super().__init__(spec=spec, label_smoothing=label_smoothing)
        convolutional = architecture == "convolutional"
        _check_choices(architecture=architecture, coding=coding, surrogate=surrogate, norm=norm)
        _check_sizes(spec, hidden, channels if convolutional else None, kernel_size, num_steps)
        _check_dynamics(leak, slope)
        self.own_time = own_time and spec.kind == "sequence"
        if self.own_time and coding == "latency":
            raise ConfigError(f"family.coding=latency needs rows without time of their own, got {spec.name}; use rate")
        self.num_steps, self.coding, self.leak, self.surrogate, self.slope = num_steps, coding, leak, surrogate, slope
        self.convolutions, self.norms = nn.ModuleList(), nn.ModuleList()
        for before, after in pairwise([spec.shape[0], *channels] if convolutional else []):
            self.convolutions.append(nn.Conv2d(before, after, kernel_size, padding=kernel_size // 2))
            self.norms.append(nn.GroupNorm(1, after) if norm == "layer" else nn.Identity())
        num_features = spec.shape[-1] if self.own_time else spec.num_inputs
        if convolutional:
            shrink = 2 ** len(channels)
            num_features = channels[-1] * (spec.shape[1] // shrink) * (spec.shape[2] // shrink)
        sizes = [num_features, *hidden]
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(sizes))
        for index, size in enumerate(
            hidden
        ):  # inputs are standardised, and of one channel a norm leaves its sign alone
            normed = norm == "layer" and (convolutional or index > 0)
            self.norms.append(nn.LayerNorm(size) if normed else nn.Identity())
        self.readout = nn.Linear(sizes[-1], spec.num_outputs)
        self.distort = RandomAffine.from_config(augmentation, spec, DISTORTION)
        shape = (spec.shape[0], 1, 1) if spec.kind == "image" else (spec.shape[-1],)
        self.low: Tensor  # the range of the training rows' inputs, which codes are relative to
        self.high: Tensor
        self.register_buffer("low", torch.full(shape, -2.0))
        self.register_buffer("high", torch.full(shape, 2.0))
        self.to(memory_format=torch.channels_last)

    def start_from(self, inputs: Tensor) -> None:
        flat = inputs.movedim(1 if self.spec.kind == "image" else -1, 0).flatten(1)
        self.low.copy_(torch.nan_to_num(flat, nan=math.inf).amin(1).view_as(self.low))
        self.high.copy_(torch.nan_to_num(flat, nan=-math.inf).amax(1).view_as(self.high))

    def augment(self, inputs: Tensor, context: Context) -> Tensor:
        return self.distort(inputs, context)

    def features(self, inputs: Tensor, context: Context | None = None) -> Tensor:
        """The spikes of the last layer before the readout, gathered as the readout gathers its currents, and their mean
        over the row's steps: a linear function of it is all that the answer is."""
        spikes, valid_TB = self.spikes(inputs, context)
        traces_TBF = gather(spikes[-1].flatten(2), self.leak)
        return (traces_TBF * _shares(valid_TB)).sum(0)

    @property
    def heads(self) -> tuple[str, ...]:
        return ("readout",)

    def forward(self, inputs: Tensor, context: Context | None = None) -> Tensor:
        return self.course(inputs, context).outputs

    def answer(self, inputs: Tensor, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        course = self.course(inputs, context)
        if not context.measure:
            return course.outputs, {}
        spikes_B = torch.stack([layer.detach().flatten(2).sum(2) for layer in course.spikes]).sum(0)
        spikes_B = (spikes_B * course.valid).sum(0)
        num_neurons = sum(layer[0, 0].numel() for layer in course.spikes)
        rate_B = spikes_B / (num_neurons * course.valid.sum(0).clamp_min(1))
        return course.outputs, {"spikes": spikes_B, "spike_rate": rate_B}

    @property
    def score_names(self) -> list[str]:
        return [*super().score_names, "spikes", "spike_rate"]

    def course(self, inputs: Tensor, context: Context | None = None) -> Course:
        """All layers, and the readout."""
        spikes, valid_TB = self.spikes(inputs, context)
        currents_TBO = self.readout(spikes[-1].flatten(0, 1).flatten(1)).unflatten(0, valid_TB.shape)
        potentials_TBO = gather(currents_TBO, self.leak)
        return Course((potentials_TBO * _shares(valid_TB)).sum(0), spikes, potentials_TBO, valid_TB)

    def spikes(self, inputs: Tensor, context: Context | None = None) -> tuple[list[Tensor], Tensor]:
        """Of all layers, one after another, each over all steps of time, [T, B, ...]; and which steps are within the
        row [T, B]."""
        batch_size = len(inputs)
        signal_TB = self.encode(inputs, context).flatten(0, 1)  # of one step only, where all are equal
        num_steps = inputs.shape[1] if self.own_time else self.num_steps
        spikes: list[Tensor] = []
        for index, norm in enumerate(self.norms):
            if index < len(self.convolutions):
                current_TB = F.max_pool2d(self.convolutions[index](signal_TB), 2)
            else:
                current_TB = self.layers[index - len(self.convolutions)](signal_TB.flatten(1))
            steps = norm(current_TB).unflatten(0, (-1, batch_size)).unbind(0)
            fired = fire(steps * num_steps if len(steps) == 1 else steps, self.leak, self.surrogate, self.slope)
            signal_TB = torch.cat(fired)  # keeps the layout of channels, as `stack` does not
            spikes.append(signal_TB.unflatten(0, (num_steps, batch_size)))
        return spikes, self._valid(inputs, num_steps)

    def _valid(self, inputs: Tensor, num_steps: int) -> Tensor:
        """[T, B], 1 for the steps of a row and 0 after a sequence's end."""
        if self.own_time:
            return (~inputs.isnan().all(dim=2)).T.to(inputs.dtype)
        return inputs.new_ones(num_steps, len(inputs))

    def encode(self, inputs: Tensor, context: Context | None = None) -> Tensor:
        """[T, B, ...]: what the first layer sees at every step; T is 1 where it is always the same."""
        steps = inputs.movedim(1, 0) if self.own_time else inputs.unsqueeze(0)
        if self.coding == "direct":
            return torch.nan_to_num(steps)
        share = ((steps - self.low) / (self.high - self.low).clamp_min(1e-6)).clamp(0, 1)
        share = torch.nan_to_num(share)
        num_steps = len(steps) if self.own_time else self.num_steps
        places = torch.arange(num_steps, dtype=share.dtype, device=share.device).view(-1, *[1] * (steps.ndim - 1))
        if self.coding == "latency":
            return ((((1 - share) * (num_steps - 1)).round() == places) & (share > 0)).to(inputs.dtype)
        if context is not None and context.training:
            shape = (num_steps, *steps.shape[2:])
            draws = counter.uniform(context.key(RATE), context.rows, shape, inputs.dtype)
            return (draws.movedim(1, 0) < share).to(inputs.dtype)
        return (((places + 1) * share).floor() > (places * share).floor()).to(inputs.dtype)

    def exhibits(self, batch: Batch) -> dict[str, dict[str, Tensor]]:
        rows = batch[0][:SHOWN_ROWS]
        course = self.course(rows)
        shown, layers = [], []
        for index, spikes in enumerate(course.spikes):
            flat = spikes.flatten(2)
            places = torch.linspace(0, flat.shape[2] - 1, min(flat.shape[2], SHOWN_NEURONS), device=flat.device)
            shown.append(flat[:, :, places.round().long()] * course.valid.unsqueeze(2))
            layers += [index] * len(places)
        raster = {
            "spikes": torch.cat(shown, dim=2).movedim(1, 0).to(torch.uint8).contiguous(),
            "layers": torch.tensor(layers),
            "potentials": course.potentials.movedim(1, 0).contiguous(),
            "num_steps": course.valid.sum(0).long(),
        }
        return super().exhibits(batch) | {"spike_raster": raster}


def _shares(valid_TB: Tensor) -> Tensor:
    """[T, B, 1]: what each step counts in a row's mean."""
    return (valid_TB / valid_TB.sum(0).clamp_min(1)).unsqueeze(2)


def _check_choices(**choices: str) -> None:
    known = {"architecture": ARCHITECTURES, "coding": CODINGS, "surrogate": SURROGATES, "norm": ("layer", "none")}
    for name, value in choices.items():
        if value not in known[name]:
            raise ConfigError(f"family.{name} needs one of {', '.join(known[name])}, got {value!r}")


def _check_sizes(
    spec: DataSpec, hidden: list[int], channels: list[int] | None, kernel_size: int, num_steps: int
) -> None:
    """`channels` None: no convolutions."""
    if num_steps < 1:
        raise ConfigError(f"family.num_steps needs at least one step, got {num_steps}")
    if min([*hidden, *(channels or [])], default=0) < 1:
        raise ConfigError(
            "Spiking needs layers of at least one neuron, and at least one layer, got "
            f"hidden={list(hidden)}, channels={list(channels or [])}"
        )
    if channels is None:
        return
    if spec.kind != "image":
        raise ConfigError(
            f"family.architecture=convolutional needs images, got {spec.name}, which is {spec.kind}; set dense"
        )
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ConfigError(
            f"family.kernel_size needs an odd number, got {kernel_size}; try {max(kernel_size + 1, 1) | 1}"
        )
    side = min(spec.shape[1:])
    if not 1 <= len(channels) < side.bit_length():
        raise ConfigError(
            f"Spiking halves the image once per stage: images of {side} pixels ({spec.name}) take 1 to "
            f"{side.bit_length() - 1} stages, got family.channels={list(channels)}"
        )


def _check_dynamics(leak: float, slope: float) -> None:
    if not 0 <= leak <= 1:
        raise ConfigError(f"family.leak needs 0 <= leak <= 1, got {leak}")
    if not slope > 0:
        raise ConfigError(f"family.slope needs a number above 0, got {slope}")
