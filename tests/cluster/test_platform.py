"""The local platform for real; the last test takes it down."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest

from neurofleet import cluster, paths, tracking
from neurofleet import experiment as experiments
from neurofleet.cluster import attempts, causes, jobs, logs, processes, servers, state
from neurofleet.cluster.ledger import Ledger
from neurofleet.cluster.state import Half
from neurofleet.run import run
from neurofleet.submit import submit

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),  # MLflow under SQLAlchemy
]


def marked(mark: str) -> list[int]:
    return [process.pid for half in state.NAMES for process in processes.members(Half(""), f"{mark}-{half}")]


def test_up_is_idempotent(platform_up: Any, capsys: pytest.CaptureFixture[str]) -> None:
    before = state.location().read_text()
    platform = cluster.up(mlflow_port=5999)
    shown = capsys.readouterr().out
    assert "is up already" in shown
    assert f"mlflow is up at port {platform.mlflow.address.rpartition(':')[2]}, not 5999; to move it" in shown
    assert state.location().read_text() == before


def test_everything_listens_on_loopback_and_wants_the_token(platform_up: Any) -> None:
    platform = state.load()
    assert platform is not None
    listening = set()
    for name in ("ray", "mlflow"):
        for process in processes.members(getattr(platform, name), f"{platform.mark}-{name}"):
            with_status = process.net_connections("tcp")
            listening |= {entry.laddr.ip for entry in with_status if entry.status == psutil.CONN_LISTEN}
    assert {address.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}
    assert servers.answers(f"{platform.dashboard}/api/jobs/", servers.bearer())
    assert not servers.answers(f"{platform.dashboard}/api/jobs/", {"Authorization": "Bearer wrong"})


def test_status_tells_what_is_there(platform_up: Any) -> None:
    report = cluster.status()
    assert (report["ray"]["up"], report["mlflow"]["up"]) == (True, True)
    assert report["mlflow"]["megabytes"] < 510
    assert report["resources"]["CPU"] == (platform_up.cpus, platform_up.cpus)
    assert report["jobs"] == []


def test_a_script_of_the_project_runs_there_and_its_exit_code_comes_back(
    platform_up: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = "import os,sys; e=os.environ; print(os.getcwd(), e['NEUROFLEET_HOME'], e.get('MLFLOW_TRACKING_URI'))"
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "tell.py").write_text(f"{script}; sys.exit(2)")
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    job = submit("tell", ["fast=1"], key="once")
    assert jobs.follow(job.id) == 2
    # No address: the store of its home is the platform's.
    assert f"{tmp_path} {paths.home()} None\n" in capsys.readouterr().out
    assert submit("tell", ["fast=1"], key="once").id == job.id
    jobs.show_log("once")
    assert capsys.readouterr().out == f"{tmp_path} {paths.home()} None\n"
    assert jobs.find(job.id).state == "FAILED"


@pytest.mark.chaos("kill -9 of a training", allowed="weights of an undisturbed run, bit for bit; one MLflow run")
def test_a_killed_training_goes_on_in_its_run_to_the_same_weights(platform_up: Any, tmp_path: Path) -> None:
    settings = ["family=mlp", "data=digits", "trainer.max_epochs=100", "family.dropout=0.2", "name=cut"]
    settings += ["trainer.checkpoint.every_n_steps=50"]
    job = submit("train", settings)
    run_id = job.order.run_id
    assert run_id is not None
    store = mlflow.MlflowClient(tracking.store_uri(), tracking.store_uri())
    assert store.get_run(run_id).info.status in ("SCHEDULED", "RUNNING")
    while causes.checkpoint_step(paths.run(run_id)) is None:
        assert jobs.find(job.id).state in ("SUBMITTED", "RUNNING")
        time.sleep(0.1)
    of_attempt = [one for one in psutil.process_iter() if attempts.is_of(one, f"{job.id}-1")]  # Ray's supervisor, too
    (training,) = [one for one in of_attempt if "neurofleet.cli" in one.cmdline()]
    training.kill()
    assert jobs.follow(job.id) == 0
    with Ledger() as book:
        assert [cause["kind"] for cause in book.causes(jobs.find(job.id))] == ["lost"]
    undisturbed = run(experiments.compose(settings), folder=tmp_path)
    assert undisturbed.num_steps == 4000
    whole = (undisturbed.folder / "weights.safetensors").read_bytes()
    assert (paths.run(run_id) / "weights.safetensors").read_bytes() == whole
    found = store.search_runs([store.get_run(run_id).info.experiment_id], "attributes.run_name = 'cut'")
    assert [(one.info.run_id, one.info.status) for one in found] == [(run_id, "FINISHED")]
    steps = [point.step for point in store.get_metric_history(run_id, "val/loss")]
    assert steps == [40 * epoch for epoch in range(1, 101)]


def test_a_job_that_is_stopped_ends_killed_with_a_checkpoint(platform_up: Any) -> None:
    job = submit("train", ["family=mlp", "data=digits", "trainer.max_epochs=100000"])
    assert job.order.run_id is not None
    while logs.last_progress(job.id) is None:
        time.sleep(0.1)
    assert jobs.stop(job.id).stop_asked
    assert jobs.follow(job.id) == 143
    assert jobs.find(job.id).state == "STOPPED"
    assert causes.checkpoint_step(paths.run(job.order.run_id)) is not None
    store = mlflow.MlflowClient(tracking.store_uri(), tracking.store_uri())
    assert store.get_run(job.order.run_id).info.status == "KILLED"


def test_a_half_that_died_is_started_again_alone(platform_up: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = state.load()
    assert before is not None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", before.mlflow.address)  # as the README tells those who look at runs
    for process in processes.alive(before.mlflow):
        process.kill()
        process.wait(5)
    assert cluster.status()["mlflow"]["up"] is False
    after = cluster.up()
    assert after.ray == before.ray
    assert (after.mlflow.address, after.mlflow.processes == before.mlflow.processes) == (before.mlflow.address, False)
    assert cluster.status()["mlflow"]["up"] is True


def test_a_wrong_token_is_told_as_such(platform_up: Any) -> None:
    platform = state.load()
    assert platform is not None
    code = f"from neurofleet import launch; launch.cluster_nodes({platform.ray.address!r})"
    environment = os.environ | {"RAY_AUTH_TOKEN": "0" * 64}
    asked = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert f"UnreachableError: a Ray cluster is needed at {platform.ray.address}, got: " in asked.stderr


def test_an_interrupted_up_leaves_nothing(free_ports: dict[str, str], tmp_path: Path) -> None:
    code = "from neurofleet import cluster; cluster.up()"
    environment = os.environ | free_ports | {"NEUROFLEET_HOME": str(tmp_path / "h")}
    starting = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
    file = tmp_path / "h" / "platform.json"
    while not file.exists():
        time.sleep(0.05)
    mark = json.loads(file.read_text())["mark"]
    while len(marked(mark)) < 3:  # ray start, gcs_server, MLflow
        time.sleep(0.1)
    starting.send_signal(signal.SIGINT)
    starting.communicate(timeout=60)
    assert (marked(mark), file.exists()) == ([], False)


def test_down_leaves_nothing(platform_up: Any) -> None:
    """The last test that uses the platform."""
    platform = state.load()
    assert platform is not None
    assert len(marked(platform.mark)) > 5
    cluster.down()
    assert marked(platform.mark) == []
    commands = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    assert [command for command in commands if platform.ray_folder in command] == []
    assert not state.location().exists()
