"""The training pipeline as users run it: what lands in MLflow, how it fails, how it is stopped and goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import numpy as np
import pytest

from neurofleet import checkpoint
from neurofleet.data import catalog

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),  # MLflow under SQLAlchemy
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]

DIGITS = ["family=mlp", "data=digits"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def command(arguments: list[str]) -> list[str]:
    return [sys.executable, "-m", "neurofleet.cli", "train", *arguments]


def train(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"NEUROFLEET_HOME": str(home)}
    return subprocess.run(command(list(arguments)), env=environment, capture_output=True, text=True, check=False)


def store(home: Path) -> str:
    return f"sqlite:///{home}/mlflow/mlflow.db"


def client(home: Path) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(store(home), store(home))


def runs(home: Path, data: str = "digits") -> list[mlflow.entities.Run]:
    if not (home / "mlflow" / "mlflow.db").is_file():
        return []
    found = client(home).get_experiment_by_name(data)
    return [] if found is None else list(client(home).search_runs([found.experiment_id]))


def weights(home: Path, run_id: str) -> bytes:
    return (home / "runs" / run_id / "weights.safetensors").read_bytes()


@pytest.fixture(scope="module")
def released(home: Path) -> mlflow.entities.Run:
    done = train(home, *DIGITS, "trainer.max_epochs=3", "trainer.register=true", "name=first")
    assert done.returncode == 0, done.stderr
    assert "digits-mlp version 1" in done.stdout
    said = [line for line in done.stdout.splitlines() if line.endswith(" ...")]
    assert said == [
        *("starting mlp on digits ...", "opening the run in MLflow ...", "drawing figures ..."),
        "registering digits-mlp ...",
    ]
    assert done.stdout.startswith(said[0])
    (run,) = [run for run in runs(home) if run.info.run_name == "first"]
    return run


@pytest.mark.slow
def test_a_run_is_on_the_record(home: Path, released: mlflow.entities.Run) -> None:
    assert released.info.status == "FINISHED"
    assert released.data.params["family.hidden"] == "[64]"
    assert released.data.params["optimizer.lr"] == "0.001"
    tags = released.data.tags
    assert (tags["family"], tags["data"], tags["launcher"], tags["seed"]) == ("mlp", "digits", "local", "0")
    assert tags["num_parameters"] == str(64 * 64 + 64 + 64 * 10 + 10)
    assert {"git.commit", "git.dirty", "lock.digest", "experiment.digest"} <= set(tags)
    (used,) = released.inputs.dataset_inputs
    assert used.dataset.digest == catalog.locked_digests()["digits"] == tags["data.digest"]
    history = client(home).get_metric_history(released.info.run_id, "val/accuracy")
    assert [point.step for point in history] == [40, 80, 120]
    epochs = client(home).get_metric_history(released.info.run_id, "epoch")
    assert {40: 1.0, 80: 2.0, 120: 3.0}.items() <= {point.step: point.value for point in epochs}.items()
    assert released.data.metrics["test/accuracy"] > 0.8
    assert any(name.startswith("system/") for name in released.data.metrics)
    names = {file.path for file in client(home).list_artifacts(released.info.run_id)}
    assert {"experiment.yaml", "weights.safetensors", "figures"} <= names
    drawn = {file.path for file in client(home).list_artifacts(released.info.run_id, "figures")}
    names = ("learning_curves", "confusion_matrix", "reliability", "worst_mistakes")
    assert drawn == {f"figures/{name}.png" for name in names}


@pytest.mark.slow
def test_the_released_model_answers(home: Path, released: mlflow.entities.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store(home))
    model = mlflow.pyfunc.load_model("models:/digits-mlp/1")
    answer = model.predict(np.zeros((2, 1, 8, 8), dtype=np.uint8))
    assert list(answer["prediction"]) == [answer["prediction"][0]] * 2
    probabilities = answer[[name for name in answer if name.startswith("probability_")]].to_numpy()
    assert probabilities.shape == (2, 10)
    assert np.allclose(probabilities.sum(axis=1), 1)


MISTAKES = {
    "family=cnn data=wine": "families that fit: autoencoder, dbn, gan, mlp",
    "data.batch_size=0": "data.batch_size needs a whole number of at least 1",
    "family.dropout=1.5": "family.dropout needs 0 <= dropout < 1",
    "optimizer.lr=-1": "refuses optimizer.lr=-1",
    "family._target_=os.system": "needs an allowed target",
    "family._target_=torch.optim.SGD": "needs something of neurofleet.families",
    "family.hidden=[99999999,99999999]": "refuses its settings",
    "trainer.accelerator=gpu": "needs a CUDA device",
    "launcher=ray launcher.num_workers=1000": "needs more than the cluster has",
    "resume=nowhere": "resume needs the id of a run",
    "resume=12": "resume needs the id of a run",
    "resume=../../etc": "resume needs the id of a run",
    "resume=nowhere seed=3": "got seed=3",
}
# One process for all of them: most of what a command takes here is importing Lightning.
ONE_AFTER_ANOTHER = """
import contextlib, io, json, sys
from neurofleet import cli
told = {}
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["neurofleet", "train", *arguments.split()]
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        try:
            cli.main()
            code = 0
        except SystemExit as ended:
            code = ended.code
    told[arguments] = (code, stderr.getvalue())
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, tuple[int, str]]]:
    home = tmp_path_factory.mktemp("untouched")
    arguments = [sys.executable, "-c", ONE_AFTER_ANOTHER, json.dumps(list(MISTAKES))]
    environment = os.environ | {"NEUROFLEET_HOME": str(home)}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
    return home, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("arguments", MISTAKES)
