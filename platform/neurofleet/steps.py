"""The hot path: many optimizer steps per Lightning hook.

Lightning's hooks, `self.log` and a DataLoader cost several times a small network's own step.  A step here is a pure
function of (batch, context), so a `Chunk` of them runs in one `training_step`: the rows of a chunk are gathered at
once, the batches are views, and nothing in the loop touches the tracker, the disk or a Python object per row.

Of several workers each holds a part of every global batch; their gradients, weighted by rows, are summed in one flat
all-reduce.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from neurofleet import counter
from neurofleet.errors import DivergedError

if TYPE_CHECKING:
    from neurofleet.families._base import Family

Batch = tuple[Tensor, ...]
Measured = dict[int, Mapping[str, Tensor]]  # offset in a chunk -> metrics of that step


@dataclasses.dataclass(frozen=True)
class Context:
    """Where in training a batch stands; all that an `objective` may draw randomness from.

    seed, step: the run's seed and the optimizer step (int32 tensors in a stack of trials, else ints)
    progress:   steps done / steps in all, in [0, 1)
    rows:       int32 [batch], the position of each row in the global batch
    training:   False at evaluation: no dropout, no augmentation, no label smoothing
    measure:    whether metrics beside the loss are wanted at this step
    """

    seed: counter.Key
    step: counter.Key
    progress: float
    rows: Tensor
    training: bool
    measure: bool

    def key(self, site: int) -> counter.Key:
        """The key of one place in the network (a dropout layer, an augmentation) at this step."""
        return counter.fold(self.seed, self.step, site)


class Batches(Protocol):
    """As many batches as a chunk has steps: a list, or something that makes each when its step comes."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...


class Chunk:
    """Consecutive optimizer steps.  `weights[i]` is the share of global batch i that this worker holds.

    No dataclass: Lightning would walk through it tensor by tensor to move what is already on its device.
    """

    def __init__(self, first_step: int, batches: Batches, rows: list[Tensor], weights: list[float]) -> None:
        self.first_step = first_step
        self.batches = batches
        self.rows = rows
        self.weights = weights


@dataclasses.dataclass(frozen=True)
class ChunkResult:
    """The loss of every step (over all workers), the metrics of the measured ones, and the time of a step."""

    first_step: int
    losses: list[float]
    measured: dict[int, dict[str, float]]
    step_seconds: float


def run_chunk(family: Family, chunk: Chunk, optimizer: torch.optim.Optimizer) -> ChunkResult:
    """Train `family` on every batch of `chunk`.

    Raises:
        DivergedError: the loss of a step is NaN or infinite; on every worker alike.
    """
    recipe = family.recipe
    parameters = [parameter for parameter in family.parameters() if parameter.requires_grad]
    learning_rates = [group["initial_lr"] for group in optimizer.param_groups]
    # torch wraps every optimizer's `step` for its profiler and hooks, at the price of a small network's whole update.
    take_step = torch.no_grad()(inspect.unwrap(type(optimizer).step))
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    losses: list[Tensor] = []
    measured: Measured = {}
    begin = time.perf_counter()
    for offset, (batch, rows, weight) in enumerate(zip(chunk.batches, chunk.rows, chunk.weights, strict=True)):
        step = chunk.first_step + offset
        progress = step / recipe.num_steps
        measure = step % recipe.log_every_n_steps == 0
        objective = family.objective(batch, Context(recipe.seed, step, progress, rows, True, measure))
        if world_size == 1:
            objective.loss.backward()
        else:
            _backward_over_workers(objective.loss, weight, parameters, world_size)
        if recipe.gradient_clip_val is not None:
            torch.nn.utils.clip_grad_norm_(parameters, recipe.gradient_clip_val)
        factor = recipe.schedule(progress)
        for group, learning_rate in zip(optimizer.param_groups, learning_rates, strict=True):
            group["lr"] = learning_rate * factor
        take_step(optimizer)
        for parameter in parameters:  # `zero_grad` without its own mark for the profiler
            parameter.grad = None
        if objective.buffers:
            family.update_buffers(objective.buffers)
        losses.append(objective.loss.detach())
        if measure:
            measured[offset] = objective.metrics
    seconds = (time.perf_counter() - begin) / len(losses)
    return _result(chunk, losses, measured, seconds, world_size)


def _backward_over_workers(loss: Tensor, weight: float, parameters: list[torch.nn.Parameter], world_size: int) -> None:
    """Gradients of the global batch's loss on every worker: each weighs its rows, one flat all-reduce sums them."""
    if isinstance(parameters[0], DTensor):  # fully sharded: the backward hooks average over workers by themselves
        (loss * (weight * world_size)).backward()
        return
    (loss * weight).backward()
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch._utils._flatten_dense_tensors(gradients)
    dist.all_reduce(flat)
    for gradient, total in zip(gradients, torch._utils._unflatten_dense_tensors(flat, gradients), strict=True):
        gradient.copy_(total)


def _result(chunk: Chunk, losses: list[Tensor], measured: Measured, seconds: float, world_size: int) -> ChunkResult:
    """One transfer from the device, and one all-reduce, for all that a chunk measured."""
    names = [(offset, name) for offset, metrics in measured.items() for name in metrics]
    scalars = torch.stack(losses).double()
    if names:  # all means over rows in one operation: one a step would cost 5 % of a small network's
        values_of = [measured[offset][name] for offset, name in names]
        values_of = [values if values.ndim == 1 else values.reshape(-1) for values in values_of]
        lengths = torch.tensor([len(values) for values in values_of], device=scalars.device)
        with torch.no_grad():
            means = torch.segment_reduce(torch.cat(values_of).double(), "mean", lengths=lengths)
        scalars = torch.cat([scalars, means])
    if world_size > 1:
        weights = [*chunk.weights, *(chunk.weights[offset] for offset, _ in names)]
        shares = torch.tensor([*weights, 1 / world_size], dtype=torch.float64, device=scalars.device)
        scalars = torch.cat([scalars, scalars.new_tensor([seconds])]) * shares
        dist.all_reduce(scalars)
        seconds = float(scalars[-1])
    values = scalars.tolist()
    for offset, loss in enumerate(values[: len(losses)]):
        if not math.isfinite(loss):
            step = chunk.first_step + offset
            raise DivergedError(
                f"the loss must stay finite, got {loss} at step {step}; "
                "lower optimizer.lr, set trainer.gradient_clip_val, or check the data for extreme values",
                step,
            )
    metrics: dict[int, dict[str, float]] = {chunk.first_step + offset: {} for offset in measured}
    for offset in measured:
        metrics[chunk.first_step + offset]["loss"] = values[offset]
    for (offset, name), value in zip(names, values[len(losses) :], strict=False):
        metrics[chunk.first_step + offset][name] = value
    return ChunkResult(chunk.first_step, values[: len(losses)], metrics, seconds)
