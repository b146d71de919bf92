"""A base read from files is what was trained; whatever else lies there is refused by name."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from neurofleet import checkpoint, run
from neurofleet import experiment as experiments
from neurofleet.errors import CheckpointError, ConfigError
from neurofleet.transfer.order import FINETUNED
from neurofleet.transfer.stored import compare, need_fit, stored

FILES = ("weights.safetensors", "spec.json", "experiment.yaml")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two epochs with a checkpoint after each."""
    folder = tmp_path_factory.mktemp("trained")
    experiment = experiments.compose(["family=mlp", "data=wine", "family.hidden=[8]", "trainer.max_epochs=2"])
    return run.run(experiment, folder=folder).folder


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copy"))


@pytest.mark.parametrize("length", [0x0280, 0x0480])
def test_a_header_whose_length_looks_like_a_pickle_is_none(copied: Path, length: int) -> None:
    file = copied / "weights.safetensors"
    tensors = load_file(file)
    header = int.from_bytes(checkpoint.encode(tensors, {"note": ""})[:8], "little")
    padding = length + (0x10000 if header > length else 0) - header
    payload = checkpoint.encode(tensors, {"note": "x" * padding})
    assert payload[:2] == length.to_bytes(2, "little")
    file.write_bytes(payload)
    assert set(stored(copied, uri="runs:/1").weights) == set(tensors)


def test_a_run_is_a_base_that_answers_as_it_did(trained: Path) -> None:
    base = stored(trained, uri="runs:/1", tags={"base.run_id": "1"})
    assert (base.uri, base.name, base.spec.name) == ("runs:/1", "wine-mlp", "wine")
    assert base.tags == {"base.uri": "runs:/1", "base.data": "wine", "base.run_id": "1"}
    module = experiments.build(base.encoder, "family", spec=base.spec)
    module.load_state_dict(base.weights, strict=True)
    saved = load_file(trained / "predictions.safetensors")
    assert saved["outputs"].shape == (len(saved["targets"]), 3)
    assert base.weights.keys() == load_file(trained / "weights.safetensors").keys()
    assert need_fit(module.state_dict(), base.weights, heads=(), uri=base.uri).missing == ()


def test_a_checkpoint_gives_the_weights_of_its_step(trained: Path) -> None:
    newest = sorted((trained / "checkpoints").glob("*.safetensors"))[-1]
    base = stored(newest, uri=str(newest))
    expected = {
        name.removeprefix("model."): tensor for name, tensor in load_file(newest).items() if name.startswith("model.")
    }
    assert base.weights.keys() == expected.keys() == load_file(trained / "weights.safetensors").keys()
    assert all(torch.equal(base.weights[name], expected[name]) for name in expected)


def test_a_file_of_weights_brings_its_neighbours(copied: Path) -> None:
    file = copied / "weights.safetensors"
    assert stored(file, uri=str(file)).encoder["_target_"].endswith(".MLP")
    file.rename(copied / "other.safetensors")
    assert stored(copied / "other.safetensors", uri="other").spec.name == "wine"
    shutil.rmtree(copied / "checkpoints")
    with pytest.raises(ConfigError, match=r"lacking weights.safetensors; a run leaves them in .*/runs/ID"):
        stored(copied, uri="copied")


@pytest.mark.parametrize("lacking", FILES)
def test_what_lacks_is_named(copied: Path, lacking: str) -> None:
    (copied / lacking).unlink()
    with pytest.raises(ConfigError, match=rf"lacking {lacking}; .*(checkpoints/step-|a run leaves them in )"):
        stored(copied, uri="copied")


def test_a_place_that_is_not_there(tmp_path: Path) -> None:
    for place in (tmp_path / "none", tmp_path / "none.safetensors"):
        with pytest.raises(ConfigError, match=r"needs a folder or a .safetensors file that is there"):
            stored(place, uri="none")


def test_the_base_of_a_fine_tuned_network_is_its_encoder(copied: Path, trained: Path) -> None:
    described = yaml.safe_load((copied / "experiment.yaml").read_text())
    first = stored(trained, uri="first")
    encoder_spec = json.loads((copied / "spec.json").read_text()) | {"name": "older"}
    family = {"_target_": FINETUNED, "encoder": described["family"], "encoder_spec": encoder_spec}
    described["family"] = family | {"base": {"uri": "models:/older-mlp/2"}}
    (copied / "experiment.yaml").write_text(yaml.safe_dump(described))
    weights = {f"encoder.{name}": tensor for name, tensor in first.weights.items()}
    save_file(weights | {"head.weight": torch.zeros(3)}, copied / "weights.safetensors")
    base = stored(copied, uri="second")
    assert (base.name, base.spec.name, base.tags["base.data"]) == ("wine-mlp", "older", "wine")
    assert base.encoder == first.encoder
    assert base.weights.keys() == first.weights.keys()
    save_file({"head.weight": torch.zeros(3)}, copied / "weights.safetensors")
    with pytest.raises(ConfigError, match=r"it holds the head alone; .* base=models:/older-mlp/2"):
        stored(copied, uri="second")
    save_file({"encoder.0.base_layer.weight": torch.zeros(3)}, copied / "weights.safetensors")
    with pytest.raises(ConfigError, match=r"adapters that are not merged yet"):
        stored(copied, uri="second")


