"""Where things lie on disk.

`project` is the nearest folder at or above the working directory that holds a `dvc.yaml`, else the working
directory itself.  Platform state (MLflow database, runs, the marks of a running platform) lies under `home()`.
"""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def project() -> Path:
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / "dvc.yaml").is_file()), here)


def home() -> Path:
    """Platform state: `NEUROFLEET_HOME`, by default `.neurofleet/` in the project."""
    configured = os.environ.get("NEUROFLEET_HOME")
    return Path(configured).expanduser().resolve() if configured else project() / ".neurofleet"


def data() -> Path:
    """The datasets: `NEUROFLEET_DATA`, by default `data/` in the project."""
    configured = os.environ.get("NEUROFLEET_DATA")
    return Path(configured).expanduser().resolve() if configured else project() / "data"


def run(run_id: str) -> Path:
    """The folder of one run: experiment.yaml, checkpoints/, figures/, weights.safetensors."""
    return home() / "runs" / run_id


def shipped(folder: str) -> Path:
    """`configs` or `pipelines`: beside the package in a wheel, at the top of the repository in a checkout."""
    packaged = PACKAGE / folder
    return packaged if packaged.is_dir() else PACKAGE.parents[1] / folder
