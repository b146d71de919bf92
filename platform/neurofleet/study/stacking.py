"""Which trials train as one stack, and whether that pays.

Trials fit into a stack if their experiments differ only in the seed, the schedule, the settings of one optimizer, the
gradient's bound, and floats of the family.  Whether torch can run the objective of such a family under `vmap`, and
whether floats that differ reach every trial, is not taken on trust: before a stack trains, losses and gradients of its
first batch are computed both ways and compared.
"""

from __future__ import annotations

import json
import time
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any

import psutil
import torch
from torch import Tensor

from neurofleet.errors import UserError
from neurofleet.run import Plan
from neurofleet.steps import Batch, Context
from neurofleet.study.cohort import Cohort, Single, Trial
from neurofleet.study.fused import Stack
from neurofleet.study.optimizers import KNOWN, can_stack
from neurofleet.study.settings import NotStackableError
from neurofleet.supply import RowSupply

TIMED_STEPS = 5
SHARE_OF_MEMORY = 0.5  # of what is free, for what a stack keeps between the passes forward and backward
TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-9}  # of a loss or gradient, relative to the largest one
Say = Callable[[str], None]


def cohorts(trials: Sequence[Trial], *, wanted: frozenset[str], fuse: str, max_stack: int, say: Say) -> list[Cohort]:
    """All trials, divided among cohorts: stacks where that is possible (and, if `fuse` is auto, faster)."""
    if fuse == "pack":
        return [Single(trial, wanted) for trial in trials]
    made: list[Cohort] = []
    for loose in _alike(trials, exact=False):
        try:
            made += _stacked(loose, wanted, fuse, max_stack, say)
        except NotStackableError as error:
            groups = list(_alike(loose, exact=True))
            if len(groups) == 1 or len(groups) == len(loose):
                say(f"{len(loose)} trials one after another: {error}")
                made += [Single(trial, wanted) for trial in loose]
                continue
            say(f"{len(loose)} trials in {len(groups)} stacks by their settings of the family: {error}")
            for tight in groups:
                made += _stacked(tight, wanted, fuse, max_stack, say)
    return made


