"""Which trials train as one stack, and whether that pays.

Trials fit into a stack if their experiments differ only in the seed, the schedule, the settings of one optimizer, the
gradient's bound, and floats of the family.  Whether torch can run the objective of such a family under `vmap`, and
whether floats that differ reach every trial, is not taken on trust: before a stack trains, losses and gradients of its
first batch are computed both ways and compared, as of its first step and of its last.
"""

from __future__ import annotations

import dataclasses
import json
import time
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from neurofleet.errors import UserError
from neurofleet.run import Plan
from neurofleet.steps import Batch, Context
from neurofleet.study.cohort import Cohort, Trial
from neurofleet.study.fused import BEFORE_TAPE, Stack
from neurofleet.study.optimizers import KNOWN, can_stack
from neurofleet.study.settings import NotStackableError
from neurofleet.study.single import Single
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
            if 1 < len(groups) < len(loose):
                say(f"{len(loose)} trials in {len(groups)} groups by their settings of the family: {error}")
            for tight in groups if len(groups) < len(loose) else [loose]:
                made += _stacked_or_not(tight, wanted, fuse, max_stack, say)
    return made


def _stacked_or_not(
    trials: Sequence[Trial], wanted: frozenset[str], fuse: str, max_stack: int, say: Say
) -> list[Cohort]:
    try:
        return _stacked(trials, wanted, fuse, max_stack, say)
    except NotStackableError as error:
        say(f"{len(trials)} trials one after another: {error}")
        return [Single(trial, wanted) for trial in trials]


def _stacked(trials: Sequence[Trial], wanted: frozenset[str], fuse: str, max_stack: int, say: Say) -> list[Cohort]:
    if len(trials) == 1:
        return [Single(trials[0], wanted)]
    _need_stackable(trials[0].plan)
    size = min(max_stack, _most(trials[0], Single(trials[0], wanted)))
    num_stacks = -(-len(trials) // size)
    made: list[Cohort] = []
    for index in range(num_stacks):
        part = trials[len(trials) * index // num_stacks : len(trials) * (index + 1) // num_stacks]
        stack = Stack(part, wanted, compiled=fuse == "compile")
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
    if len(plan.family.make_optimizer().param_groups) > 1:
        raise NotStackableError("their layers have learning rates of their own")


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

    All of them are compared if settings of their families differ, else the first.
    """
    alike = len({signature(trial.plan, exact=True) for trial in stack.trials}) == 1
    trials = stack.trials[:1] if alike else stack.trials
    batch, begin = _first_batch(trials[0].plan, stack)
    last = stack.loader.num_steps - 1
    end = dataclasses.replace(begin, step=last, progress=last / stack.loader.num_steps)
    for context in (begin, end) if last else (begin,):  # some rules are other ones towards the end
        _compare(stack, trials, batch, context)


def _compare(stack: Stack, trials: Sequence[Trial], batch: Batch, context: Context) -> None:
    try:
        losses, gradients = stack.probe(batch, context)
    except UserError:
        raise
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise NotStackableError(f"torch cannot run their objective in a stack ({reason})") from error
    for place, trial in enumerate(trials):
        own = dataclasses.replace(context, seed=trial.plan.experiment["seed"])
        loss, alone = _alone(trial.plan, batch, own)
        ours = [None if one is None else one[place] for one in gradients]
        if not all(map(_close, [losses[place], *ours], [loss, *alone])):
            raise NotStackableError("a setting in which they differ does not reach every trial of a stack")


def _close(ours: Tensor | None, alone: Tensor | None) -> bool:
    if ours is None or alone is None:
        return ours is alone
    if not bool(torch.isfinite(alone).all()):
        return True  # it diverges either way
    largest = max(float(alone.abs().max()), 1e-6)
    return float((ours - alone).abs().max()) <= TOLERANCES[alone.dtype] * largest


def _gain(stack: Stack) -> float:
    """How many times as fast a step of the stack is as its trials' steps one after another."""
    plan = stack.trials[0].plan
    batch, context = _first_batch(plan, stack)
    if stack.loader.num_steps > 5 * BEFORE_TAPE:
        for _ in range(BEFORE_TAPE + 2):  # as most of its steps will be: recorded, and proven
            stack.gradients(batch, context)
    together = _seconds(lambda: stack.gradients(batch, context))
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


class _Made(TorchDispatchMode):
    """Counts the bytes of all that torch makes while it lasts, which bounds what is kept for a backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = function(*args, **(kwargs or {}))
        for one in results if isinstance(results, tuple | list) else (results,):
            if isinstance(one, Tensor):
                storage = one.untyped_storage()
                self.sizes[storage.data_ptr()] = storage.nbytes()
        return results


def _most(trial: Trial, cohort: Cohort) -> int:
    """As many trials as memory holds, by what one of them makes in a step and keeps for its optimizer."""
    family = trial.plan.family
    batch, context = _first_batch(trial.plan, cohort)
    with _Made() as made:
        loss = family.objective(batch, context).loss
    del loss
    weights = sum(one.numel() * one.element_size() for one in family.parameters())
    device = family.device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return max(1, int(free * SHARE_OF_MEMORY / (sum(made.sizes.values()) + 6 * weights)))
