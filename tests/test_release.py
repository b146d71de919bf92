"""A release answers as the network it was made from, where this package is not installed, and holds no pickle."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from neurofleet import data, experiment, release
from neurofleet.errors import ConfigError, DataError, RunError
from neurofleet.spec import DataSpec
from neurofleet.tracking import Tracker, store_uri

# MLflow 3.17 with SQLAlchemy 2.1, and MLflow's own annotations when mlflow.pyfunc is imported
pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]

TABLE = DataSpec(
    name="houses",
    kind="tabular",
    task="regression",
    shape=(3,),
    inputs=("rooms", "age", "tax"),
    targets=("price",),
    classes=(),
    vocabulary=(),
    tokenizer="",
    cardinalities=(),
    input_mean=(5.0, 30.0, 100.0),
    input_std=(1.0, 10.0, 50.0),
    target_mean=(200.0,),
    target_std=(40.0,),
    split="hashed",
    num_rows={"train": 8, "val": 1, "test": 1},
    source="made for this test",
)
IMAGES = DataSpec(
    name="digits",
    kind="image",
    task="multiclass",
    shape=(1, 12, 12),
    inputs=("pixels",),
    targets=("label",),
    classes=("zero", "one", "two"),
    vocabulary=(),
    tokenizer="",
    cardinalities=(),
    input_mean=(33.0,),
    input_std=(70.0,),
    target_mean=(),
    target_std=(),
    split="hashed",
    num_rows={"train": 8, "val": 1, "test": 1},
    source="made for this test",
)

LINEAGE = {"base": "older", "base.uri": "models:/older/3"}
TAGS = {"data.digest": "ab" * 16, "base.version": "3"}

ELSEWHERE = """
import json, sys
import mlflow, numpy, pandas
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
import neurofleet
rows = json.load(sys.stdin)
given = pandas.DataFrame(rows) if isinstance(rows, dict) else numpy.asarray(rows, dtype="uint8")
answer = model.predict(given)
print(json.dumps({"package": neurofleet.__file__, "answer": answer.to_dict("list")}))
"""


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEUROFLEET_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def run_id(home: Path) -> Iterator[str]:
    tracker = Tracker.start(
        experiment="releases", run_name="a run", tags=LINEAGE | {"launcher": "local"}, params={"seed": 0}
    )
    yield tracker.run_id
    tracker.finish()


def leave(folder: Path, spec: DataSpec, family: str) -> Any:
    """What a run leaves behind; the network itself, for comparison."""
    folder.mkdir(exist_ok=True)
    described = experiment.compose([f"family={family}", "seed=3"])
    network = experiment.build_family(described, spec).eval()
    weights = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(weights, folder / "weights.safetensors")
    spec.save(folder / "spec.json")
    experiment.save(described, folder / "experiment.yaml")
    return network


@pytest.fixture(scope="module")
def table(run_id: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Registers houses-mlp; the network that it is."""
    folder = tmp_path_factory.mktemp("table")
    network = leave(folder, TABLE, "mlp")
    assert release.register(run_id, folder, "houses-mlp", TAGS) == 1
    return network


