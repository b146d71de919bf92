"""Session: what one call of `neurofleet tune` does, from its overrides to the best trial."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shlex
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from neurofleet import experiment as experiments
from neurofleet import launch, progress
from neurofleet.errors import ConfigError, UserError
from neurofleet.experiment import Composer, Dimension, Verb
from neurofleet.experiment.check import BUDGET_KEYS, GRID, NEVER, study_name
from neurofleet.experiment.compose import parsed
from neurofleet.experiment.space import bare, parse, plain_value
from neurofleet.launch.relay import relayed
from neurofleet.run import Plan, plan
from neurofleet.study import one_shot, storage
from neurofleet.study.display import Display
from neurofleet.study.engine import UNBUILDABLE, Engine, Lanes, longest, objectives
from neurofleet.study.lane import MEASURES, Lane
from neurofleet.study.record import recorded
from neurofleet.study.samplers import sampler_of
from neurofleet.study.schedulers import Never, Scheduler
from neurofleet.study.verbs import Find, chosen

LARGEST_GRID = 1_000_000
FREE = tuple(f"search.{key}" for key in (*BUDGET_KEYS, "fuse"))
"""what may change when a study goes on"""
TRIED_POINTS = 8  # of the space, before it is said that none can be built


@dataclasses.dataclass(frozen=True)
class Order:
    """A study to begin or to go on with."""

    name: str
    composer: Composer
    overrides: list[str]  # of the whole study, as they are kept
    run_id: str | None  # of a study that goes on
    failed_only: bool


def order(arguments: Sequence[str], find: Find | None = None) -> Order:
    """What stands after `neurofleet tune`: a new study, or `study=NAME` to go on with one.

    find: a base by its uri, for pipeline=finetune

    Raises:
        ConfigError: a mistake in the overrides; a study of that name with another space or experiment.
    """
    failed_only = any(one.lower() == "failed_only=true" for one in arguments)
    overrides = [one for one in arguments if not one.startswith("failed_only=")]
    asked = [one.value() for one in parsed(overrides) if bare(one.get_key_element()) == "study"]
    named = None if not asked or asked[-1] is None else study_name(plain_value(asked[-1]))
    overrides = [one for one in overrides if bare(one.partition("=")[0]) != "study"]
    known = storage.attributes(named) if named is not None else None
    overrides, verb = chosen(overrides, known["overrides"] if known is not None else [], find)
    if known is None:
        if failed_only:
            storage.need(named or "")
        composer = Composer.of(overrides, verb)
        _check_grid(composer)
        return Order(named or _new_name(composer), composer, overrides, None, failed_only)
    composer = _gone_on_with(str(named), known, overrides, verb)
    merged = {one.split("=")[0]: one for one in (*known["overrides"], *overrides)}
    return Order(str(named), composer, list(merged.values()), known["run_id"], failed_only)


def _gone_on_with(name: str, known: Mapping[str, Any], overrides: Sequence[str], verb: Verb) -> Composer:
    """The stored study with what may change of it.  Whatever else is given has to be what it was."""
    given = {one.split("=")[0]: one for one in overrides}
    kept = {one.split("=")[0]: one for one in known["overrides"]}
    others = {key: one for key, one in given.items() if key not in FREE and not key.startswith("launcher")}
    changed = sorted(one for key, one in others.items() if kept.get(key) != one)
    if changed:
        was = [kept.get(one.split("=")[0], f"nothing of {one.split('=')[0]}") for one in changed]
        raise ConfigError(
            f"study {name} goes on with the space that it began with; got {', '.join(changed)}, where it has "
            f"{', '.join(was)}; take another name, or change only {', '.join(FREE)}"
        )
    space = {key: Dimension.from_dict(one) for key, one in known["space"].items()}
    fixed, _ = parse(list((kept | given).values()), {})
    return Composer(fixed, space, verb)


def _check_grid(composer: Composer) -> None:
    size = experiments.grid_size(composer.space)
    if composer.search["sampler"]["_target_"] == GRID and size is not None and size > LARGEST_GRID:
        raise ConfigError(
            f"a grid needs at most {LARGEST_GRID:,} points, got {size:,}; search fewer values, or take search=random"
        )


def _new_name(composer: Composer) -> str:
    first = composer.experiment({key: _some(one) for key, one in composer.space.items()})
    families = {"family": experiments.family_name(first), "data": experiments.data_name(first)}
    sampler = re.sub("Sampler$", "", composer.search["sampler"]["_target_"].split(".")[-1]).lower()
    stem = "-".join([*families.values(), sampler])
    taken = set(storage.names())
    return next(name for number in range(1, len(taken) + 2) if (name := f"{stem}-{number}") not in taken)


def _some(dimension: Dimension) -> Any:
    return dimension.choices[0] if dimension.choices else dimension.low


def begin(order: Order) -> Plan:
    """One of the study's trials as it would be built: what is wrong with all of them shows here, before anything is
    written.

    Raises:
        UserError: the experiment cannot be run; a metric that its validations do not give.
    """
    searched = next((key for key in order.composer.space if key.partition(".")[0] == "launcher"), None)
    if searched is not None:
        raise ConfigError(f"a study has one launcher, got several values of {searched}; give one")
    one_shot.check(order.composer)
    experiment = order.composer.experiment(next(_points(order.composer)))
    launch.check(experiment)
    launch.need_fixed(experiment["launcher"], "a study")
    if experiment["launcher"].get("strategy") == "fsdp":
        raise ConfigError(
            "a study trains each of its trials in one worker, got launcher.strategy=fsdp, which shards a network over "
            "several; use launcher.strategy=ddp"
        )
    planned = _buildable(order.composer)
    known = [f"val/{name}" for name in planned.family.score_names] if planned.supply.validates else []
    if not known:
        raise ConfigError("a study compares trials on validation rows, got none; use data.train_splits=[train]")
    for metric in objectives(order.composer.search):
        if metric not in (*known, *MEASURES):
            raise ConfigError(f"search.metric needs one of {', '.join((*known, *MEASURES))}, got {metric!r}")
        if metric in MEASURES and order.composer.scheduler["_target_"] != NEVER:
            raise ConfigError(
                f"a scheduler judges trials by a score of each validation, got search.metric={metric}, which is "
                "measured once they are trained; take scheduler=none, or a metric of validation"
            )
    return planned


def _points(composer: Composer) -> Iterator[dict[str, Any]]:
    """Some points of the space: the first value of each key, then others."""
    for place in range(TRIED_POINTS):
        yield {
            key: one.choices[place % len(one.choices)] if one.choices else (one.low, one.high)[place % 2]
            for key, one in composer.space.items()
        }


def _buildable(composer: Composer) -> Plan:
    """The first of these points that can be built; a trial that cannot is no reason to refuse the others."""
    refused: dict[str, UserError] = {}
    for values in _points(composer):
        try:
            return plan(composer.experiment(values))
        except UserError as error:
            refused.setdefault(", ".join(composer.overrides(values)), error)
    if len({str(error) for error in refused.values()}) == 1:
        raise next(iter(refused.values()))
    shown = "; ".join(f"{point}: {error}" for point, error in list(refused.items())[:UNBUILDABLE])
    raise ConfigError(f"a study needs trials that can be built, and none of {len(refused)} can: {shown}")


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a study stands at the end of a session.

    best: with one objective; with several `pareto` are those that no other beats in all
    """

    name: str
    metrics: list[str]
    counts: Mapping[str, int]
    best: FrozenTrial | None
    pareto: Sequence[FrozenTrial]
    composer: Composer
    folder: Path
    run_id: str

    def command(self, trial: FrozenTrial) -> str:
        """What the verb takes to train a trial's experiment."""
        values = storage.last_values(self.composer.space, trial)
        fixed = [one for one in self.composer.fixed if not one.startswith("launcher")]
        return shlex.join([*fixed, *self.composer.overrides(values)])


