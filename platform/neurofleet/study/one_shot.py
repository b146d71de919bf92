"""One-shot architecture search: candidates share the weights of one network, and those best with them train alone.

The shared network has the largest of all layers; each tensor of a candidate is the leading part of one of its tensors,
or the middle of a kernel.  So a candidate is the network that its values say, of its own size and by its family's own
code: normalisation, dropout and depth need no masks, and small candidates are cheap.

A step takes the mean loss of the largest network, the smallest and two that are drawn (the sandwich of Yu and Huang
2019, "Universally slimmable networks and improved training techniques").  That shared weights rank networks well enough
to choose among them is due to Bender et al. 2018 ("Understanding and simplifying one-shot architecture search"); that
uniform draws do, to Guo et al. 2020 ("Single path one-shot").
"""

from __future__ import annotations

import csv
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neurofleet import experiment as experiments
from neurofleet.errors import ConfigError, RunError, UserError
from neurofleet.experiment import Composer, Experiment
from neurofleet.experiment.check import ONE_SHOT
from neurofleet.experiment.space import Space, bare
from neurofleet.families._base import Family, Objective
from neurofleet.run import plan, threads
from neurofleet.steps import Batch, Context
from neurofleet.study import storage
from neurofleet.study.cohort import Row, Trial
from neurofleet.study.display import Display
from neurofleet.study.fused import Objectives
from neurofleet.study.samplers import OneShot, sampler_of
from neurofleet.study.single import Single
from neurofleet.study.waves import RANKED
from neurofleet.tracking import Tracker

SEARCHED = {
    "neurofleet.families.mlp.MLP": ("family.hidden", "family.activation"),
    "neurofleet.families.cnn.CNN": ("family.channels", "family.hidden", "family.kernel_size", "family.activation"),
}
NUM_DRAWN = 2
SIZE = "num_parameters"
OTHERS = "take search=evolution, tpe or random"


def check(composer: Composer) -> None:
    """Raise ConfigError where one-shot search is asked for and the candidates cannot share weights."""
    if composer.search["sampler"]["_target_"] != ONE_SHOT:
        return
    sampler_of(composer.search, 0)  # its settings
    first = composer.experiment(_point(composer.space, 0))
    keys = SEARCHED.get(first["family"]["_target_"])
    if keys is None:
        raise ConfigError(f"one-shot search needs family=mlp or cnn, got {experiments.family_name(first)}; {OTHERS}")
    for key, dimension in composer.space.items():
        if bare(key) not in keys:
            raise ConfigError(
                f"one-shot search has weights shared by values of {', '.join(keys)}, got several of {bare(key)}; "
                f"give one, or {OTHERS}"
            )
        lengths = {len(one) for one in dimension.choices if isinstance(one, list)}
        if 0 in lengths:
            raise ConfigError(f"one-shot search needs a layer at least, got {key}=[]; leave it out, or {OTHERS}")
        if bare(key) == "family.channels" and len(lengths) > 1:
            raise ConfigError(
                "one-shot search needs as many stages in all candidates, since each halves the image, got "
                f"family.channels of {', '.join(map(str, sorted(lengths)))} stages; {OTHERS}"
            )
    metrics = composer.search["metric"]
    for metric in [metrics] if isinstance(metrics, str) else metrics:
        if not metric.startswith("val/") and metric != SIZE:
            raise ConfigError(f"one-shot search ranks by scores of validation and {SIZE}, got {metric!r}; {OTHERS}")


def rank(
    composer: Composer,
    objectives: Mapping[str, int],
    opened: storage.Opened,
    tracker: Tracker,
    display: Display,
    is_time_up: Callable[[], bool],
) -> None:
    """Train the shared network and write down the order in which candidates are to train alone, once for a study.

    objectives: the metrics, each with its sign

    Raises:
        ConfigError: no candidate can be built.
        RunError: the shared network diverged.
    """
    settings = opened.study.sampler
    if not isinstance(settings, OneShot) or RANKED in opened.study.user_attrs or not composer.search["num_trials"]:
        return
    begin = time.monotonic()
    shared = _Shared(composer, frozenset(objectives) - {SIZE}, settings)
    display.say(f"{len(shared.points)} candidates share a network of {shared.trial.plan.num_parameters} parameters")
    with threads(shared.trial.plan.config.num_threads):
        while not shared.finished:
            if is_time_up():
                display.say("the time is up before the shared network is trained; the study begins with it again")
                return
            shared.round(lambda _: display.tick(0))
        if shared.trial.failure is not None:
            raise RunError(f"the network that candidates share has to train: {shared.trial.failure}")
        scores = [shared.scores(point) for point in shared.points]
    order = _order(scores, objectives)
    ranked = [{"params": storage.params(composer.space, shared.points[one]), "shared": scores[one]} for one in order]
    opened.describe({RANKED: ranked})
    tracker.log_artifact(_table(ranked, opened.folder / "candidates.csv"))
    display.say(f"candidates are ranked after {time.monotonic() - begin:.1f} s; the best train alone")


