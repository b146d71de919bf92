"""Cohort: trials that advance together, one round (the epochs between two validations) after another.

A cohort keeps of each trial what `neurofleet.watch` keeps of a run: its history, its best weights where training may
early, its verdict.  `single.Single` is a cohort of one trial and takes the very steps of a run, `fused.Stack` one of
many.  Neither needs Lightning's Trainer, Ray, Optuna or MLflow.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import compress
from typing import Any

import torch
from pytorch_lightning.callbacks import EarlyStopping
from torch import Tensor

from neurofleet import workers
from neurofleet.families._base import Family
from neurofleet.run import Plan
from neurofleet.steps import Batch
from neurofleet.watch import is_best
from neurofleet.workers import Group

Row = dict[str, float]
Points = list[tuple[int, float, Row]]  # (step, epoch, {name: value}), as a Tracker takes them
Tick = Callable[[int], None]  # told how many steps of trials were taken; may raise to stop
ALONE = {"rank": 0, "world_size": 1}
DIVERGED = "lower optimizer.lr, set trainer.gradient_clip_val, or check the data for extreme values"


class Trial:
    """What is remembered of one trial.

    history: a row a validation, as in a run's history.json
    points:  all that was measured, in order
    verdict: the scores that count: the last ones, or those of the best weights where `restore_best` says so
    ended:   whether it has trained to its end; its family then holds the weights that count
    failure: why it could not go on, or None
    """

    def __init__(self, number: int, plan: Plan) -> None:
        self.number = number
        self.plan = plan
        self.history: list[Row] = []
        self.points: Points = []
        self.verdict: Row = {}
        self.best: dict[str, Tensor] = {}
        self.stops = False
        self.ended = False
        self.failure: str | None = None
        self._started = False
        self._stopper = self._new_stopper()

    def _new_stopper(self) -> EarlyStopping | None:
        if self.plan.config.early_stopping is None:
            return None
        settings = dict(self.plan.config.early_stopping)
        self._restores_best = settings.pop("restore_best")
        return EarlyStopping(**settings, verbose=False)

    def start(self, device: torch.device, rows: Batch) -> None:
        """Give the family its first weights, once, whatever cohort the trial ends up in."""
        if not self._started:
            self.plan.family.to(device).start(rows)
            self._started = True

    def take(self, plan: Plan) -> None:
        """Go on with another experiment; what was best by the one before counts no more."""
        self.plan, self.best = plan, {}
        self._stopper = self._new_stopper()

    @property
    def monitored(self) -> frozenset[str]:
        return frozenset() if self._stopper is None else frozenset({self._stopper.monitor})

    def judge(self, step: int, epoch: float, scores: Row) -> bool:
        """Take in what a round ended with; True if its weights are to be kept."""
        self.history.append({"step": step, "epoch": epoch, **scores})
        self.points.append((step, epoch, scores))
        if self._stopper is None:
            self.verdict = scores
            return False
        current = torch.tensor(scores[self._stopper.monitor], dtype=torch.float64)
        self.stops, _ = self._stopper._evaluate_stopping_criteria(current)
        improved = is_best(self._stopper)
        if improved or not self._restores_best:
            self.verdict = scores
        return improved and self._restores_best


@dataclasses.dataclass(frozen=True)
class Advance:
    """Steps that a cohort took: losses [steps][trials], and {step: {metric: [trials]}} of those that were measured."""

    losses: list[list[float]]
    measured: dict[int, dict[str, list[float]]]
    step_seconds: float


@dataclasses.dataclass(frozen=True)
class Learnt:
    """What a trial has learnt: its weights, and what its optimizer remembers of each parameter, flat."""

    weights: dict[str, Tensor]
    optimizer: list[dict[str, Tensor]]


class Cohort(ABC):
    """Abstract: trials that train in step, from the start of training on.

    wanted: the scores (`val/accuracy`) that every validation has to give; the others are measured when a trial ends
    """

    def __init__(self, trials: Sequence[Trial], wanted: frozenset[str]) -> None:
        self.trials = list(trials)
        plan = self.trials[0].plan
        self.device = torch.device(workers.device_type(plan.config, Group(0, 1)))
        self._is_mixed = plan.config.precision == "bf16-mixed"
        self.loader = plan.supply.loader(
            self.device,
            seed=plan.experiment["seed"],
            max_epochs=plan.config.max_epochs,
            epochs_per_round=plan.config.check_val_every_n_epoch,
            cut_every=None,
            **ALONE,
        )
        self.val: Any = plan.supply.held_out("val", self.device, **ALONE)
        for trial in self.trials:
            trial.start(self.device, self.loader.tensors)
        quick = {f"val/{name}" for name in plan.family.quick_scores}
        self._is_quick = wanted.union(*(trial.monitored for trial in trials)) <= quick

    @property
    def finished(self) -> bool:
        return not self.trials or self.loader.step >= self.loader.num_steps

    def round(self, tick: Tick) -> list[Trial]:
        """Train to the next validation and validate; returns the trials that this was the end of."""
        loader, sums, ended = self.loader, [0.0] * len(self.trials), list[Trial]()
        first = loader.step
        for done in self._train_if_it_fits():
            for losses in done.losses:  # one after another, as a run adds them
                sums = [total + loss for total, loss in zip(sums, losses, strict=True)]
            self._note(done)
            loader.step += len(done.losses)
            loader.pace(done.step_seconds)
            tick(len(done.losses) * len(self.trials))
            sums = [total for total, trial in zip(sums, self.trials, strict=True) if trial.failure is None]
            ended += self._dismiss(lambda trial: trial.failure is not None)
            if not self.trials:
                return ended
        self._validate([total / (loader.step - first) for total in sums])
        last = self.finished
        for place, trial in enumerate(self.trials):
            if trial.failure is None and (last or trial.stops):
                self._conclude(place)
        return ended + self._dismiss(lambda trial: trial.failure is not None or trial.stops or last)

    def _train_if_it_fits(self) -> Iterator[Advance]:
        """Where memory does not hold the trials, they fail; the study goes on."""
        try:
            yield from self._train()
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
                raise
            failure = f"memory does not hold {len(self.trials)} trials; lower search.max_stack or data.batch_size"
            for trial in self.trials:
                trial.failure = failure
            yield Advance([], {}, 1.0)

    def drop(self, numbers: set[int]) -> list[Trial]:
        """Let these trials go before their end."""
        return self._dismiss(lambda trial: trial.number in numbers)

    def place(self, number: int) -> int | None:
        """Where a trial stands, if it is here."""
        return next((place for place, trial in enumerate(self.trials) if trial.number == number), None)

    def inherit(self, place: int, state: Learnt, plan: Plan) -> None:
        """Let a trial go on from what another has learnt, with an experiment of its own."""
        plan.family.to(self.device).start(self.loader.tensors)
        plan.family.load_state_dict(state.weights)
        self.trials[place].take(plan)
        self._inherit(place, state)

    def _dismiss(self, goes: Callable[[Trial], bool]) -> list[Trial]:
        leaving = [goes(trial) for trial in self.trials]
        if any(leaving):
            staying = [place for place, leaves in enumerate(leaving) if not leaves]
            gone = list(compress(self.trials, leaving))
            self.trials = [self.trials[place] for place in staying]
            if staying:
                self._select(staying)
            return gone
        return []

    def _note(self, done: Advance) -> None:
        first, per_epoch = self.loader.step, self.loader.steps_per_epoch
        for place, trial in enumerate(self.trials):
            for step, metrics in done.measured.items():
                values = {f"train/{name}": column[place] for name, column in metrics.items()}
                trial.points.append((step, step / per_epoch, values))
            bad = [offset for offset, losses in enumerate(done.losses) if not math.isfinite(losses[place])]
            if bad and trial.failure is None:
                loss = done.losses[bad[0]][place]
                trial.failure = f"the loss must stay finite, got {loss} at step {first + bad[0]}; {DIVERGED}"

    def _validate(self, train_losses: list[float]) -> None:
        finite = self._finite()
        scores = self._quick_scores() if self._is_quick else [self._scores(place) for place in range(len(self.trials))]
        step, epoch = self.loader.step, self.loader.step / self.loader.steps_per_epoch
        of_loader = self.loader.scores()
        for place, trial in enumerate(self.trials):
            if not finite[place] or not math.isfinite(scores[place].get("val/loss", 0.0)):
                trial.failure = f"weights and validation loss must stay finite, and do not by step {step}; {DIVERGED}"
            elif trial.judge(step, epoch, {"train/loss_epoch": train_losses[place]} | scores[place] | of_loader):
                trial.best = self.weights(place)

    def _conclude(self, place: int) -> None:
        """The weights that count stand in the trial's family, and all of their scores in its verdict."""
        trial = self.trials[place]
        trial.ended = True
        family = self._family(place)
        if trial.best:
            family.load_state_dict(trial.best)
        if self._is_quick:
            trial.verdict = trial.verdict | self._measured(family)

    def _scores(self, place: int) -> Row:
        return self._measured(self._family(place))

    def _measured(self, family: Family) -> Row:
        family.eval()
        with self._precision():
            scores = {f"val/{name}": value for name, value in family.evaluate(self.val).items()}
        family.train()
        return scores

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self._is_mixed else contextlib.nullcontext()

    def weights(self, place: int) -> dict[str, Tensor]:
        """A copy of a trial's weights as they are."""
        return {name: tensor.detach().clone() for name, tensor in self._family(place).state_dict().items()}

    @abstractmethod
    def learnt(self, place: int) -> Learnt:
        """A copy of all that a trial has learnt."""

    @abstractmethod
    def _inherit(self, place: int, state: Learnt) -> None:
        """Take in the optimizer's state, and what the trial's new family holds."""

    @abstractmethod
    def _train(self) -> Iterator[Advance]:
        """Take the steps to the end of the round, chunk by chunk; `loader.step` moves on between them."""

    @abstractmethod
    def _quick_scores(self) -> list[Row]:
        """The `quick_scores` of each trial."""

    @abstractmethod
    def _finite(self) -> list[bool]:
        """Whether a trial's weights are finite."""

    @abstractmethod
    def _family(self, place: int) -> Family:
        """A trial's own family, with its weights as they are."""

    @abstractmethod
    def _select(self, places: list[int]) -> None:
        """Go on with these trials."""