def conduct(order: Order, planned: Plan, announce: Callable[[Ended], None]) -> Ended:
    """Train the trials that the study lacks; `announce` hears of the end before figures are drawn and sent.

    Raises:
        ConfigError: another process has the study; none of its trials can be built.
    """
    composer, search = order.composer, order.composer.search
    stock = search["fuse"] == "off"  # Ray Tune's own scheduler judges, in place of the engine
    scheduler: Scheduler = Never() if stock else experiments.build(composer.scheduler, "scheduler")
    aims = objectives(search)
    directions = [StudyDirection.MINIMIZE if sign == 1 else StudyDirection.MAXIMIZE for sign in aims.values()]
    with (
        _lanes(order, scheduler, planned) as lanes,  # first: actors start while the rest goes on
        storage.opened(order.name, directions) as opened,
    ):
        _name_metrics(opened.study, list(aims))
        opened.study.sampler = sampler_of(composer.search, len(opened.study.trials))
        space = {key: dimension.to_dict() for key, dimension in composer.space.items()}
        recording = recorded(
            name=order.name,
            study=opened.study,
            experiment=planned.experiment,
            space=space,
            search=search | {"scheduler": composer.scheduler},
            tags={},
            resume_run_id=order.run_id,
        )
        with recording as (tracker, _):
            opened.describe({"overrides": order.overrides, "space": space, "run_id": tracker.run_id})
            if order.failed_only:
                search["num_trials"] = 0
                print(f"{opened.retry_failed()} failed trials are tried again", flush=True)
            display = Display(order.name, search["num_trials"], _num_steps(planned), aims)
            with display, relayed(progress.Bar(order.name)):
                engine = Engine(composer, opened, lanes, scheduler, tracker, display, planned)
                one_shot.rank(composer, aims, opened, tracker, display, engine.is_time_up)
                engine.run()
            ended = Ended(
                order.name,
                list(aims),
                Counter(trial.state.name.lower() for trial in opened.study.trials),
                opened.best,
                opened.study.best_trials if len(aims) > 1 else [],
                composer,
                opened.folder,
                tracker.run_id,
            )
            announce(ended)
        # The tracker has handed over all that it was given; a session that was cut leaves this to the next one.
        opened.describe({storage.DELIVERED: datetime.now().isoformat()})
    return ended


