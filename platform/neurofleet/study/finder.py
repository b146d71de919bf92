"""Finders: `neurofleet tune finder=lr|batch_size` measures what one setting of an experiment should be.

A finder takes training steps of the experiment as a run would, in this process or in every worker of its launcher, and
forgets the weights.  What it measured, its figure and the override that it suggests are a run in MLflow.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shlex
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch.distributed as dist

from neurofleet import experiment as experiments
from neurofleet import launch, paths, workers
from neurofleet.errors import ConfigError
from neurofleet.experiment import Experiment
from neurofleet.experiment.check import SEARCH_SECTIONS
from neurofleet.experiment.compose import composed, from_config, plain
from neurofleet.experiment.space import parse
from neurofleet.launch.record import alone, ending, run_name
from neurofleet.launch.workers import fit
from neurofleet.loaders import ChunkLoader
from neurofleet.run import Plan, plan, threads
from neurofleet.steps import Batch, Chunk, ChunkResult, Context, run_chunk
from neurofleet.supply import RowSupply
from neurofleet.tracking import Tracker, code_tags
from neurofleet.workers import Group

Measured = dict[str, Any]  # plain JSON
Points = list[tuple[int, float, dict[str, float]]]  # (step, epoch, {name: value}), as a Tracker takes them
STUDY_KEYS = (*SEARCH_SECTIONS, "failed_only", "resume")


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a finder makes of what it measured.

    override: the setting to train with, or None where nothing speaks for one
    report:   in words and numbers, for the terminal
    """

    override: str | None
    report: str


class Finder(ABC):
    """Abstract: the settings of a finder are its fields."""

    name: ClassVar[str]

    @abstractmethod
    def check(self, planned: Plan) -> None:
        """Raise ConfigError unless this can be found for the experiment."""

    @abstractmethod
    def measure(self, experiment: Experiment) -> Measured:
        """Train a little; every worker of a group calls it and gets the same."""

    @abstractmethod
    def conclude(self, measured: Measured) -> Finding:
        """What follows."""

    @abstractmethod
    def points(self, measured: Measured) -> Points:
        """What was measured as metrics of a run."""

    @abstractmethod
    def draw(self, measured: Measured, title: str, path: Path) -> None:
        """What was measured, and where the suggestion lies, as a PNG file."""


class Bench:
    """An experiment on its device, alone or as one worker of a group, ready to take the steps of a run."""

    def __init__(self, experiment: Experiment) -> None:
        self.plan = plan(experiment)
        config, group = self.plan.config, Group.current()
        with workers.quiet_lightning():
            trainer = workers.trainer(workers.device_type(config, group), config.precision, None, group)
        self._precision = trainer.precision_plugin.train_step_context
        self.device = trainer.strategy.root_device
        self.family = self.plan.family.to(self.device)
        self.loader = self.with_batches(self.plan.data.batch_size)
        self.family.start_together(self.loader.tensors)
        if group.size > 1 and experiment["launcher"].get("strategy") == "fsdp":
            workers.shard(self.family, group)
        self.optimizer = self.family.make_optimizer()

    def with_batches(self, batch_size: int) -> ChunkLoader:
        """The rows of the experiment, so many in a global batch."""
        supply, group = self.plan.supply, Group.current()
        assert isinstance(supply, RowSupply)
        return ChunkLoader(
            supply.tensors("train", self.device),
            batch_size=batch_size,
            seed=self.plan.experiment["seed"],
            max_epochs=self.plan.config.max_epochs,
            epochs_per_round=1,
            cut_every=None,
            rank=group.rank,
            world_size=group.size,
        )

    def take(self, chunk: Chunk) -> ChunkResult:
        """Train on these steps.  Raises DivergedError, on every worker alike."""
        with self._precision():
            return run_chunk(self.family, chunk, self.optimizer)

    def try_out(self, batch: Batch, context: Context) -> None:
        """Both passes of a step, without learning and without the other workers."""
        with self._precision():
            self.family.objective(batch, context).loss.backward()
        self.family.zero_grad()


def asked(overrides: Sequence[str]) -> bool:
    """Whether what stands after `neurofleet tune` is for a finder."""
    return any(_root(one) == "finder" for one in overrides)


def _root(override: str) -> str:
    return re.split(r"[.=@]", override.lstrip("+~"))[0]


@dataclasses.dataclass(frozen=True)
class Order:
    """What to find: `experiment` is planned, and its finder's settings are sound."""

    finder: Finder
    section: dict[str, Any]  # of the config
    overrides: list[str]  # of the experiment
    planned: Plan


