"""The wheel built from the repository works where the repository is not: its configs and pipelines travel with it."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(project_root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("neurofleet-*.whl"))


@pytest.fixture(scope="module")
def commands(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of an environment with the wheel and, by a path file, the third parties of this environment.

    A path file adds a folder and not the path files in it, so that the editable installation stays out of reach.
    """
    folder = tmp_path_factory.mktemp("outside")
    venv.create(folder, symlinks=True, with_pip=False)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "third_parties.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", "--ignore-installed", str(wheel)], check=True)
    return python.parent


def outside(command: list[str | Path], folder: Path, root: Path) -> str:
    """Run `command` in `folder`, with the data but nothing else of the repository in sight; what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"NEUROFLEET_HOME": str(folder / "home"), "NEUROFLEET_DATA": str(root / "data")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_carries_what_the_repository_has(wheel: Path, project_root: Path) -> None:
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = set()
    for source in ("platform/neurofleet", "configs", "pipelines"):
        files = [
            path for path in (project_root / source).rglob("*") if path.is_file() and "__pycache__" not in path.parts
        ]
        assert files, source
        expected |= {path.relative_to(project_root).as_posix().split("platform/neurofleet/")[-1] for path in files}
    assert packed == {f"neurofleet/{name}" for name in expected}


def test_the_package_is_the_one_of_the_wheel(commands: Path, tmp_path: Path, project_root: Path) -> None:
    code = "import neurofleet; from neurofleet import paths; print(neurofleet.__file__, paths.shipped('configs'))"
    for found in outside([commands / "python", "-c", code], tmp_path, project_root).split():
        assert Path(found).is_relative_to(commands.parent)


def test_help_outside_the_repository(commands: Path, tmp_path: Path, project_root: Path) -> None:
    assert "submit" in outside([commands / "neurofleet", "--help"], tmp_path, project_root)


def test_training_outside_the_repository(commands: Path, tmp_path: Path, project_root: Path) -> None:
    overrides = ["family=mlp", "data=digits", "trainer.max_epochs=2", "trainer.register=false"]
    outside([commands / "neurofleet", "train", *overrides], tmp_path, project_root)
    runs = list((tmp_path / "home" / "runs").iterdir())
    assert len(runs) == 1
    assert (runs[0] / "weights.safetensors").stat().st_size > 0
    assert (runs[0] / "experiment.yaml").is_file()
