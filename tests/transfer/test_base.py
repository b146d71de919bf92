"""A base is kept once, by what it is, and read back as it was or not at all."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from neurofleet import paths
from neurofleet.errors import CheckpointError, ConfigError
from neurofleet.spec import DataSpec
from neurofleet.transfer import base as bases
from neurofleet.transfer.base import Base


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Base:
    monkeypatch.setenv("NEUROFLEET_HOME", str(tmp_path))
    monkeypatch.setattr(bases, "_latest", {})
    spec = DataSpec.load(paths.data() / "wine" / "spec.json")
    weights = {"one": torch.randn(3, 2), "two": torch.arange(4), "three": torch.tensor(1.5, dtype=torch.float64)}
    return Base(uri="runs:/1", name="mine", encoder={"_target_": "x"}, spec=spec, weights=weights)


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As another process is, which has read nothing."""
    monkeypatch.setattr(bases, "_latest", {})


def test_what_was_kept_is_found_again(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = bases.keep(base)
    for _ in range(2):
        found = bases.weights(digest, base.uri)
        assert found.keys() == base.weights.keys()
        assert all(
            torch.equal(found[name], one) and found[name].dtype is one.dtype for name, one in base.weights.items()
        )
        forget(monkeypatch)
    assert bases.spec(digest, base.uri) == base.spec
    assert {path.name for path in (paths.home() / "bases" / digest).iterdir()} == {"weights.safetensors", "spec.json"}


def test_the_digest_is_of_weights_and_spec_and_nothing_else(base: Base) -> None:
    digest = bases.keep(base)
    assert bases.keep(dataclasses.replace(base, uri="other", name="other", tags={"a": "b"})) == digest
    shuffled = dict(reversed(base.weights.items()))
    assert bases.keep(dataclasses.replace(base, weights=shuffled)) == digest
    assert bases.keep(dataclasses.replace(base, weights={**base.weights, "two": torch.arange(4) + 1})) != digest
    other = dataclasses.replace(base.spec, input_mean=(1.0,) * 13)
    assert bases.keep(dataclasses.replace(base, spec=other)) != digest
    assert len(list((paths.home() / "bases").iterdir())) == 3


def test_a_base_that_is_not_here_or_damaged_is_named(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = bases.keep(base)
    forget(monkeypatch)
    file = paths.home() / "bases" / digest / "weights.safetensors"
    payload = bytearray(file.read_bytes())
    payload[-1] ^= 1
    file.write_bytes(payload)
    with pytest.raises(ConfigError, match=r"is damaged: its sha256 is not .*base=runs:/1"):
        bases.weights(digest, base.uri)
    file.unlink()
    for read in (bases.weights, bases.spec):
        with pytest.raises(
            ConfigError, match=r"needs to lie in .* and does not; fine-tune from it again, base=runs:/1"
        ):
            read(digest, base.uri)


def test_what_a_killed_process_left_is_written_again(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = bases.keep(base)
    folder = paths.home() / "bases" / digest
    (folder / "weights.safetensors").unlink()
    (folder / "spec.json").write_text("{")
    assert bases.keep(base) == digest
    forget(monkeypatch)
    assert bases.spec(digest, base.uri) == base.spec
    assert torch.equal(bases.weights(digest, base.uri)["one"], base.weights["one"])


def test_a_folder_that_cannot_be_written_is_named(base: Base) -> None:
    (paths.home() / "bases").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"cannot keep the base in .*; free space or mend the folder"):
        bases.keep(base)
