"""A study is one run with its trials below it, and ends as it went."""

from __future__ import annotations

import math
import signal
from pathlib import Path
from typing import Any

import optuna
import pytest
from mlflow import MlflowClient
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from neurofleet import experiment as experiments
from neurofleet.errors import ConfigError, StoppedError
from neurofleet.study.record import recorded, trial_record
from neurofleet.tracking import store_uri

# MLflow with SQLAlchemy 2.1
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")
SPACE = {
    "optimizer.lr": FloatDistribution(1e-4, 1e-1, log=True),
    "family.activation": CategoricalDistribution(["relu", "tanh"]),
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NEUROFLEET_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def base() -> dict[str, Any]:
    return experiments.compose(["family=mlp", "data=digits", "seed=3"])


@pytest.fixture
def study() -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(study_name="tries", direction="maximize")


def settings(study: optuna.Study, base: dict[str, Any], **changes: Any) -> dict[str, Any]:
    space = {
        "optimizer.lr": {"low": 1e-4, "high": 1e-1, "log": True},
        "family.activation": {"choices": ["relu", "tanh"]},
    }
    return {
        "name": "tries",
        "study": study,
        "experiment": base,
        "space": space,
        "search": {"sampler": "tpe", "num_trials": 6, "scheduler": {"name": "asha", "factor": 3}},
        "tags": {"search.fuse": "auto"},
        "resume_run_id": None,
        **changes,
    }


def tried(study: optuna.Study, base: dict[str, Any], state: TrialState = TrialState.COMPLETE) -> dict[str, Any]:
    trial = study.ask(SPACE)
    for step in (10, 20):
        trial.report(trial.params["optimizer.lr"] * step, step)
    done = study.tell(trial, trial.params["optimizer.lr"] if state is TrialState.COMPLETE else None, state)
    experiment = base | {"optimizer": base["optimizer"] | {"lr": trial.params["optimizer.lr"]}}
    points = [("val/accuracy", done.intermediate_values[step], step, 1_700_000_000_000 + step) for step in (10, 20)]
    return trial_record("tries", done, experiment, points)


def runs() -> tuple[Any, dict[int, Any]]:
    """The study's run, and those of its trials by number."""
    client = MlflowClient(store_uri())
    experiment = client.get_experiment_by_name("digits")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    [parent] = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    below = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(below) == len(found) - 1
    return parent, {int(run.data.tags["trial.number"]): run for run in below}


def figures(run: Any) -> list[str]:
    found = MlflowClient(store_uri()).list_artifacts(run.info.run_id, "figures")
    return sorted(Path(each.path).stem for each in found)


def test_a_study_that_came_to_its_end(study: optuna.Study, base: dict[str, Any]) -> None:
    states = [TrialState.COMPLETE] * 4 + [TrialState.PRUNED, TrialState.FAIL]
    with recorded(**settings(study, base)) as (tracker, folder):
        for number, state in enumerate(states):
            tracker.log_trial(tried(study, base, state))
            tracker.log_many(
                [(number + 1, math.nan, {"best/val/accuracy": study.best_value, "num_finished": number + 1})]
            )
        assert folder.name == tracker.run_id
    parent, trials = runs()
    assert (parent.info.run_name, parent.info.status) == ("tries", "FINISHED")
    assert parent.data.params["search.scheduler.factor"] == "3"
    assert parent.data.params["search.space.optimizer.lr"] == '{"low": 0.0001, "high": 0.1, "log": true}'
    assert parent.data.params["seed"] == "3"
    assert parent.data.params["optimizer.weight_decay"] == str(base["optimizer"]["weight_decay"])
    assert not {"optimizer.lr", "family.activation"} & parent.data.params.keys()
    tags = parent.data.tags
    assert (tags["study"], tags["family"], tags["data"], tags["search.fuse"]) == ("tries", "mlp", "digits", "auto")
    assert len(tags["data.digest"]) == 32
    assert "git.commit" in tags
    [dataset] = parent.inputs.dataset_inputs
    assert dataset.dataset.name == "digits"
    assert parent.data.metrics["num_finished"] == 6
    assert parent.data.metrics["best/val/accuracy"] == study.best_value
    drawn = [
        "contour",
        "intermediate_values",
        "optimization_history",
        "parallel_coordinate",
        "param_importances",
        "slice",
    ]
    assert figures(parent) == drawn[1:]  # one parameter alone is a number
    assert [trials[number].info.status for number in range(6)] == ["FINISHED"] * 4 + ["KILLED", "FAILED"]
    assert [trials[number].data.tags["trial.state"] for number in (0, 4, 5)] == ["COMPLETE", "PRUNED", "FAIL"]


def test_the_params_of_a_trial_are_its_experiment(study: optuna.Study, base: dict[str, Any]) -> None:
    with recorded(**settings(study, base)) as (tracker, _):
        logged = tried(study, base)
        tracker.log_trial(logged)
    _, trials = runs()
    run, trial = trials[0], study.trials[0]
    assert run.data.params["optimizer.lr"] == str(trial.params["optimizer.lr"])
    assert run.data.params["data.name"] == "digits"
    assert run.data.metrics == {"val/accuracy": trial.params["optimizer.lr"] * 20}
    assert run.data.tags["experiment.digest"] == experiments.digest(logged["params"])
    assert trial.datetime_complete is not None
    assert run.info.end_time == int(trial.datetime_complete.timestamp() * 1000)


def broken_off(study: optuna.Study, base: dict[str, Any], error: BaseException) -> None:
    """Three trials are over, the first of them is logged."""
    with recorded(**settings(study, base)) as (tracker, _):
        first, _, _ = (tried(study, base) for _ in range(3))
        tracker.log_trial(first)
        raise error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyboardInterrupt(), "KILLED"),
        (StoppedError("SIGTERM", signal.SIGTERM), "KILLED"),
        (ConfigError("no trial can be built"), "FAILED"),
    ],
)
def test_a_study_that_was_ended(
    study: optuna.Study, base: dict[str, Any], error: BaseException, status: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(type(error)):
        broken_off(study, base, error)
    parent, trials = runs()
    assert parent.info.status == status
    assert list(trials) == [0]
    stopped = status == "KILLED"
    assert ("optimization_history" in figures(parent)) == stopped
    assert ("neurofleet tune study=tries" in capsys.readouterr().err) == stopped


def test_a_study_goes_on_in_its_run(study: optuna.Study, base: dict[str, Any]) -> None:
    with pytest.raises(KeyboardInterrupt):
        broken_off(study, base, KeyboardInterrupt())
    run_id = runs()[0].info.run_id
    again = settings(study, base, resume_run_id=run_id, tags={"search.fuse": "off"}, search={"num_trials": 9})
    with recorded(**again) as (tracker, _):
        tried(study, base)
        for trial in study.trials:
            tracker.log_trial(trial_record("tries", trial, base, []))
    parent, trials = runs()
    assert (parent.info.run_id, tracker.run_id, parent.info.status) == (run_id, run_id, "FINISHED")
    assert (parent.data.params["search.num_trials"], parent.data.tags["search.fuse"]) == ("6", "off")
    assert sorted(trials) == [0, 1, 2, 3]
    assert "val/accuracy" in trials[0].data.metrics  # as it was logged first


def test_one_process_at_a_time(study: optuna.Study, base: dict[str, Any]) -> None:
    with recorded(**settings(study, base)) as (tracker, _):
        again = settings(study, base, resume_run_id=tracker.run_id)
        with pytest.raises(ConfigError, match="still going in another process"), recorded(**again):
            pass
        assert runs()[0].info.status == "RUNNING"
