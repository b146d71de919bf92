"""Learning-rate schedules: pure functions of training progress.

A schedule maps progress in [0, 1] (steps done / steps in all) to a factor on the optimizer's learning rate.  It has no
state, so a resumed run and a stacked trial follow the very same curve.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from neurofleet.errors import ConfigError


class Schedule(ABC):
    """Linear warm-up over the first `warmup` of training, then the curve of the subclass over what remains."""

    def __init__(self, *, warmup: float) -> None:
        if not 0 <= warmup < 1:
            raise ConfigError(f"schedule.warmup is a fraction of training and needs 0 <= warmup < 1, got {warmup}")
        self.warmup = warmup

    def __call__(self, progress: float) -> float:
        if progress < self.warmup:
            return max(progress / self.warmup, 1e-3)
        return self.curve((progress - self.warmup) / (1 - self.warmup))

    @abstractmethod
    def curve(self, progress: float) -> float:
        """The factor at `progress` in [0, 1] after the warm-up."""


class Constant(Schedule):
    def curve(self, progress: float) -> float:
        return 1.0


class Linear(Schedule):
    """From 1 to `final` in a straight line."""

    def __init__(self, *, warmup: float, final: float) -> None:
        super().__init__(warmup=warmup)
        self.final = _not_negative("final", final)

    def curve(self, progress: float) -> float:
        return 1 + (self.final - 1) * progress


class Cosine(Schedule):
    """From 1 to `final` along half a cosine (Loshchilov and Hutter 2017, SGDR, without restarts)."""

    def __init__(self, *, warmup: float, final: float) -> None:
        super().__init__(warmup=warmup)
        self.final = _not_negative("final", final)

    def curve(self, progress: float) -> float:
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


class Exponential(Schedule):
    """From 1 to `final` by equal ratios."""

    def __init__(self, *, warmup: float, final: float) -> None:
        if not 0 < final <= 1:
            raise ConfigError(f"schedule.final of an exponential schedule needs 0 < final <= 1, got {final}")
        super().__init__(warmup=warmup)
        self.final = final

    def curve(self, progress: float) -> float:
        return float(self.final**progress)


class Step(Schedule):
    """Multiplied by `factor` at each of `milestones`, which are fractions of training."""

    def __init__(self, *, warmup: float, milestones: list[float], factor: float) -> None:
        if not all(0 < milestone < 1 for milestone in milestones):
            raise ConfigError(f"schedule.milestones are fractions of training, between 0 and 1, got {list(milestones)}")
        super().__init__(warmup=warmup)
        self.milestones = milestones
        self.factor = _not_negative("factor", factor)

    def curve(self, progress: float) -> float:
        return float(self.factor ** sum(progress >= milestone for milestone in self.milestones))


def _not_negative(name: str, value: float) -> float:
    """A negative learning rate would climb the loss."""
    if not 0 <= value < math.inf:
        raise ConfigError(f"schedule.{name} needs a number of at least 0, got {value}")
    return value
