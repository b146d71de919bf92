"""What a user types names the network that was trained; what names nothing is answered with what there is."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from neurofleet import experiment as experiments
from neurofleet import paths, release, run
from neurofleet.errors import ConfigError, UnreachableError
from neurofleet.release import listing, registry
from neurofleet.release.bases import resolve
from neurofleet.tracking import Tracker
from neurofleet.transfer import order as orders
from neurofleet.transfer.base import Base

# MLflow 3.17 with SQLAlchemy 2.1, and MLflow's own annotations when mlflow.pyfunc is imported
pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]


def is_the_network(base: Base, folder: Path) -> bool:
    weights = load_file(folder / "weights.safetensors")
    same = base.weights.keys() == weights.keys()
    return same and all(torch.equal(base.weights[name], weights[name]) for name in weights)


@pytest.fixture
def champion(registered: Any) -> Iterator[None]:
    with registry.opened() as client:
        client.set_registered_model_alias("wine-mlp", "champion", "1")
    yield
    with registry.opened() as client:
        client.delete_registered_model_alias("wine-mlp", "champion")


@pytest.mark.parametrize("uri", ["models:/wine-mlp/1", "models:/wine-mlp/latest", "models:/wine-mlp@champion"])
def test_a_registered_model(registered: Any, champion: None, uri: str) -> None:
    base = resolve(uri)
    assert is_the_network(base, registered.folder)
    assert (base.uri, base.name, base.spec.name) == ("models:/wine-mlp/1", "wine-mlp", "wine")
    assert base.encoder["_target_"] == "neurofleet.families.mlp.MLP"
    assert base.tags == {
        "base.uri": "models:/wine-mlp/1",
        "base.version": "1",
        "base.run_id": registered.run_id,
        "base.data": "wine",
        "base.data.digest": "ab" * 16,
    }


def test_a_run(trained: Any) -> None:
    base = resolve(f"runs:/{trained.run_id}")
    assert is_the_network(base, trained.folder)
    assert (base.uri, base.name) == (f"runs:/{trained.run_id}", "wine-mlp")
    assert base.tags["base.run_id"] == trained.run_id
    assert base.tags["base.data.digest"] == "ab" * 16


def test_a_run_of_which_only_mlflow_knows(trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = resolve(f"runs:/{trained.run_id}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{paths.home() / 'mlflow' / 'mlflow.db'}")
    monkeypatch.setenv("NEUROFLEET_HOME", str(tmp_path))
    elsewhere = resolve(f"runs:/{trained.run_id}")
    assert is_the_network(elsewhere, trained.folder)
    assert (elsewhere.uri, elsewhere.name, elsewhere.tags) == (here.uri, here.name, here.tags)


def test_what_does_not_lie_here_is_fetched_and_not_left(
    registered: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.setattr("mlflow.utils.uri.is_local_uri", lambda *_, **__: False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    fetch, fetched = mlflow.artifacts.download_artifacts, []

    def spy(source: str, *, dst_path: str) -> str:
        fetched.append((Path(source).name, Path(dst_path).parent))
        return fetch(source, dst_path=dst_path)

    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", spy)
    database = paths.home() / "mlflow" / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    monkeypatch.setenv("NEUROFLEET_HOME", str(tmp_path / "other"))
    for uri in ("models:/wine-mlp/1", f"runs:/{registered.run_id}"):
        assert is_the_network(resolve(uri), registered.folder)
        assert list(tmp_path.iterdir()) == []
    assert sorted(set(fetched)) == sorted((name, tmp_path) for name in release.FILES)
    assert len(fetched) == 6


def test_a_path(trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [newest] = sorted((trained.folder / "checkpoints").glob("*.safetensors"))[-1:]
    for place in (trained.folder, trained.folder / "weights.safetensors", newest):
        base = resolve(str(place))
        assert is_the_network(base, trained.folder)  # one epoch: its end is the checkpoint
        assert base.uri == str(place.resolve())
        assert (base.tags["base.run_id"], base.tags["base.data.digest"]) == (trained.run_id, "ab" * 16)
    for name in ("weights.safetensors", "spec.json", "experiment.yaml"):
        shutil.copy(trained.folder / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    base = resolve("weights.safetensors")
    assert base.tags == {"base.uri": str(tmp_path.resolve() / "weights.safetensors"), "base.data": "wine"}


def test_a_run_from_another_store_has_no_digest(trained: Any, tmp_path: Path) -> None:
    foreign = shutil.copytree(trained.folder, tmp_path / "foreign")
    about = foreign / "tracking" / "run.json"
    about.write_text(about.read_text().replace(trained.run_id, "0" * 32))
    base = resolve(str(foreign))
    assert base.tags == {"base.uri": str(foreign.resolve()), "base.data": "wine", "base.run_id": "0" * 32}


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("models:/wine-mpl/1", "there is no registered model 'wine-mpl'; did you mean wine-mlp?"),
        ("models:/wine-mlp", r"needs a version or an alias, models:/wine-mlp/1; .*versions 1; .*@champion \(version 1"),
        ("models:/wine-mlp/7", r"no version '7'; it has versions 1; aliases @champion \(version 1\)"),
        ("models:/wine-mlp/Production", "no version 'Production'"),
        ("models:/wine-mlp@champoin", r"no alias 'champoin'; did you mean champion\? it has versions 1"),
        ("models:/", "needs models:/NAME/VERSION or models:/NAME@ALIAS"),
        ("models:/a/1/weights", "needs models:/NAME/VERSION or models:/NAME@ALIAS"),
        ("runs:/xyz", "needs runs:/ID with 32 hexadecimal digits"),
        ("runs:/" + "f" * 32, "there is no run f{32} here or in MLflow; known: "),
        ("model:/wine-mlp/1", r"there is no base 'model:/wine-mlp/1'; a base is one of\n  models:/NAME/3"),
        ("s3://bucket/weights", "a base is one of"),
        ("wine-mlp", "a base is one of"),
        ("", "a base is one of"),
        ("pretrained/", "needs a name behind pretrained/"),
        ("pretrained/minilmm", "did you mean pretrained/minilm"),
    ],
)
def test_what_names_nothing(champion: None, uri: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as refused:
        resolve(uri)
    assert max(map(len, str(refused.value).splitlines()[1:]), default=0) <= 75


def test_a_misspelt_path_has_neighbours_only_where_some_are_near(tmp_path: Path) -> None:
    (tmp_path / "digits_run").mkdir()
    with pytest.raises(ConfigError, match=rf"did you mean {tmp_path}/digits_run\?; a base is one of"):
        resolve(str(tmp_path / "digit_run"))
    with pytest.raises(ConfigError, match=r"there is no base '[^']*/another'; a base is one of"):
        resolve(str(tmp_path / "another"))


def test_a_file_that_is_not_there_has_neighbours(trained: Any) -> None:
    with pytest.raises(ConfigError, match=r"did you mean .*/weights\.safetensors"):
        resolve(str(trained.folder / "weigths.safetensors"))


def test_a_model_of_somebody_else(home: Path, tmp_path: Path) -> None:
    (tmp_path / "model.pkl").write_bytes(b"\x80\x04.")
    with registry.opened() as client:
        client.create_registered_model("foreign")
        client.create_model_version("foreign", tmp_path.as_uri())
    says = r"among the artifacts of models:/foreign/1, lacking weights.safetensors, .* that neurofleet registered"
    with pytest.raises(ConfigError, match=says):
        resolve("models:/foreign/1")


def test_an_empty_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEUROFLEET_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="no registered model 'wine-mlp'; there are none yet"):
        resolve("models:/wine-mlp/1")


def test_a_server_that_is_away(free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port}")
    with pytest.raises(UnreachableError, match="MLFLOW_TRACKING_URI"):
        resolve("models:/wine-mlp/1")


@pytest.mark.parametrize("method", ["frozen", "full"])
def test_what_was_fine_tuned_is_a_base_again(registered: Any, method: str) -> None:
    """The encoder of a released fine-tuned network, which takes the inputs that it took at first."""
    first = resolve("models:/wine-mlp/1")
    overrides = ["base=models:/wine-mlp/1", "data=wine", f"method={method}", "trainer.max_epochs=1"]
    settings = experiments.plain(experiments.composed("finetune", overrides))
    order = orders.Start(first).order(settings)
    tracker = Tracker.start(experiment="wine", run_name="a run", tags={}, params={})
    folder = run.run(order.experiment, folder=paths.run(tracker.run_id)).folder
    tracker.finish()
    number = release.register(tracker.run_id, folder, f"wine-{method}", {"data.digest": "cd" * 16, **order.tags})
    again = resolve(f"models:/wine-{method}/{number}")
    assert (again.encoder, again.spec) == (first.encoder, first.spec)
    trained = load_file(folder / "weights.safetensors")
    assert again.weights.keys() == {name.removeprefix("encoder.") for name in trained if name.startswith("encoder.")}
    same = [torch.equal(again.weights[name], first.weights[name]) for name in again.weights]
    assert same
    assert all(same) is (method == "frozen")
    assert again.tags["base.data.digest"] == "cd" * 16
    [tree] = listing.family_tree("wine-mlp", [one for one in known() if one.name in ("wine-mlp", f"wine-{method}")])
    assert [str(child.label) for child in tree.children] == [f"wine-{method}/{number}  wine"]
    newest = sorted((folder / "checkpoints").glob("*.safetensors"))[-1]
    if method == "frozen":  # a checkpoint of it holds the head alone
        with pytest.raises(ConfigError, match=r"it holds the head alone; .* base=models:/wine-mlp/1$"):
            resolve(str(newest))
    else:
        assert resolve(str(newest)).weights.keys() == again.weights.keys()


def known() -> list[registry.Version]:
    with registry.opened() as client:
        return registry.versions(client)
