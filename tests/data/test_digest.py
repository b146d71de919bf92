from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from neurofleet.data import catalog
from neurofleet.data.digest import file_digest, folder_digest


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
