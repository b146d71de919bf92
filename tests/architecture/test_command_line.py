"""What is typed often answers at once: nothing heavy is imported before it is used."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "pytorch_lightning", "ray", "mlflow", "hydra", "matplotlib", "pandas", "pyarrow", "numpy", "dvc")

REPORT = """
import json, sys
sys.argv = ["neurofleet", *{arguments}]
try:
    from neurofleet.cli import main
    main()
finally:
    print(json.dumps([name for name in {heavy} if name in sys.modules]), file=sys.stderr)
"""


@pytest.fixture(autouse=True)
def no_jobs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What `jobs` prints must not hang on the jobs that other tests left."""
    monkeypatch.setenv("NEUROFLEET_HOME", str(tmp_path))


def imported_by(arguments: list[str], heavy: tuple[str, ...], folder: Path) -> tuple[str, list[str]]:
    """What `neurofleet ARGUMENTS` prints, and which of `heavy` it had imported at its end."""
    code = REPORT.format(arguments=arguments, heavy=heavy)
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(done.stderr.splitlines()[-1])


@pytest.mark.parametrize("arguments", [["--help"], ["data", "--help"], ["up", "--help"], ["jobs"]], ids=" ".join)
def test_help_imports_nothing_heavy(project_root: Path, arguments: list[str]) -> None:
    shown, found = imported_by(arguments, HEAVY, project_root)
    assert "neurofleet" in shown.lower()
    assert found == []


@pytest.mark.parametrize("arguments", [["train", "--help"], ["train", "--cfg", "job"]], ids=" ".join)
def test_showing_a_config_imports_hydra_alone(project_root: Path, arguments: list[str]) -> None:
    heavy = tuple(name for name in HEAVY if name != "hydra")
    shown, found = imported_by([*arguments, "family=cnn", "data=mnist5k"], heavy, project_root)
    assert "_target_: neurofleet.families" in shown
    assert "textures_efficientnet" not in shown, "an experiment of finetune"
    assert found == []
