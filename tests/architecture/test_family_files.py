"""A family is one file, one config and one test of the same name, in both directions."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from neurofleet.data.catalog import NEEDS


def names(folder: Path, pattern: str, prefix: str = "") -> set[str]:
    """The stems of the public files in `folder`, without `prefix`."""
    stems = {path.stem.removeprefix(prefix) for path in folder.glob(pattern)}
    return {stem for stem in stems if not stem.startswith("_")}


@pytest.fixture(scope="module")
def families(project_root: Path) -> set[str]:
    found = names(project_root / "platform" / "neurofleet" / "families", "*.py")
    assert {"mlp", "cnn"} <= found
    return found


def test_each_family_has_one_config(project_root: Path, families: set[str]) -> None:
    assert names(project_root / "configs" / "family", "*.yaml") == families


def test_each_family_has_one_test(project_root: Path, families: set[str]) -> None:
    assert names(project_root / "tests" / "families", "test_*.py", prefix="test_") == families


def test_each_dataset_has_one_config_and_one_stage(project_root: Path) -> None:
    staged = set(yaml.safe_load((project_root / "dvc.yaml").read_text())["stages"]["prepare"]["foreach"])
    assert names(project_root / "configs" / "data", "*.yaml") - set(NEEDS) == staged
