from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from neurofleet.data import catalog, digest
from neurofleet.data.digest import file_digest, folder_digest
from neurofleet.errors import DataError


def test_a_file_digest_is_its_md5(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert file_digest(tmp_path / "file") == "900150983cd24fb0d6963f7d28e17f72"


def test_the_folder_digest_is_the_one_that_dvc_computes(tmp_path: Path) -> None:
    """On a tree with a subfolder, names that sort unlike their case, an empty file and a name that JSON escapes."""
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    for name in ("b", "B", "sub/a", "sub.a", "grün"):
        (folder / name).write_text(name)
    (folder / "empty").touch()
    code = (
        "import sys; from dvc_data.hashfile.build import build; from dvc_data.hashfile.db.local import LocalHashFileDB;"
        "from dvc_objects.fs.local import LocalFileSystem as F; fs = F();"
        "odb = LocalHashFileDB(fs, sys.argv[2], hash_name='md5');"
        "print(build(odb, sys.argv[1], fs, 'md5')[2].hash_info.value)"
    )
    arguments = [sys.executable, "-c", code, str(folder), str(tmp_path / "cache")]
    theirs = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout.strip()
    assert theirs == folder_digest(folder) + ".dir"


@pytest.mark.parametrize("name", ["digits", "mnist5k", "breast_cancer", "diabetes", "wine", "email"])
def test_the_digest_of_a_prepared_dataset_is_that_of_dvc_lock(
    name: str, project_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project_root)
    assert folder_digest(project_root / "data" / name) == catalog.locked_digests()[name]


@pytest.fixture
def tracked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset of a project whose dvc.lock names it, and whose DVC cache lists its files."""
    folder = tmp_path / "data" / "digits"
    folder.mkdir(parents=True)
    for name in ("train.parquet", "spec.json"):
        (folder / name).write_text(name)
    whole = digest.folder_digest(folder)
    (tmp_path / "dvc.yaml").touch()
    outs = f"    outs:\n    - path: data/digits\n      md5: {whole}.dir\n"
    (tmp_path / "dvc.lock").write_text(f"schema: '2.0'\nstages:\n  prepare@digits:\n{outs}")
    monkeypatch.chdir(tmp_path)
    return folder


def listing(folder: Path) -> str:
    entries = [{"md5": digest.file_digest(path), "relpath": path.name} for path in sorted(folder.iterdir())]
    return json.dumps(entries, sort_keys=True)


def test_what_is_not_as_dvc_lock_says_is_refused_and_the_file_named(tracked: Path) -> None:
    whole = digest.folder_digest(tracked)
    digest.need_locked("digits", tracked, whole)
    cached = tracked.parents[1] / ".dvc" / "cache" / "files" / "md5" / whole[:2] / f"{whole[2:]}.dir"
    cached.parent.mkdir(parents=True)
    cached.write_text(listing(tracked))
    (tracked / "train.parquet").write_text("train.parqueT")
    changed = digest.folder_digest(tracked)
    with pytest.raises(DataError, match=rf"dvc.lock says, {whole}, got {changed} \({tracked}/train.parquet\); make"):
        digest.need_locked("digits", tracked, changed)
    digest.need_locked("unknown to dvc.lock", tracked, changed)
    digest.need_locked("digits", tracked.parents[2], changed)  # no dataset of the project
    cached.unlink()
    with pytest.raises(DataError, match="cannot be told without DVC's cache"):
        digest.need_locked("digits", tracked, changed)