def order(overrides: Sequence[str]) -> Order:
    """What stands after `neurofleet tune`, checked before anything is written.

    Raises:
        UserError: a mistake in the overrides; an experiment whose setting cannot be found, and why; no room for its
            workers.
    """
    searching = [one for one in overrides if _root(one) in STUDY_KEYS]
    if searching:
        raise ConfigError(f"a finder searches nothing and keeps no study, got {', '.join(searching)}; leave it out")
    _, space = parse(overrides, {})
    if space:
        raise ConfigError(f"a finder measures one experiment, got several values for {', '.join(space)}; give one each")
    if not any(one.startswith("finder=") and one not in ("finder=", "finder=null") for one in overrides):
        raise ConfigError("settings of a finder need one, got none; take finder=lr or finder=batch_size")
    config = composed("tune", list(overrides))
    section = plain(config)["finder"]
    finder: Finder = experiments.build(section, "finder")
    planned = plan(from_config(config))
    finder.check(planned)
    launch.check(planned.experiment)
    launch.need_fixed(planned.experiment["launcher"], "a finder")
    own = [one for one in overrides if _root(one) != "finder"]
    return Order(finder, section, own, planned)


@dataclasses.dataclass(frozen=True)
class Found:
    """command: what `neurofleet` takes to train by the suggestion, if there is one"""

    finding: Finding
    command: str | None
    folder: Path
    run_id: str


def find(order: Order) -> Found:
    """Measure, and record what comes of it."""
    with _recorded(order) as (tracker, folder):
        measured = _measure(order, folder)
        finding = order.finder.conclude(measured)
        tracker.log_many(order.finder.points(measured))
        tracker.set_tags({"finder.suggestion": finding.override or "none"})
        kept = {"finder": order.section, "measured": measured, **dataclasses.asdict(finding)}
        (folder / "finder.json").write_text(json.dumps(kept, indent=1))
        tracker.log_artifact(folder / "finder.json")
        tracker.log_artifact(_picture(order, measured, folder), "figures")
        return Found(finding, _command(order.overrides, finding.override), folder, tracker.run_id)


def _measure(order: Order, folder: Path) -> Measured:
    experiment = order.planned.experiment
    task = {"experiment": experiment, "finder": order.section}
    if experiment["launcher"]["name"] == "local":
        return work(task)
    measured: Measured = fit(experiment["launcher"], work, task, folder)
    return measured


def work(task: dict[str, Any]) -> Measured:
    """What this process, or each worker, does."""
    finder: Finder = experiments.build(task["finder"], "finder")
    with threads(task["experiment"]["trainer"]["num_threads"]):
        return finder.measure(task["experiment"])


def say(line: str) -> None:
    """Tell the user; of several workers one does."""
    if not dist.is_initialized() or dist.get_rank() == 0:
        print(line, flush=True)


def _picture(order: Order, measured: Measured, folder: Path) -> Path:
    import matplotlib as mpl

    experiment, path = order.planned.experiment, folder / "figures" / f"{order.finder.name}_finder.png"
    path.parent.mkdir(exist_ok=True)
    what = f"{experiments.family_name(experiment)} on {experiments.data_name(experiment)}"
    with mpl.rc_context({"text.parse_math": False}):  # names that come from data are no formulas
        order.finder.draw(measured, what, path)
    return path


def _command(overrides: Sequence[str], override: str | None) -> str | None:
    """What the user gave, the suggestion in place of what it replaces."""
    if override is None:
        return None
    key = override.split("=")[0]
    return shlex.join([*(one for one in overrides if one.split("=")[0] != key), override])


@contextlib.contextmanager
def _recorded(order: Order) -> Iterator[tuple[Tracker, Path]]:
    experiment, data = order.planned.experiment, order.planned.data
    tracker = Tracker.start(
        experiment=experiments.data_name(experiment),
        run_name=f"{run_name(experiment)} finder={order.finder.name}",
        tags={
            "finder": order.finder.name,
            "family": experiments.family_name(experiment),
            "data": experiments.data_name(experiment),
            "data.digest": data.digest,
            "launcher": experiment["launcher"]["name"],
            "seed": str(experiment["seed"]),
            **code_tags(),
        },
        params=experiment | {"finder": order.section},
    )
    folder = paths.run(tracker.run_id)
    folder.mkdir(parents=True, exist_ok=True)
    with ending(tracker, lambda: ""), alone(folder):
        num_rows = sum(data.spec.num_rows.values())
        tracker.log_dataset(data.spec.name, data.digest, str(data.folder), data.spec.to_dict(), num_rows)
        yield tracker, folder