def _name_metrics(study: optuna.Study, metrics: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(metrics)


def lane_settings(search: Mapping[str, Any], scheduler: Scheduler) -> dict[str, Any]:
    """What `Lane` takes."""
    aims = objectives(search)
    return {
        "wanted": frozenset(aims),
        "rank": next(iter(aims.items())) if len(aims) == 1 else None,
        "fuse": search["fuse"],
        "max_stack": search["max_stack"],
        "lockstep": scheduler.compares,
    }


@contextlib.contextmanager
def _lanes(order: Order, scheduler: Scheduler, planned: Plan) -> Iterator[Lanes]:
    """Where the trials train: in this process, in as many actors as the launcher has workers, or under Ray Tune."""
    search, settings = order.composer.search, lane_settings(order.composer.search, scheduler)
    launcher = planned.experiment["launcher"]
    if search["fuse"] == "off":
        from neurofleet.study.stock import stock

        folder = storage.folder(order.name) / "ray_tune"
        max_epochs = longest(order.composer, planned)
        with stock(planned.experiment, order.composer.scheduler, settings, folder, max_epochs) as lanes:
            yield lanes
    elif launcher["name"] == "ray":
        from neurofleet.study.actors import actors

        with actors(launcher, settings) as lanes:
            yield lanes
    else:
        yield Lane(**settings)


def _num_steps(planned: Plan) -> int:
    return planned.supply.steps_per_epoch * planned.config.max_epochs