@pytest.mark.parametrize(
    ("section", "content", "lacking"),
    [
        ("family", 3, "family._target_"),
        ("data", {}, "data.name"),
        ("family", {"_target_": FINETUNED}, "family.encoder._target_"),
        ("family", {"_target_": FINETUNED, "encoder": {"_target_": FINETUNED}}, "family.encoder_spec.kind"),
    ],
)
def test_an_experiment_that_lacks_something(copied: Path, section: str, content: object, lacking: str) -> None:
    file = copied / "experiment.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {section: content}))
    with pytest.raises(ConfigError, match=rf"experiment.yaml needs {lacking}, and lacks it"):
        stored(copied, uri="copied")


def test_config_is_data_and_not_code(copied: Path) -> None:
    file = copied / "experiment.yaml"
    text = file.read_text()
    file.write_text(text.replace("neurofleet.families.mlp.MLP", "os.system"))
    with pytest.raises(ConfigError, match=r"allowed target, got 'os.system'"):
        stored(copied, uri="evil")
    file.write_text(text + "\nother: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(ConfigError, match="as YAML"):
        stored(copied, uri="evil")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"name": 3}'])
def test_a_spec_that_is_none(copied: Path, text: str) -> None:
    (copied / "spec.json").write_text(text)
    with pytest.raises(ConfigError, match=r"spec.json needs to hold the spec of the data"):
        stored(copied, uri="copied")


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        raise AssertionError("was pickled")


@pytest.mark.parametrize("name", ["weights.pt", "weights.pth", "weights.ckpt", "weights.bin", "weights.pkl"])
def test_a_pickle_is_refused_and_its_conversion_works(copied: Path, name: str) -> None:
    weights = load_file(copied / "weights.safetensors")
    (copied / "weights.safetensors").unlink()
    torch.save({"state_dict": weights} if name.endswith(".ckpt") else weights, copied / name)
    for place in (copied / name, copied):
        with pytest.raises(ConfigError, match="convert it") as refused:
            stored(place, uri=name)
    command = next(line for line in str(refused.value).splitlines() if line.startswith("  python "))
    if name == "weights.ckpt":  # starting torch takes seconds: the longest form stands for all
        subprocess.run([sys.executable, *shlex.split(command)[1:]], check=True, timeout=120)
        found = stored(copied, uri=name).weights
        assert all(torch.equal(found[key], weights[key]) for key in weights)


def test_a_pickle_under_a_better_name_is_refused(copied: Path) -> None:
    torch.save({"a": torch.zeros(1)}, copied / "weights.safetensors")
    with pytest.raises(ConfigError, match="a pickle, which can run code"):
        stored(copied, uri="disguised")


def test_damage_is_found(copied: Path) -> None:
    file = copied / "weights.safetensors"
    payload = file.read_bytes()
    for damaged in (payload[:-9], payload[:20], b"", b"\xff" * 64):
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"weights.safetensors is damaged: "):
            stored(copied, uri="copied")
    newest = sorted((copied / "checkpoints").glob("*.safetensors"))[-1]
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    digest = checkpoint.listed(newest)
    assert digest is not None
    with pytest.raises(CheckpointError, match=f"is damaged: its sha256 is not {digest}"):
        stored(newest, uri="newest")


def test_comparison_of_weights() -> None:
    expected = {"a.w": torch.zeros(2, 3), "a.b": torch.zeros(2), "head.w": torch.zeros(4), "header": torch.zeros(())}
    given = {"a.w": torch.ones(2, 3), "a.b": torch.ones(3), "head.b": torch.ones(4), "readout": torch.ones(1)}
    assert compare(expected, given) == (("a.w",), ("head.w", "header"), ("head.b", "readout"), ("a.b",))
    with pytest.raises(ConfigError) as refused:
        need_fit(expected, given, heads=("head",), uri="models:/x/1")
    lines = str(refused.value).splitlines()
    assert lines[1:5] == [
        "  weight            needs       got",
        "  header   missing  one number  -",
        "  a.b      misfit   2           3",
        "  readout  extra    -           1",
    ]
    assert "strict=false" in lines[-1]
    assert need_fit(expected, given, heads=("head",), uri="x", allow_missing=True).kept == ("a.w",)
    with pytest.raises(ConfigError, match="weights of another network"):
        need_fit(expected, {"other": torch.ones(1)}, heads=("head",), uri="x", allow_missing=True)


def test_heads_may_lack_be_left_over_or_misfit() -> None:
    expected = {"a": torch.zeros(2), "head.w": torch.zeros(4), "head.b": torch.zeros(1)}
    compared = need_fit(
        expected, {"a": torch.ones(2), "head.w": torch.ones(9), "head.c": torch.ones(1)}, heads=("head",), uri="x"
    )
    assert compared == (("a",), ("head.b",), ("head.c",), ("head.w",))


def test_a_long_table_is_cut() -> None:
    expected = {f"layer{index}": torch.zeros(1) for index in range(40)}
    with pytest.raises(ConfigError, match="and 27 more") as refused:
        need_fit(expected, {"layer0": torch.zeros(1)}, heads=(), uri="x")
    assert len(str(refused.value).splitlines()) < 20
