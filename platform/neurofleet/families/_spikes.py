"""Leaky integrate-and-fire neurons over time, and the gradient that stands in for a spike's.

Shape suffixes: T steps of time, B batch, O outputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def fire(currents: Sequence[Tensor], leak: float, surrogate: str, slope: float) -> list[Tensor]:
    """Spikes of every step; the reset is no part of the gradient, as in snntorch."""
    fired: list[Tensor] = []
    potential = currents[0]
    for step, current in enumerate(currents):
        if step:
            potential = leak * potential + current - fired[-1].detach()
        fired.append(Spike.apply(potential - 1.0, surrogate, slope))
    return fired


def gather(currents_TBO: Tensor, leak: float) -> Tensor:
    """Potentials [T, B, O] of leaky neurons that never fire."""
    potentials = [currents_TBO[0]]
    for current_BO in currents_TBO[1:]:
        potentials.append(leak * potentials[-1] + current_BO)
    return torch.stack(potentials)


class Spike(torch.autograd.Function):
    """1 where the distance to the threshold is positive; the gradient is that of a smooth step.

    fast_sigmoid: 1 / (1 + slope |x|)^2          arctangent: slope / 2 / (1 + (pi / 2 slope x)^2)
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(distance: Tensor, surrogate: str, slope: float) -> Tensor:
        return (distance > 0).to(distance.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, str, float], output: Tensor) -> None:
        distance, ctx.surrogate, ctx.slope = inputs
        ctx.save_for_backward(distance)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (distance,) = ctx.saved_tensors
        if ctx.surrogate == "fast_sigmoid":
            return gradients[0] / (distance.abs() * ctx.slope + 1).square(), None, None
        return gradients[0] * (ctx.slope / 2) / ((distance * (math.pi / 2 * ctx.slope)).square() + 1), None, None
