"""Imports run one way, third parties stay behind one door each, and training needs four packages alone."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from neurofleet import experiment

# import-linter sees a third party as one module; which part of it belongs behind which door is held here.
DOORS = {
    "ray.train": {"launch"},
    "ray.tune": {"study"},
    "ray.job_submission": {"cluster"},
    "ray.dashboard": {"cluster"},
    "mlflow.pyfunc": {"release", "tracking"},
}
BARE_MACHINE = ("torch", "pytorch-lightning", "torchmetrics", "pyarrow")
ABSENT = ("ray", "mlflow", "hydra", "omegaconf", "dvc", "optuna")


def imported_names(source: str) -> Iterator[str]:
    """Every dotted name that a module imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_import_contracts(project_root: Path) -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-logo", "--no-cache"]
    done = subprocess.run(command, cwd=project_root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"Contracts: [1-9]\d* kept, 0 broken", done.stdout), done.stdout


def test_each_part_of_a_third_party_has_its_door(project_root: Path) -> None:
    package = project_root / "platform" / "neurofleet"
    strays = []
    for path in package.rglob("*.py"):
        room = path.relative_to(package).parts[0].removesuffix(".py")
        for name in imported_names(path.read_text()):
            for part, doors in DOORS.items():
                if (name == part or name.startswith(part + ".")) and room not in doors:
                    strays.append(f"{path.relative_to(project_root)} imports {name}, known to {sorted(doors)} alone")
    assert strays == []


def requirements_of(names: tuple[str, ...]) -> dict[str, importlib.metadata.Distribution]:
    """The distributions `names` and everything that they need, by canonical name."""
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = [Requirement(name) for name in names]
    walked: set[tuple[str, str]] = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in walked:
                continue
            walked.add((name, extra))
            found[name] = importlib.metadata.distribution(name)
            for text in found[name].requires or []:
                needed = Requirement(text)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    waiting.append(needed)
    return found


def make_environment(folder: Path, names: tuple[str, ...]) -> Path:
    """A virtual environment that holds `names`, all that they need, and nothing else; returns its site-packages."""
    venv.create(folder, symlinks=True, with_pip=False)
    site = next(folder.glob("lib/python*/site-packages"))
    for distribution in requirements_of(names).values():
        for file in distribution.files or []:
            top = file.parts[0]
            source = Path(str(distribution.locate_file(top)))
            if top not in ("..", "__pycache__") and not (site / top).exists():
                (site / top).symlink_to(source)
    return site


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory, project_root: Path) -> Path:
    """Python on a machine that has torch, Lightning, torchmetrics and pyarrow only, and this package."""
    folder = tmp_path_factory.mktemp("bare")
    site = make_environment(folder, BARE_MACHINE)
    (site / "neurofleet").symlink_to(project_root / "platform" / "neurofleet")
    return folder / "bin" / "python"


def run_bare(python: Path, code: str, folder: Path) -> str:
    """Run `code` in `folder` with no neighbour of the bare environment in sight; its standard output."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(python), "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_bare_machine_lacks_the_platform(bare_python: Path, tmp_path: Path) -> None:
    code = f"import importlib.util; print([name for name in {ABSENT} if importlib.util.find_spec(name)])"
    assert run_bare(bare_python, code, tmp_path).strip() == "[]"


def test_every_training_module_imports_on_a_bare_machine(bare_python: Path, tmp_path: Path, project_root: Path) -> None:
    package = project_root / "platform" / "neurofleet"
    rooms = [package / "run.py", *(package / "families").glob("*.py"), *(package / "data").glob("*.py")]
    names = [
        ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__") for path in rooms
    ]
    assert {"neurofleet.run", "neurofleet.families.mlp", "neurofleet.data"} <= set(names)
    code = f"import importlib\nfor name in {names}: importlib.import_module(name)\nprint('all')"
    assert run_bare(bare_python, code, tmp_path).strip() == "all"


def test_a_run_on_a_bare_machine(bare_python: Path, tmp_path: Path) -> None:
    """An experiment that was composed elsewhere trains, evaluates and leaves its weights."""
    composed = experiment.compose(["family=mlp", "data=digits", "trainer.max_epochs=3"])
    code = f"""
import json
from pathlib import Path
from neurofleet.run import run
result = run(json.loads({json.dumps(json.dumps(composed))}), folder=Path("run"))
print(json.dumps(result.metrics))
"""
    metrics = json.loads(run_bare(bare_python, code, tmp_path).splitlines()[-1])
    assert metrics["test/accuracy"] > 0.8
    assert (tmp_path / "run" / "experiment.yaml").is_file()
    assert list((tmp_path / "run").glob("weights*"))
