"""`neurofleet tune` as users run it: what is on the record, and that no trial is lost however a study ends."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlflow
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),  # MLflow under SQLAlchemy
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]
TINY = ["family=mlp", "family.hidden=[4]", "data=wine", "trainer.num_threads=1", "trainer.accelerator=cpu"]
TINY += ["trainer.precision=64-true", "optimizer.lr=tag(log,interval(1e-3,1e-1))"]
LONG = [*TINY, "search.num_trials=4", "search.max_concurrent=2", "trainer.max_epochs=120", "data.batch_size=8"]


def start(home: Path, *arguments: str, command: str = "tune") -> subprocess.Popen[str]:
    environment = os.environ | {"NEUROFLEET_HOME": str(home)}
    return subprocess.Popen(
        [sys.executable, "-m", "neurofleet.cli", command, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def tune(home: Path, *arguments: str, command: str = "tune") -> subprocess.CompletedProcess[str]:
    process = start(home, *arguments, command=command)
    said, complaint = process.communicate(timeout=300)
    return subprocess.CompletedProcess(arguments, process.returncode, said, complaint)


def until_some_ended(process: subprocess.Popen[str]) -> None:
    """Until the study has trials that are over and trials that train."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("study ") and "training" in line and not line.startswith("study 0/"):
            return
    raise AssertionError(f"the study was over before it was cut: {process.communicate()[1]}")


def trials(home: Path, name: str) -> list[FrozenTrial]:
    journal = JournalFileBackend(str(home / "studies" / name / "journal.log"))
    return optuna.load_study(study_name=name, storage=JournalStorage(journal)).get_trials()


def facts(trial: FrozenTrial) -> list[Any]:
    names = ("number", "state", "values", "params", "user_attrs", "intermediate_values", "datetime_complete")
    return [getattr(trial, name) for name in names]


def runs(home: Path, study: str) -> tuple[mlflow.entities.Run, list[mlflow.entities.Run]]:
    """The study's run and those of its trials."""
    store = f"sqlite:///{home}/mlflow/mlflow.db"
    client = mlflow.MlflowClient(store, store)
    experiment = client.get_experiment_by_name("wine")
    assert experiment is not None
    found = [run for run in client.search_runs([experiment.experiment_id]) if run.data.tags.get("study") == study]
    [parent] = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    below = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    return parent, below


def processes_of(home: Path) -> list[str]:
    """The commands of processes that have the home in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if f"NEUROFLEET_HOME={home}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append((entry / "cmdline").read_text().replace("\0", " "))
            except OSError:
                continue  # it is gone, or another user's
    return found


def assert_alone(home: Path) -> None:
    deadline = time.monotonic() + 60  # what delivers to MLflow may outlive the command while it has something to send
    while processes_of(home) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert processes_of(home) == []


def assert_whole(home: Path, study: str, before: list[FrozenTrial]) -> None:
    """Four trials, each once, those that had ended as they were, and each on the record."""
    after = trials(home, study)
    assert [trial.state.name for trial in after] == ["COMPLETE"] * 4
    ended = {trial.number: facts(trial) for trial in before if trial.state.is_finished()}
    assert ended
    assert {number: facts(after[number]) for number in ended} == ended
    assert [trial.params for trial in after[: len(before)]] == [trial.params for trial in before]
    assert len({trial.params["optimizer.lr"] for trial in after}) == 4
    parent, below = runs(home, study)
    assert parent.info.status == "FINISHED"
    assert sorted(int(run.info.run_name.split()[-1]) for run in below) == list(range(4))
    assert {run.info.status for run in below} == {"FINISHED"}
    for run in below:
        trial = after[int(run.info.run_name.split()[-1])]
        assert run.data.metrics["val/loss"] == pytest.approx(trial.value)
        assert float(run.data.params["optimizer.lr"]) == pytest.approx(trial.params["optimizer.lr"])


@pytest.mark.chaos("kill -9 of a study", allowed="it goes on where it was")
def test_a_killed_study_goes_on(tmp_path: Path) -> None:
    process = start(tmp_path, *LONG, "study=killed")
    until_some_ended(process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    before = trials(tmp_path, "killed")
    assert {trial.state.name for trial in before} == {"COMPLETE", "RUNNING"}
    done = tune(tmp_path, "study=killed")
    assert done.returncode == 0, done.stderr
    assert "4 complete" in done.stdout
    assert_whole(tmp_path, "killed", before)
    assert_alone(tmp_path)


def test_ctrl_c_leaves_a_study_that_goes_on(tmp_path: Path) -> None:
    process = start(tmp_path, *LONG, "study=cut")
    until_some_ended(process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it, to all processes of the command
    _, complaint = process.communicate(timeout=120)
    assert process.returncode == 130, complaint
    assert "neurofleet tune study=cut" in complaint
    assert "Traceback" not in complaint
    assert_alone(tmp_path)
    assert runs(tmp_path, "cut")[0].info.status == "KILLED"
    before = trials(tmp_path, "cut")
    done = tune(tmp_path, "study=cut")
    assert done.returncode == 0, done.stderr
    assert_whole(tmp_path, "cut", before)


def test_the_best_trial_is_trained_again_by_what_is_printed(tmp_path: Path) -> None:
    done = tune(tmp_path, *TINY, "search.num_trials=3", "trainer.max_epochs=2", "study=printed", "family.dropout=0,0.2")
    assert done.returncode == 0, done.stderr
    assert "3 complete" in done.stdout
    [command] = [line.strip() for line in done.stdout.splitlines() if line.strip().startswith("neurofleet train ")]
    again = tune(tmp_path, *shlex.split(command)[2:], "name=again", command="train")
    assert again.returncode == 0, again.stderr
    store = f"sqlite:///{tmp_path}/mlflow/mlflow.db"
    client = mlflow.MlflowClient(store, store)
    experiment = client.get_experiment_by_name("wine")
    assert experiment is not None
    [run] = [run for run in client.search_runs([experiment.experiment_id]) if run.info.run_name == "again"]
    best = json.loads((tmp_path / "studies" / "printed" / "best" / "trial.json").read_text())
    assert run.data.metrics["val/loss"] == pytest.approx(best["scores"]["val/loss"], rel=1e-12)
    more = tune(tmp_path, "study=printed", "search.num_trials=4")
    assert more.returncode == 0, more.stderr
    assert "4 complete" in more.stdout


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([*TINY[:-1]], "tune needs something to search"),
        ([*TINY, "search.metric=val/acuracy"], "search.metric needs one of val/loss"),
        ([*TINY, "failed_only=true"], "no study"),
    ],
    ids=["nothing", "metric", "study"],
)
def test_a_mistake_is_named_before_anything_is_written(tmp_path: Path, arguments: list[str], complaint: str) -> None:
    done = tune(tmp_path / "home", *arguments)
    assert done.returncode == 2, done.stderr
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "home").exists()
