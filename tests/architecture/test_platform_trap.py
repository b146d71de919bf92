"""`platform/` is a source root.  An `__init__.py` there would shadow the standard library's `platform`."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

WHERE = "import platform; print(platform.__file__); print(platform.system())"


def test_the_source_root_is_not_a_package(project_root: Path) -> None:
    assert (project_root / "platform" / "neurofleet" / "__init__.py").is_file()
    assert not (project_root / "platform" / "__init__.py").exists()
    assert sorted(path.name for path in (project_root / "platform").glob("*.py")) == []


@pytest.mark.parametrize(
    "python_path", [None, "platform", ".", ".:platform"], ids=["unset", "platform", "root", "both"]
)
def test_python_in_the_repository_gets_the_standard_library(project_root: Path, python_path: str | None) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if python_path is not None:
        environment["PYTHONPATH"] = python_path
    done = subprocess.run(
        [sys.executable, "-c", WHERE], cwd=project_root, env=environment, capture_output=True, text=True, check=True
    )
    found, system = done.stdout.splitlines()
    assert Path(found) == Path(sysconfig.get_path("stdlib")) / "platform.py"
    assert system


def test_the_trap_is_real(tmp_path: Path) -> None:
    """The test above can fail: the one file that the rule forbids does shadow the standard library."""
    (tmp_path / "platform").mkdir()
    (tmp_path / "platform" / "__init__.py").touch()
    done = subprocess.run([sys.executable, "-c", WHERE], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert str(tmp_path / "platform" / "__init__.py") in done.stdout