def _stacked(trials: Sequence[Trial], wanted: frozenset[str], fuse: str, max_stack: int, say: Say) -> list[Cohort]:
    if len(trials) == 1:
        return [Single(trials[0], wanted)]
    _need_stackable(trials[0].plan)
    size = min(max_stack, _most(trials[0].plan))
    num_stacks = -(-len(trials) // size)
    made: list[Cohort] = []
    for index in range(num_stacks):
        part = trials[len(trials) * index // num_stacks : len(trials) * (index + 1) // num_stacks]
        stack = Stack(part, wanted)
        check(stack)
        made.append(stack)
        if fuse == "auto" and index == 0:
            gain = _gain(stack)
            if gain < 1:
                say(f"{len(trials)} trials one after another: a stack of them is slower ({gain:.2f}x)")
                return [Single(trial, wanted) for trial in trials]
            say(f"{len(trials)} trials in {num_stacks} stack{'s' * (num_stacks > 1)}, measured {gain:.1f}x as fast")
    return made


def _need_stackable(plan: Plan) -> None:
    if not isinstance(plan.supply, RowSupply):
        raise NotStackableError("agents act, each in an environment of its own")
    if plan.config.precision == "bf16-mixed":
        raise NotStackableError("a stack trains in 32-true or 64-true")
    if not can_stack(plan.experiment["optimizer"]):
        raise NotStackableError(f"the optimizer has settings beyond {', '.join(sorted(KNOWN))} and theirs")


def _alike(trials: Sequence[Trial], *, exact: bool) -> Iterator[list[Trial]]:
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(signature(trial.plan, exact=exact), []).append(trial)
    yield from groups.values()


def signature(plan: Plan, *, exact: bool) -> str:
    """Equal for trials that may stand in one stack; if `exact`, all that the family is given has to be equal."""
    experiment = {key: value for key, value in plan.experiment.items() if key not in ("name", "launcher", "schedule")}
    hints = typing.get_type_hints(type(plan.family).__init__)
    family = experiment["family"] if exact else _without_floats(experiment["family"], hints)
    free = {"gradient_clip_val", "register", "checkpoint"}
    return json.dumps(
        {
            "family": family,
            "data": experiment["data"],
            "optimizer": [experiment["optimizer"]["_target_"], sorted(experiment["optimizer"])],
            "trainer": {key: value for key, value in experiment["trainer"].items() if key not in free},
        },
        sort_keys=True,
    )


def _without_floats(config: Mapping[str, Any], hints: Mapping[str, Any]) -> dict[str, Any]:
    def hidden(key: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return _without_floats(value, {})
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return "a float" if isinstance(value, float) or (number and hints.get(key) is float) else value

    return {key: hidden(key, value) for key, value in config.items()}


# One batch, both ways.


def _first_batch(plan: Plan, cohort: Cohort) -> tuple[Batch, Context]:
    chunk = cohort.loader.chunk(0, 1)
    return next(iter(chunk.batches)), Context(plan.experiment["seed"], 0, 0.0, chunk.rows[0], True, measure=False)


def _alone(plan: Plan, batch: Batch, context: Context) -> tuple[Tensor, list[Tensor | None]]:
    learning = [one for one in plan.family.parameters() if one.requires_grad]
    loss = plan.family.objective(batch, context).loss
    return loss.detach(), list(torch.autograd.grad(loss, learning, allow_unused=True))


def check(stack: Stack) -> None:
    """Raise NotStackableError unless trials have the losses and gradients of their first batch in the stack as alone.

    All of them are compared if floats of their families differ, else the first.
    """
    trials = stack.trials if stack.settings else stack.trials[:1]
    batch, context = _first_batch(trials[0].plan, stack)
    try:
        losses, gradients = stack.probe(batch, context)
    except UserError:
        raise
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise NotStackableError(f"torch cannot run their objective in a stack ({reason})") from error
    for place, trial in enumerate(trials):
        own = Context(trial.plan.experiment["seed"], 0, 0.0, context.rows, True, measure=False)
        loss, alone = _alone(trial.plan, batch, own)
        pairs = [(losses[place], loss)]
        pairs += [(ours[place], own) for ours, own in zip(gradients, alone, strict=True) if None not in (ours, own)]
        if any((ours is None) != (own is None) for ours, own in zip(gradients, alone, strict=True)) or not all(
            _close(*pair) for pair in pairs
        ):
            raise NotStackableError("a setting in which they differ does not reach every trial of a stack")


def _close(ours: Tensor, own: Tensor) -> bool:
    if not bool(torch.isfinite(own).all()):
        return True  # it diverges either way
    largest = max(float(own.abs().max()), 1e-6)
    return float((ours - own).abs().max()) <= TOLERANCES[own.dtype] * largest


def _gain(stack: Stack) -> float:
    """How many times as fast a step of the stack is as its trials' steps one after another."""
    plan = stack.trials[0].plan
    batch, context = _first_batch(plan, stack)
    together = _seconds(lambda: stack.probe(batch, context))
    return _seconds(lambda: _alone(plan, batch, context)) * len(stack.trials) / together


def _seconds(action: Callable[[], object]) -> float:
    taken = []
    for _ in range(TIMED_STEPS):
        begin = time.perf_counter()
        action()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - begin)
    return median(taken)


def _most(plan: Plan) -> int:
    """As many trials as memory holds, by what one of them keeps for its backward pass and its optimizer."""
    assert isinstance(plan.supply, RowSupply)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    rows = plan.data.rows("train")  # type: ignore[union-attr]
    device = plan.family.device
    batch = tuple(
        one[: plan.data.batch_size].to(device, plan.supply.dtype if one.is_floating_point() else None) for one in rows
    )
    places = torch.arange(len(batch[0]), dtype=torch.int32, device=device)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        plan.family.objective(batch, Context(0, 0, 0.0, places, True, measure=False))
    weights = sum(one.numel() * one.element_size() for one in plan.family.parameters())
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return max(1, int(free * SHARE_OF_MEMORY / (sum(kept.values()) + 6 * weights)))
