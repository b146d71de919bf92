"""Fine-tuning as users run it: the control and the evidence beside the run, how it is stopped, goes on, and fails."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from neurofleet import checkpoint
from neurofleet import experiment as experiments
from neurofleet.run import run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),  # MLflow under SQLAlchemy
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]
NEW = ["data=digits", "data.train_rows=200", "data.batch_size=50", "trainer=default", "trainer.max_epochs=3"]
NEW += ["trainer.precision=64-true"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small network that was trained."""
    experiment = experiments.compose(["family=mlp", "data=digits", "family.hidden=[16,12]", "trainer.max_epochs=8"])
    return run(experiment, folder=tmp_path_factory.mktemp("base")).folder


def command(verb: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "neurofleet.cli", verb, *arguments]


def finetune(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"NEUROFLEET_HOME": str(home)}
    return subprocess.run(command("finetune", *arguments), env=environment, capture_output=True, text=True, check=False)


def store(home: Path) -> str:
    return f"sqlite:///{home}/mlflow/mlflow.db"


def runs(home: Path) -> dict[str, mlflow.entities.Run]:
    client = mlflow.MlflowClient(store(home), store(home))
    found = client.get_experiment_by_name("digits")
    return {} if found is None else {one.info.run_name: one for one in client.search_runs([found.experiment_id])}


def weights(home: Path, run_id: str) -> bytes:
    return (home / "runs" / run_id / "weights.safetensors").read_bytes()


def test_a_fine_tuning_is_held_against_its_control_and_answers(
    home: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = finetune(home, f"base={base}", *NEW, "method=lora", "name=first", "trainer.register=true")
    assert done.returncode == 0, done.stderr
    for said in (
        "encoder.layers.0",
        "kept, frozen",
        "readout",
        "dropped",
        "training the control",
        "gain ",
        "forgetting ",
    ):
        assert said in done.stdout, said
    found = runs(home)
    mine, control = found["first"], found["first-control"]
    assert (mine.info.status, control.info.status) == ("FINISHED", "FINISHED")
    assert control.data.tags["mlflow.parentRunId"] == control.data.tags["control_of"] == mine.info.run_id
    assert mine.data.tags["base.uri"] == str(base)
    assert mine.data.tags["base.data"] == "digits"
    folder = home / "runs" / mine.info.run_id
    evidence = json.loads((folder / "evidence.json").read_text())
    assert set(evidence) == {"gain", "forgetting"}
    for name, one in evidence.items():
        assert one["difference"] == pytest.approx(one["ours"] - one["control"])
        assert one["low"] <= one["difference"] <= one["high"]
        assert mine.data.metrics[f"evidence/{name}"] == pytest.approx(one["difference"])
    scores = {name: found[name].data.metrics["test/accuracy"] for name in ("first", "first-control")}
    assert evidence["gain"]["ours"] == pytest.approx(scores["first"], abs=1e-6)
    assert evidence["gain"]["control"] == pytest.approx(scores["first-control"], abs=1e-6)
    tensors, _ = checkpoint.decode((folder / "weights.safetensors").read_bytes())
    assert not [name for name in tensors if "lora" in name or "base_layer" in name]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store(home))
    model = mlflow.pyfunc.load_model("models:/digits-mlp/1")
    rows = np.random.default_rng(0).integers(0, 17, (3, 1, 8, 8)).astype(np.uint8)
    answer = model.predict(rows)
    chances = answer[[name for name in answer if name.startswith("probability_")]].to_numpy()
    assert chances.shape == (3, 10)
    assert np.allclose(chances.sum(axis=1), 1)
    again = finetune(home, "base=models:/digits-mlp/1", *NEW, "method=frozen", "control=off", "name=second")
    assert again.returncode == 0, again.stderr
    assert {"first", "first-control", "second"} == set(runs(home))
    second = runs(home)["second"]
    assert second.data.tags["base.version"] == "1"
    assert not (home / "runs" / second.info.run_id / "evidence.json").exists()


def interrupted(home: Path, arguments: list[str], after: str) -> str:
    """Press Ctrl-C in the first epoch that follows a line with `after`; what it said."""
    environment = os.environ | {"NEUROFLEET_HOME": str(home)}
    process = subprocess.Popen(
        command("finetune", *arguments), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    seen = False
    for line in process.stdout:
        seen = seen or after in line
        if seen and "epoch=" in line and "epoch=0/" not in line:
            break
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=120)
    assert process.returncode == 130, complaint
    return complaint