def elsewhere(model: str, rows: Any) -> dict[str, Any]:
    """Predictions by a process that knows MLflow and not this package."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-P", "-c", ELSEWHERE, store_uri(), model]
    answer = subprocess.run(command, input=json.dumps(rows), text=True, env=environment, cwd="/", capture_output=True)
    assert answer.returncode == 0, answer.stderr
    assert "Warning" not in answer.stderr
    return dict(json.loads(answer.stdout))


def test_table_answers_in_original_units_where_the_package_is_not_installed(table: Any) -> None:
    rows = {"age": [10.0, 50.0], "rooms": [3.0, 7.5], "tax": [90.0, 210.0]}
    found = elsewhere("models:/houses-mlp/1", rows)
    assert "/artifacts/code/neurofleet/" in found["package"]
    with torch.inference_mode():
        inputs = torch.tensor([[-2.0, -2.0, -0.2], [2.5, 2.0, 2.2]])
        expected = table(inputs)[:, 0].double() * 40 + 200
    assert found["answer"]["prediction"] == pytest.approx(expected.tolist(), rel=1e-6)


def test_version_carries_its_lineage_and_no_pickle(table: Any, run_id: str, home: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(store_uri())
    version = client.get_model_version("houses-mlp", "1")
    assert version.tags == {"run_id": run_id, "family": "mlp", "data": "digits", **LINEAGE, **TAGS}
    assert version.run_id == run_id
    [logged] = client.get_run(run_id).outputs.model_outputs
    folder = home / "mlflow" / "artifacts" / "models" / logged.model_id / "artifacts"
    files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert {
        "model.py",
        "artifacts/weights.safetensors",
        "artifacts/spec.json",
        "artifacts/experiment.yaml",
        "code/neurofleet/experiment/check.py",
        "input_example.json",
    } <= files
    assert not [file for file in files if file.endswith((".pkl", ".pt", ".pth", ".bin", ".pyc"))]
    pins = (folder / "requirements.txt").read_text().split()
    assert f"torch=={torch.__version__.split('+')[0]}" in pins
    assert all("==" in pin and "+" not in pin for pin in pins)
    experiment_id = client.get_run(run_id).info.experiment_id
    assert client.get_logged_model(logged.model_id).experiment_id == experiment_id


def test_images_are_bytes(run_id: str, tmp_path: Path) -> None:
    network = leave(tmp_path, IMAGES, "cnn")
    version = release.register(run_id, tmp_path, "digits-cnn", {})
    assert release.register(run_id, tmp_path, "digits-cnn", {}) == version + 1
    images = np.random.default_rng(0).integers(0, 256, (4, 1, 12, 12), dtype=np.uint8)
    answer = elsewhere(f"models:/digits-cnn/{version + 1}", images.tolist())["answer"]
    with torch.inference_mode():
        expected = data.decode(network(data.encode(images, IMAGES)), IMAGES)
    assert answer["prediction"] == expected["prediction"].tolist()
    assert answer["probability_two"] == pytest.approx(expected["probability_two"].tolist(), rel=1e-6)


def registered(name: str) -> list[Any]:
    from mlflow import MlflowClient

    return list(MlflowClient(store_uri()).search_model_versions(f"name='{name}'"))


def test_forbidden_target_is_not_registered(run_id: str, tmp_path: Path) -> None:
    leave(tmp_path, TABLE, "mlp")
    file = tmp_path / "experiment.yaml"
    file.write_text(file.read_text().replace("neurofleet.families.mlp.MLP", "os.system"))
    with pytest.raises(ConfigError, match=r"allowed target, got 'os.system'"):
        release.register(run_id, tmp_path, "evil", {})
    assert registered("evil") == []


def test_weights_of_another_network_are_not_registered(run_id: str, tmp_path: Path) -> None:
    leave(tmp_path, TABLE, "mlp")
    save_file({"other": torch.zeros(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(RuntimeError, match="other"):
        release.register(run_id, tmp_path, "broken", {})
    assert registered("broken") == []


def test_incomplete_folder(run_id: str, tmp_path: Path) -> None:
    leave(tmp_path, TABLE, "mlp")
    (tmp_path / "weights.safetensors").unlink()
    with pytest.raises(RunError, match=r"lacking weights.safetensors"):
        release.register(run_id, tmp_path, "half", {})


def test_example_is_one_row_in_raw_units() -> None:
    expected = pd.DataFrame([[5.0, 30.0, 100.0]], columns=["rooms", "age", "tax"])
    pd.testing.assert_frame_equal(release.example(TABLE), expected)
    image = release.example(IMAGES)
    assert (image.shape, image.dtype, image.min(), image.max()) == ((1, 1, 12, 12), np.uint8, 33, 33)


@pytest.mark.parametrize(
    ("spec", "kinds"),
    [
        (TABLE, {"prediction": "double"}),
        (
            IMAGES,
            {
                "prediction": "string",
                "probability_zero": "double",
                "probability_one": "double",
                "probability_two": "double",
            },
        ),
    ],
)
def test_signature_names_what_comes_out(spec: DataSpec, kinds: dict[str, str]) -> None:
    outputs = release.signature(spec, None).outputs
    assert {column.name: column.type.name for column in outputs} == kinds


def test_each_kind_has_an_example_that_it_takes() -> None:
    kinds = {
        "sequence": {"shape": (5, 2), "inputs": ("series",), "input_mean": (1.0, 2.0), "input_std": (1.0, 1.0)},
        "text": {"shape": (6,), "inputs": ("review",), "tokenizer": "words", "vocabulary": ("good", "tea", "bad")},
        "categorical": {"shape": (2,), "inputs": ("user", "item"), "cardinalities": (3, 4)},
        "environment": {
            "task": "control",
            "shape": (3, 4, 2),
            "inputs": tuple(f"observation_{index}" for index in range(24)),
            "input_mean": (127.5,) * 3,
            "input_std": (127.5,) * 3,
            "split": "official",
        },
    }
    for kind, fields in kinds.items():
        spec = dataclasses.replace(TABLE, kind=kind, **fields)  # type: ignore[arg-type]
        encoded = data.encode(release.example(spec), spec)
        assert encoded.shape == (1, *spec.shape)
        assert kind not in ("sequence", "environment") or encoded.abs().max() == 0, "the mean"
        assert kind != "text" or encoded.tolist() == [[2, 3, 4, 0, 0, 0]]
        inputs = release.signature(spec, None).inputs
        columns = {"text": ["string"], "categorical": ["long"] * 2}.get(kind)
        assert (None if inputs is None else [column["type"] for column in inputs.to_dict()]) == columns


WALK = dataclasses.replace(
    TABLE, name="walk", kind="sequence", shape=(4, 2), inputs=("walk",), input_mean=(1.0, 2.0), input_std=(1.0, 3.0)
)
CART = dataclasses.replace(
    TABLE,
    name="cart",
    kind="environment",
    task="control",
    inputs=("place", "speed", "angle"),
    input_mean=(0.0,) * 3,
    input_std=(1.0,) * 3,
    targets=(),
    classes=("left", "right"),
    target_mean=(),
    target_std=(),
    split="official",
)


@pytest.mark.parametrize(("spec", "family"), [(WALK, "rnn"), (CART, "dqn")], ids=["sequences", "observations"])
def test_numbers_are_taken_in_any_form(spec: DataSpec, family: str, run_id: str, tmp_path: Path) -> None:
    import mlflow

    leave(tmp_path, spec, family)
    version = release.register(run_id, tmp_path, f"{spec.name}-{family}", {})
    with release._mlflow():
        model = mlflow.pyfunc.load_model(f"models:/{spec.name}-{family}/{version}")
    rows = np.random.default_rng(0).integers(-3, 3, (5, *spec.shape)).astype(np.float64)
    forms: list[Any] = [rows, rows.astype(np.float32), rows.astype(np.int64), rows.tolist(), list(rows)]
    if spec is CART:
        forms += [pd.DataFrame(rows, columns=list(spec.inputs))[["speed", "angle", "place"]]]
    expected = model.predict(rows)
    assert len(expected) == 5
    for given in forms:
        pd.testing.assert_frame_equal(model.predict(given), expected)
    with pytest.raises(DataError, match=r"needs rows of shape \("):
        model.predict(np.zeros((2, 3, 4, 5)))
    if spec is WALK:
        ragged = [rows[0, :2].tolist(), rows[1].tolist()]
        alone = pd.concat([model.predict([row]) for row in ragged], ignore_index=True)
        pd.testing.assert_frame_equal(model.predict(ragged), alone)
    else:
        with pytest.raises(DataError, match="got lists of other lengths"):
            model.predict([[1.0, 2.0, 3.0], [1.0]])


@pytest.mark.parametrize(
    ("encoder", "tokenizer", "packages"),
    [
        ("neurofleet.families.mlp.MLP", "", []),
        ("neurofleet.transfer.backbones.EfficientNetLite0", "", ["efficientnet_lite_pytorch"]),
        ("neurofleet.transfer.backbones.HuggingFace", "wordpieces", ["transformers", "tokenizers"]),
        (None, "wordpieces", ["tokenizers"]),
    ],
)
def test_a_release_names_what_its_encoder_imports(encoder: str | None, tokenizer: Any, packages: list[str]) -> None:
    family = {"_target_": "neurofleet.transfer.finetuned.Finetuned", "encoder": {"_target_": encoder}}
    text = dataclasses.replace(TABLE, kind="text", tokenizer=tokenizer or "words", vocabulary=("a",))
    pins = release.requirements({"family": family if encoder else {}}, text)
    assert [pin.split("==")[0] for pin in pins] == [*release.REQUIREMENTS, *packages]


def test_a_family_may_name_its_outputs() -> None:
    columns = release.signature(TABLE, ("row", "column")).outputs
    assert {column.name: column.type.name for column in columns} == {"row": "double", "column": "double"}


@pytest.mark.slow
def test_served_over_http(table: Any, free_port: int) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"MLFLOW_TRACKING_URI": store_uri(), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    server = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "mlflow",
            "models",
            "serve",
            "-m",
            "models:/houses-mlp/1",
            "--env-manager",
            "local",
            "--host",
            "127.0.0.1",
            "--port",
            str(free_port),
        ],
        cwd="/",
        start_new_session=True,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        question = json.dumps({"dataframe_split": {"columns": ["rooms", "age", "tax"], "data": [[5.0, 30.0, 100.0]]}})
        request = urllib.request.Request(
            f"http://127.0.0.1:{free_port}/invocations", question.encode(), {"Content-Type": "application/json"}
        )
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(request, timeout=30) as response:
                    answer = json.loads(response.read())
                break
            except OSError:
                assert server.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.3)
        with torch.inference_mode():
            expected = table(torch.zeros(1, 3)).item() * 40 + 200
        assert answer["predictions"][0]["prediction"] == pytest.approx(expected, rel=1e-6)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()