def test_a_mistake_is_named_before_anything_is_written(
    arguments: str, told: tuple[Path, dict[str, tuple[int, str]]]
) -> None:
    home, answers = told
    code, complaint = answers[arguments]
    assert code == 2, complaint
    assert MISTAKES[arguments] in complaint
    assert "Traceback" not in complaint
    assert len(complaint.splitlines()) <= 3
    assert list(home.iterdir()) == []


@pytest.mark.slow
def test_an_unreachable_server_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    done = train(tmp_path, *DIGITS, "trainer.max_epochs=1")
    assert done.returncode == 2, done.stderr
    assert "127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_diverged_run_ends_failed_and_registers_nothing(home: Path) -> None:
    done = train(
        home, "family=mlp", "data=wine", "optimizer=sgd", "optimizer.lr=1e20", "trainer.register=true", "name=diverged"
    )
    assert done.returncode == 1, done.stderr
    assert "at step" in done.stderr
    assert "Traceback" not in done.stderr
    (run,) = runs(home, "wine")
    assert run.info.status == "FAILED"
    assert [model.name for model in client(home).search_registered_models() if model.name.startswith("wine")] == []


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_weights(home: Path) -> None:
    settings = [*DIGITS, "trainer.max_epochs=400", "trainer.precision=64-true", "family.dropout=0.2"]
    environment = os.environ | {"NEUROFLEET_HOME": str(home)}
    process = subprocess.Popen(
        command([*settings, "name=cut"]), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "epoch=" in line and "epoch=0/" not in line:
            break
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=120)
    assert process.returncode == 130, complaint
    (run,) = [run for run in runs(home) if run.info.run_name == "cut"]
    assert run.info.status == "KILLED"
    assert f"neurofleet train resume={run.info.run_id}" in complaint
    _, state = checkpoint.load(home / "runs" / run.info.run_id / "checkpoints")
    assert 0 < state["step"] < 400 * 40
    resumed = train(home, f"resume={run.info.run_id}")
    assert resumed.returncode == 0, resumed.stderr
    assert train(home, *settings, "name=whole").returncode == 0
    by_name = {run.info.run_name: run for run in runs(home)}
    assert by_name["cut"].info.status == "FINISHED"
    assert weights(home, by_name["cut"].info.run_id) == weights(home, by_name["whole"].info.run_id)
    steps = [point.step for point in client(home).get_metric_history(run.info.run_id, "val/loss")]
    assert steps == [40 * epoch for epoch in range(1, 401)]


@pytest.mark.slow
def test_a_killed_run_does_not_stay_running(home: Path) -> None:
    environment = os.environ | {"NEUROFLEET_HOME": str(home)}
    process = subprocess.Popen(
        command([*DIGITS, "trainer.max_epochs=100000", "name=killed"]),
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "epoch=" in line and "epoch=0/" not in line:
            break
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        (run,) = [run for run in runs(home) if run.info.run_name == "killed"]
        if run.info.status == "FAILED":
            return
        time.sleep(1)
    raise AssertionError(f"a run whose process is dead ends FAILED, this one is {run.info.status}")
