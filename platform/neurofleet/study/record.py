"""Record: the MLflow run of one study, from its first tag to its end state, its trials below it, and its figures."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurofleet import experiment as experiments
from neurofleet import paths
from neurofleet.errors import StoppedError
from neurofleet.experiment import Experiment
from neurofleet.launch.record import alone, ending
from neurofleet.tracking import Tracker, code_tags, flatten

if TYPE_CHECKING:
    import optuna

    from neurofleet.study.lane import Report

STATUS = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}
"""MLflow's word for each of optuna's: FINISHED are those that were trained to their end, whose scores compare"""


@contextlib.contextmanager
def recorded(
    *,
    name: str,
    study: optuna.Study,
    experiment: Experiment,
    space: Mapping[str, Mapping[str, Any]],
    search: Mapping[str, Any],
    tags: Mapping[str, str],
    resume_run_id: str | None,
) -> Iterator[tuple[Tracker, Path]]:
    """A tracker, and the folder of the study's run; the run ends FINISHED, KILLED (a signal) or FAILED with this
    context, and shows what `study` found unless it failed.

    experiment: what every trial starts from
    space: what is searched, by dotted name; the run's params are the rest of the experiment, and `search.*`
    search: the settings of the search, plain and perhaps nested
    tags: of the engine's choice, beside those of study, data and code
    resume_run_id: the run of a study that goes on, or None for a new one; its params stay what they were
    """
    with contextlib.ExitStack() as held:
        if resume_run_id is None:
            tracker = _started(name, experiment, space, search, tags)
        else:  # before the run shows as going on
            held.enter_context(_alone(paths.run(resume_run_id)))
            tracker = Tracker.resume(resume_run_id)
            tracker.set_tags(tags)
        folder = paths.run(tracker.run_id)
        held.enter_context(ending(tracker, lambda: f"to go on with the study: neurofleet tune study={name}"))
        if resume_run_id is None:
            held.enter_context(_alone(folder))
        try:
            yield tracker, folder
        except (KeyboardInterrupt, StoppedError):
            _illustrate(study, folder, tracker)
            raise
        _illustrate(study, folder, tracker)


def _alone(folder: Path) -> contextlib.AbstractContextManager[None]:
    folder.mkdir(parents=True, exist_ok=True)  # a study that another machine began has none here
    return alone(folder)


def _started(
    name: str, experiment: Experiment, space: Mapping[str, Any], search: Mapping[str, Any], tags: Mapping[str, str]
) -> Tracker:
    data = experiments.build_data(experiment)
    tracker = Tracker.start(
        experiment=experiments.data_name(experiment),
        run_name=name,
        tags=_tags(name, experiment, space) | {"data.digest": data.digest} | dict(tags),
        params=_params(experiment, space, search),
    )
    num_rows = sum(data.spec.num_rows.values())
    tracker.log_dataset(data.spec.name, data.digest, str(data.folder), data.spec.to_dict(), num_rows)
    return tracker


def trial_record(
    study: str, trial: optuna.trial.FrozenTrial, experiment: Experiment, points: Iterable[tuple[str, float, int, int]]
) -> dict[str, Any]:
    """What `Tracker.log_trial` takes, of a trial that is over.

    experiment: what `neurofleet train` would run to repeat the trial
    points: (metric, value, step, milliseconds)
    """
    ended = trial.datetime_complete
    assert ended is not None, f"trial {trial.number} is not over"
    began = trial.datetime_start or ended
    return {
        "number": trial.number,
        "name": f"{study} trial {trial.number}",
        "status": STATUS[trial.state.name],
        "params": experiment,
        "tags": {
            "study": study,
            "trial.state": trial.state.name,
            "family": experiments.family_name(experiment),
            "seed": str(experiment["seed"]),
            "experiment.digest": experiments.digest(experiment),
        },
        "start_time": int(began.timestamp() * 1000),
        "end_time": int(ended.timestamp() * 1000),
        "points": list(points),
    }


def timed_points(report: Report, began: datetime | None, ended: datetime | None) -> list[tuple[str, float, int, int]]:
    """A trial's points with times in milliseconds, evenly over its time: in a stack no step is one trial's own."""
    assert began is not None
    assert ended is not None
    first, last = (int(one.timestamp() * 1000) for one in (began, ended))
    final = max((step for step, _, _ in report.points), default=0) or 1
    rows = [(step, first + (last - first) * step // final, row) for step, _, row in report.points]
    if report.state == "COMPLETE":  # the scores that count come last
        rows.append((final, last, report.scores | report.measures))
    return [(name, value, step, at) for step, at, row in rows for name, value in row.items()]


def _params(experiment: Experiment, space: Mapping[str, Any], search: Mapping[str, Any]) -> dict[str, Any]:
    searched = tuple(f"{name}." for name in space)
    fixed = {name: value for name, value in flatten(experiment).items() if not f"{name}.".startswith(searched)}
    spaces = {name: json.dumps(each) for name, each in space.items()}
    return fixed | flatten({"search": {**search, "space": spaces}})


def _tags(name: str, experiment: Experiment, space: Mapping[str, Any]) -> dict[str, str]:
    family = {} if "family" in space else {"family": experiments.family_name(experiment)}
    data = {"data": experiments.data_name(experiment), "launcher": str(experiment["launcher"]["name"])}
    return {"study": name, **family, **data, **code_tags()}


def _illustrate(study: optuna.Study, folder: Path, tracker: Tracker) -> None:
    from neurofleet.study.figures import draw

    try:
        for path in draw(study, folder / "figures"):
            tracker.log_artifact(path, "figures")
    except Exception as error:  # noqa: BLE001  pictures are not worth the study that they are of
        print(f"warning: the study has no figures: {type(error).__name__}: {error}", file=sys.stderr)
