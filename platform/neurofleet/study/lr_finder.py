"""Learning-rate range test (Smith 2017, "Cyclical learning rates for training neural networks").

The rate grows by equal ratios, a step at a time, while the loss is watched: too small a rate does not move it, a good
one lets it fall, too large a one throws it up.  As Lightning's `lr_find` the test ends early by a running average of
the loss (factor 0.98, bias-corrected), and suggests where the loss falls most steeply.

It differs in three ways.  Several seeds are tested and their losses averaged, since one test's steepest point is as
much a matter of its batches.  The curve that is judged is smoothed to both sides: a running average lags, by half a
decade or more, and would suggest too large a rate.  And it is judged over the logarithm of the rate, up to its lowest
point: what falls after an explosion has not learnt.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import ClassVar

import numpy as np

from neurofleet.errors import ConfigError, DivergedError
from neurofleet.experiment import Experiment
from neurofleet.families._agent import Agent
from neurofleet.families.dbn import DBN
from neurofleet.families.gan import GAN
from neurofleet.run import Plan
from neurofleet.schedule import Schedule
from neurofleet.study.finder import Bench, Finder, Finding, Measured, Points, say
from neurofleet.study.finder_figures import learning_rates

AVERAGE = 0.98  # of the running average that ends a test
WIDTH = 0.05  # of the test, the standard deviation of the smoothing to both sides
FEWEST_STEPS = 10
ROUNDING = 1e-6  # of a loss in float32
# Of a test, as its family sees it: progress stays at 0. A map whose radius shrinks would lower its loss at any rate.
STANDSTILL = 10**9
CERTAIN = 5.0  # standard errors that a fall has to have to be one


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearningRateFinder(Finder):
    """min_lr, max_lr: of the test, which takes num_steps from one to the other
    early_stop_threshold: the test ends where the average loss is so many times the best
    num_seeds: tests, the first with the experiment's own seed
    """

    name: ClassVar[str] = "lr"

    min_lr: float
    max_lr: float
    num_steps: int
    early_stop_threshold: float
    num_seeds: int

    def __post_init__(self) -> None:
        if not 0 < self.min_lr < self.max_lr < math.inf:
            raise ConfigError(
                f"finder=lr needs 0 < finder.min_lr < finder.max_lr, got min_lr={self.min_lr}, max_lr={self.max_lr}"
            )
        for key, least in (("num_steps", 2 * FEWEST_STEPS), ("num_seeds", 1)):
            if getattr(self, key) < least:
                raise ConfigError(f"finder.{key} needs at least {least}, got {getattr(self, key)}")
        if not self.early_stop_threshold > 1:
            raise ConfigError(f"finder.early_stop_threshold needs more than 1, got {self.early_stop_threshold}")

    def check(self, planned: Plan) -> None:
        family = planned.family
        reason = None
        if isinstance(family, Agent):
            reason = "an agent's loss is on rows of its own making, and says nothing of its returns"
        elif isinstance(family, GAN):
            reason = "the loss of a game between two networks does not fall as they learn"
        elif isinstance(family, DBN) and family.pretraining > 0:
            reason = "the loss of pretraining is no measure of it; family.pretraining=0 finds the rate of fine-tuning"
        if reason is not None:
            raise ConfigError(
                f"finder=lr needs a loss that falls as a network learns, got {type(family).__name__}: {reason}"
            )
        if "lr" not in planned.experiment["optimizer"]:
            raise ConfigError("finder=lr needs an optimizer with a setting lr; take one of configs/optimizer")

    def measure(self, experiment: Experiment) -> Measured:
        optimizer = experiment["optimizer"] | {"lr": self.min_lr}
        losses, steps_per_epoch = [], 1
        for index in range(self.num_seeds):
            seed = (experiment["seed"] + index) % 2**31
            bench = Bench(experiment | {"seed": seed, "optimizer": optimizer})
            losses.append(self._test(bench))
            steps_per_epoch = bench.loader.steps_per_epoch
            last = self.rates()[max(len(losses[-1]) - 1, 0)]
            say(f"seed {seed}: {len(losses[-1])} steps, to a learning rate of {last:.2g}")
        return {"lr": self.rates().tolist(), "losses": losses, "steps_per_epoch": steps_per_epoch}

    def rates(self) -> np.ndarray:
        """[num_steps]"""
        return np.geomspace(self.min_lr, self.max_lr, self.num_steps)

    def _test(self, bench: Bench) -> list[float]:
        """The loss of each step until one is not finite or the average is too high."""
        growth = Growth(self.max_lr / self.min_lr, self.num_steps)
        bench.family.recipe = dataclasses.replace(bench.family.recipe, schedule=growth, num_steps=STANDSTILL)
        losses: list[float] = []
        total, best = 0.0, math.inf
        for step in range(self.num_steps):
            try:
                [loss] = bench.take(bench.loader.chunk(step, step + 1)).losses
            except DivergedError:
                break
            losses.append(loss)
            total = AVERAGE * total + (1 - AVERAGE) * loss
            average = total / (1 - AVERAGE ** (step + 1))
            best = min(best, average)
            if average > best + (self.early_stop_threshold - 1) * abs(best):  # losses may be negative
                break
        return losses

    def conclude(self, measured: Measured) -> Finding:
        shortest = min(map(len, measured["losses"]))
        if shortest < FEWEST_STEPS:
            return Finding(
                None,
                f"no suggestion: the loss exploded within {shortest} steps, below a learning rate of "
                f"{measured['lr'][shortest]:.2g}; lower finder.min_lr, or set trainer.gradient_clip_val",
            )
        curve = Curve.of(measured)
        reach = f"from {measured['lr'][0]:.2g} to {measured['lr'][len(curve.smooth) - 1]:.2g}"
        if curve.steepest is None:
            return Finding(
                None,
                f"no suggestion: at no learning rate {reach} the loss fell by more than batches differ; take other "
                "finder.min_lr and finder.max_lr, or more finder.num_steps",
            )
        lines = [
            f"the loss falls most steeply at a learning rate of {curve.steepest:.2g}, and was lowest at "
            f"{curve.lowest:.2g} ({reach}, {len(measured['losses'])} seeds)"
        ]
        if curve.lowest == measured["lr"][-1]:
            lines.append("it was still falling at the end; a larger finder.max_lr shows where it stops")
        return Finding(f"optimizer.lr={float(f'{curve.steepest:.2g}')}", "\n".join(lines))

    def points(self, measured: Measured) -> Points:
        shortest = min(map(len, measured["losses"]))
        means = np.mean([losses[:shortest] for losses in measured["losses"]], axis=0).tolist()
        pairs = zip(measured["lr"], means, strict=False)
        return [
            (step, step / measured["steps_per_epoch"], {"finder/lr": lr, "finder/loss": mean})
            for step, (lr, mean) in enumerate(pairs)
        ]

    def draw(self, measured: Measured, title: str, path: Path) -> None:
        curve = Curve.of(measured)
        title = f"{title}: learning-rate range test"
        learning_rates(measured["lr"], measured["losses"], curve.smooth, curve.steepest, title, path)


@dataclasses.dataclass(frozen=True)
class Curve:
    """The mean of several tests.

    smooth:   losses [steps] as far as all of them came
    steepest: the learning rate where they fall fastest, or None if they do not
    lowest:   the one where they are
    """

    smooth: np.ndarray
    steepest: float | None
    lowest: float

    @classmethod
    def of(cls, measured: Measured) -> Curve:
        shortest = min(map(len, measured["losses"]))
        losses = np.mean([one[:shortest] for one in measured["losses"]], axis=0)
        if shortest < FEWEST_STEPS:
            return cls(losses, None, measured["lr"][0])
        width = WIDTH * len(measured["lr"])
        # Of neighbours' differences the median, which an explosion leaves alone; of a normal variable it is 0.954 std.
        noise = float(np.median(np.abs(np.diff(losses)))) / 0.954
        start = float(losses[:FEWEST_STEPS].mean())
        smooth = smoothed(np.minimum(losses, start + 3 * noise), width)
        lowest = int(smooth.argmin())
        error = noise / math.sqrt(2 * math.sqrt(math.pi) * width)
        steepest = None
        if start - smooth[lowest] > max(CERTAIN * error, ROUNDING * abs(start)):
            steepest = measured["lr"][int(np.gradient(smooth)[: lowest + 1].argmin())]
        return cls(smooth, steepest, measured["lr"][lowest])


def smoothed(values: np.ndarray, width: float) -> np.ndarray:
    """Weighted means of values [n] around each, by a normal curve `width` wide; at the ends of those that are there."""
    steps = np.arange(len(values))
    weights = np.exp(-0.5 * ((steps[:, None] - steps) / width) ** 2)
    return weights @ values / weights.sum(axis=1)


class Growth(Schedule):
    """From 1 to `ratio` by equal ratios, within the first `num_steps` of STANDSTILL steps."""

    def __init__(self, ratio: float, num_steps: int) -> None:
        super().__init__(warmup=0.0)
        self.ratio, self.share = ratio, STANDSTILL / (num_steps - 1)

    def curve(self, progress: float) -> float:
        return float(self.ratio ** (progress * self.share))
