"""Schedulers: which trials are given up before their end, by what their validations said so far.

Each is a rule on numbers: the scores of all trials of the study, of this call and earlier ones, by the epoch at
which they were measured; lower is better.  So a study that goes on after a crash judges as if nothing had happened.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, ClassVar

from neurofleet.errors import ConfigError
from neurofleet.experiment import Dimension, Space

Scores = Mapping[int, Mapping[float, float]]  # trial -> {epoch: score, lower is better}


class Scheduler(ABC):
    """Abstract: called when all trials that train have been validated at an epoch.

    compares: whether trials have to be trained in step, so that it can
    """

    compares: ClassVar[bool] = True

    @abstractmethod
    def losers(self, scores: Scores, training: set[int], epoch: float, max_epochs: int) -> set[int]:
        """Those of `training` that are to stop."""

    def heirs(self, scores: Scores, training: set[int], epoch: float, max_epochs: int) -> dict[int, int]:
        """Those of `training` that are to go on from the weights of another, with other settings: heir -> donor."""
        return {}


class Never(Scheduler):
    """Every trial trains to its end."""

    compares = False

    def losers(self, scores: Scores, training: set[int], epoch: float, max_epochs: int) -> set[int]:
        return set()


class SuccessiveHalving(Scheduler):
    """At rungs of `grace_epochs`, times `reduction_factor`, and so on, one in `reduction_factor` of all that came so
    far goes on (Li et al. 2020, "A system for massively parallel hyperparameter tuning"); the rungs see trials of
    earlier stacks too, so a stack does not wait for another."""

    def __init__(self, *, grace_epochs: int, reduction_factor: int) -> None:
        _need_whole("grace_epochs", grace_epochs, at_least=1)
        _need_whole("reduction_factor", reduction_factor, at_least=2)
        self.grace_epochs, self.reduction_factor = grace_epochs, reduction_factor

    def losers(self, scores: Scores, training: set[int], epoch: float, max_epochs: int) -> set[int]:
        return self._losers(scores, training, epoch, max_epochs, self.grace_epochs)

    def _losers(self, scores: Scores, training: set[int], epoch: float, max_epochs: int, first_rung: int) -> set[int]:
        if epoch < first_rung or epoch >= max_epochs:
            return set()
        rung = first_rung * self.reduction_factor ** int(math.log(epoch / first_rung, self.reduction_factor) + 1e-9)
        due = {trial for trial in training if min((e for e in scores[trial] if e >= rung), default=None) == epoch}
        if not due:  # at most epochs: then no other curve is looked at
            return set()
        arrived = {
            trial: curve[min(reached)]
            for trial, curve in scores.items()
            if (reached := [one for one in curve if one >= rung])
        }
        best = sorted(arrived, key=lambda trial: (arrived[trial], trial))
        return due - set(best[: max(1, math.ceil(len(best) / self.reduction_factor))])


class Hyperband(SuccessiveHalving):
    """Successive halving in brackets that begin to judge early or late (Li et al. 2018).  A trial's number decides its
    bracket, in the proportions of the paper."""

    def losers(self, scores: Scores, training: set[int], epoch: float, max_epochs: int) -> set[int]:
        brackets = self._brackets(max_epochs)
        losers: set[int] = set()
        for index in range(len(set(brackets))):
            members = {trial for trial in scores if brackets[trial % len(brackets)] == index}
            curves = {trial: scores[trial] for trial in members}
            first_rung = self.grace_epochs * self.reduction_factor**index
            losers |= self._losers(curves, training & members, epoch, max_epochs, first_rung)
        return losers

    def _brackets(self, max_epochs: int) -> list[int]:
        """The bracket of each of so many consecutive trials."""
        last = max(0, int(math.log(max(max_epochs / self.grace_epochs, 1), self.reduction_factor) + 1e-9))
        sizes = [
            math.ceil((last + 1) / (last - index + 1) * self.reduction_factor ** (last - index))
            for index in range(last + 1)
        ]
        return [index for index, size in enumerate(sizes) for _ in range(size)]


class Median(Scheduler):
    """Stop a trial whose best score is worse than the median of the others' means up to the same epoch (Golovin et al.
    2017, "Google Vizier"), once `min_trials` others have come as far."""

    def __init__(self, *, grace_epochs: int, min_trials: int) -> None:
        _need_whole("grace_epochs", grace_epochs, at_least=1)
        _need_whole("min_trials", min_trials, at_least=1)
        self.grace_epochs, self.min_trials = grace_epochs, min_trials
        self._means: dict[float, dict[int, float]] = {}  # by epoch and trial

    def losers(self, scores: Scores, training: set[int], epoch: float, max_epochs: int) -> set[int]:
        if epoch < self.grace_epochs or epoch >= max_epochs:
            return set()
        known = self._means.setdefault(epoch, {})  # a mean up to an epoch that is over changes no more
        for trial in scores.keys() - known.keys():
            curve = scores[trial]
            if curve and max(curve) >= epoch:
                known[trial] = fmean(value for at, value in curve.items() if at <= epoch)
        ranked = sorted(known.values())
        losers = set()
        for trial in training & known.keys():
            others = list(ranked)
            others.pop(bisect_left(others, known[trial]))
            if len(others) >= self.min_trials and min(scores[trial].values()) > _middle(others):
                losers.add(trial)
        return losers


class PopulationBased(Scheduler):
    """Every `every_epochs` the worst `quantile` of the population go on from weights and settings of the best, each
    number of which is multiplied by one of `factors` or drawn anew (Jaderberg et al. 2017, "Population based training
    of neural networks").  What decides the network's shape is inherited as it is."""

    def __init__(
        self, *, every_epochs: int, quantile: float, factors: Sequence[float], resample_probability: float
    ) -> None:
        _need_whole("every_epochs", every_epochs, at_least=1)
        if not 0 < quantile <= 0.5:
            raise ConfigError(f"scheduler.quantile needs a number above 0 and at most 0.5, got {quantile!r}")
        if not factors or not all(factor > 0 for factor in factors):
            raise ConfigError(f"scheduler.factors needs numbers above 0, got {factors!r}")
        if not 0 <= resample_probability <= 1:
            raise ConfigError(f"scheduler.resample_probability needs 0 to 1, got {resample_probability!r}")
        self.every_epochs, self.quantile = every_epochs, quantile
        self.factors, self.resample_probability = list(factors), resample_probability

    def losers(self, scores: Scores, training: set[int], epoch: float, max_epochs: int) -> set[int]:
        return set()

    def heirs(self, scores: Scores, training: set[int], epoch: float, max_epochs: int) -> dict[int, int]:
        if epoch % self.every_epochs or epoch >= max_epochs or len(training) < 2:
            return {}
        ranked = sorted(training, key=lambda trial: (scores[trial][epoch], trial))
        size = max(1, int(len(ranked) * self.quantile))
        draws = random.Random(f"{epoch} {ranked}")
        return {heir: draws.choice(ranked[:size]) for heir in ranked[-size:]}

    def mutated(self, space: Space, values: Mapping[str, Any], seed: str) -> dict[str, Any]:
        """A donor's values as its heir takes them: numbers that shape no network are changed."""
        draws = random.Random(seed)
        mutated = dict(values)
        for key, dimension in space.items():
            if not moves(key, dimension):
                continue
            anew, factor = draws.random() < self.resample_probability, draws.choice(self.factors)
            if anew:
                mutated[key] = _drawn(dimension, draws)
            elif dimension.low is not None and dimension.high is not None:
                moved = min(max(values[key] * factor, dimension.low), dimension.high)
                moved = dimension.nearest(moved)
                mutated[key] = int(moved) if dimension.kind == "int" else float(moved)
        return mutated


def _middle(ranked: Sequence[float]) -> float:
    """The median of numbers in order."""
    return (ranked[(len(ranked) - 1) // 2] + ranked[len(ranked) // 2]) / 2


def moves(key: str, dimension: Dimension) -> bool:
    """Whether a value may change while a network trains: numbers of the optimizer, the schedule, and rates."""
    section, dot, _ = key.partition(".")
    number = dimension.kind != "categorical"
    return (
        bool(dot)
        and number
        and (section in ("optimizer", "schedule") or (section == "family" and dimension.kind == "float"))
    )


def _drawn(dimension: Dimension, draws: random.Random) -> Any:
    values = dimension.grid()
    if values is not None:
        return draws.choice(values)
    assert dimension.low is not None
    assert dimension.high is not None
    if dimension.log:
        return math.exp(draws.uniform(math.log(dimension.low), math.log(dimension.high)))
    return draws.uniform(dimension.low, dimension.high)


def _need_whole(name: str, value: object, *, at_least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ConfigError(f"scheduler.{name} needs a whole number of at least {at_least}, got {value!r}")