class _Shared(Single):
    """The shared network, a trial that learns what its parts need."""

    def __init__(self, composer: Composer, wanted: frozenset[str], settings: OneShot) -> None:
        self._composer = composer
        self.points = _candidates(composer.space, settings)
        joint = {key: joined([point[key] for point in self.points]) for key in composer.space}
        experiment = self._experiment(joint)
        if settings.max_epochs is not None:
            experiment["trainer"]["max_epochs"] = settings.max_epochs
        self.trial = Trial(0, plan(experiment))
        self._largest = self.trial.plan.family.objective
        self._parts = [made.to("meta") for point in self.points if (made := self._network(point)) is not None]
        if not self._parts:
            self._network(self.points[0], forgiving=False)
        self._parts.sort(key=lambda family: sum(one.numel() for one in family.parameters()))
        super().__init__(self.trial, wanted)
        self.trial.plan.family.objective = self._objective  # type: ignore[method-assign]  # of this one network

    def _experiment(self, point: Mapping[str, Any]) -> Experiment:
        made = self._composer.experiment(point)
        return {**made, "trainer": dict(made["trainer"])}

    def _network(self, point: Mapping[str, Any], *, forgiving: bool = True) -> Family | None:
        """A candidate with weights of its own; None if it cannot be built, which its trial will say."""
        try:
            return plan(self._experiment(point), self.trial.plan.data).family
        except UserError:
            if forgiving:
                return None
            raise

    def _objective(self, batch: Batch, context: Context) -> Objective:
        draws = random.Random(f"{context.seed} {context.step}")
        drawn = draws.sample(self._parts, min(NUM_DRAWN, len(self._parts)))
        largest = self._largest(batch, context)
        losses = [largest.loss]
        for family in (self._parts[0], *drawn):
            state = {f"family.{name}": one for name, one in parts(self.trial.plan.family, family)}
            losses.append(torch.func.functional_call(Objectives(family), state, (batch, context)).loss)
        return Objective(torch.stack(losses).mean(), largest.metrics)

    @torch.no_grad()
    def scores(self, point: Mapping[str, Any]) -> Row:
        """What a candidate's validation says with the shared weights, and its size; nothing if it cannot be built."""
        family = self._network(point)
        if family is None:
            return {}
        family.to(self.device)
        for name, one in parts(self.trial.plan.family, family):
            family.get_parameter(name).copy_(one)
        return self._measured(family) | {SIZE: float(sum(one.numel() for one in family.parameters()))}


def parts(shared: Family, family: Family) -> Iterator[tuple[str, Tensor]]:
    """A candidate's tensors, by name, as views of the shared network's."""
    for name, own in family.named_parameters():
        tensor: Tensor = shared.get_parameter(name)
        for dim, (whole, size) in enumerate(zip(tensor.shape, own.shape, strict=True)):
            tensor = tensor.narrow(dim, (whole - size) // 2 if dim > 1 else 0, size)  # of a kernel its middle
        yield name, tensor


def joined(values: Sequence[Any]) -> Any:
    """A value whose network holds those of all the values; a layer that a list lacks passes its last one on."""
    if isinstance(values[0], list):
        return [max(one[min(place, len(one) - 1)] for one in values) for place in range(max(map(len, values)))]
    return values[0] if isinstance(values[0], str) else max(values)


def _candidates(space: Space, settings: OneShot) -> list[dict[str, Any]]:
    size = experiments.grid_size(space) or 0
    places: Sequence[int] = range(size)
    if size > settings.num_candidates:
        places = sorted(random.Random(settings.seed).sample(places, settings.num_candidates))
    return [_point(space, place) for place in places]


def _point(space: Space, place: int) -> dict[str, Any]:
    """One of the combinations, the last key's values one after another first."""
    values = {}
    for key, dimension in reversed(space.items()):
        column = dimension.grid() or ()
        place, index = divmod(place, len(column))
        values[key] = column[index]
    return {key: values[key] for key in space}


def _order(scores: Sequence[Row], objectives: Mapping[str, int]) -> list[int]:
    """Places from the best on; of several objectives those first that few others beat in all."""
    rows = [[score.get(metric, math.nan) * sign for metric, sign in objectives.items()] for score in scores]
    rows = [row if all(map(math.isfinite, row)) else [math.inf] * len(row) for row in rows]

    def num_better(row: list[float]) -> int:
        return sum(other != row and all(map(float.__le__, other, row)) for other in rows)

    return sorted(range(len(rows)), key=lambda place: (num_better(rows[place]), rows[place]))


def _table(ranked: Sequence[Mapping[str, Any]], path: Path) -> Path:
    names = list(dict.fromkeys(name for one in ranked for name in one["shared"]))
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["rank", *ranked[0]["params"], *names])
        for place, one in enumerate(ranked):
            table.writerow([place, *one["params"].values(), *(one["shared"].get(name, "") for name in names)])
    return path