def test_an_interrupted_run_and_an_interrupted_control_go_on_to_the_same_weights(tmp_path: Path, base: Path) -> None:
    settings = [f"base={base}", *NEW, "trainer.max_epochs=400", "method=gradual", "control=same_method"]
    complaint = interrupted(tmp_path, [*settings, "name=cut"], after="progress")
    run_id = runs(tmp_path)["cut"].info.run_id
    assert f"neurofleet finetune resume={run_id}" in complaint
    assert not (tmp_path / "runs" / run_id / "weights.safetensors").exists()
    complaint = interrupted(tmp_path, [f"resume={run_id}"], after="training the control")
    assert [line.partition("resume=")[2] for line in complaint.splitlines() if "resume=" in line] == [run_id]
    found = runs(tmp_path)
    assert {name: one.info.status for name, one in found.items()} == {"cut": "KILLED", "cut-control": "KILLED"}
    done = finetune(tmp_path, f"resume={run_id}")
    assert done.returncode == 0, done.stderr
    assert "gain " in done.stdout
    whole = finetune(tmp_path, *settings, "name=whole")
    assert whole.returncode == 0, whole.stderr
    found = runs(tmp_path)
    assert {one.info.status for one in found.values()} == {"FINISHED"}
    assert len(found) == 4
    for name in ("", "-control"):
        mine, theirs = (weights(tmp_path, found[f"{one}{name}"].info.run_id) for one in ("cut", "whole"))
        assert mine == theirs
    evidence = [
        json.loads((tmp_path / "runs" / found[one].info.run_id / "evidence.json").read_text())
        for one in ("cut", "whole")
    ]
    assert evidence[0] == evidence[1]


MISTAKES = {
    "data=digits": "finetune needs base=... to start from",
    "base={base}x data=digits": "there is no base",
    "base={base} data=wine": "no bridge leads from tabular to image",
    "base={wine} data=concrete": "it needs the columns alcohol",
    "base={base} method=froze": "did you mean frozen",
    "base={base} method.name=froze": "did you mean frozen",
    "base={base} method.shre=1": "did you mean method.share",
    "base={base} method=lora method.l2_sp=0.1": "method=lora heeds rank, mixup, got method.l2_sp=0.1",
    "base={pickled}": "convert it:",
    "base={lacking}": "layers.0.weight",
    "base={base} control=maybe": "control needs one of scratch, same_method, off",
    "base={base} experiment=digits_mlp": "neurofleet train experiment=digits_mlp",
    "base={base} statistics=mine": "one of data, base, got 'mine'",
    "base={base} data.train_rows=9999": "at most the 1257 training rows",
    "base={base} head=null": "head needs hidden, dropout and label_smoothing",
    "base={base} label_counts=3": "write label_counts=[20,100]",
    "base={base} optimizer.lr=-1": "refuses optimizer.lr=-1",
    "resume=nowhere": "resume needs the id of a run",
}
ONE_AFTER_ANOTHER = """
import contextlib, io, json, sys
from neurofleet import cli
told = {}
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["neurofleet", "finetune", *arguments.split()]
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
def told(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, tuple[int, str]]]:
    folder, home = tmp_path_factory.mktemp("bad"), tmp_path_factory.mktemp("untouched")
    for name in ("pickled", "lacking"):
        shutil.copytree(base, folder / name)
    torch.save({"layers.0.weight": torch.zeros(1)}, folder / "pickled" / "weights.pt")
    (folder / "pickled" / "weights.safetensors").unlink()
    tensors = load_file(base / "weights.safetensors")
    del tensors["layers.0.weight"]
    save_file(tensors, folder / "lacking" / "weights.safetensors")
    wine = experiments.compose(["family=mlp", "data=wine", "trainer.max_epochs=1"])
    run(wine, folder=folder / "wine")
    places = {"base": base, "wine": folder / "wine", "pickled": folder / "pickled", "lacking": folder / "lacking"}
    asked = {mistake: mistake.format(**places) for mistake in MISTAKES}
    arguments = [sys.executable, "-c", ONE_AFTER_ANOTHER, json.dumps(list(asked.values()))]
    environment = os.environ | {"NEUROFLEET_HOME": str(home)}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
    answers = json.loads(done.stdout.splitlines()[-1])
    return home, {mistake: tuple(answers[typed]) for mistake, typed in asked.items()}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_before_a_run_begins(mistake: str, told: tuple[Path, dict[str, tuple[int, str]]]) -> None:
    home, answers = told
    code, complaint = answers[mistake]
    assert code == 2, complaint
    assert MISTAKES[mistake] in complaint
    assert "Traceback" not in complaint
    assert complaint.count("error:") == 1
    assert not (home / "runs").exists()


def test_an_experiment_of_fine_tuning_is_none_of_train(tmp_path: Path) -> None:
    environment = os.environ | {"NEUROFLEET_HOME": str(tmp_path)}
    arguments = command("train", "experiment=textures_efficientnet")
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "neurofleet finetune experiment=textures_efficientnet" in done.stderr
    assert "Traceback" not in done.stderr
