"""What a run says about the code, the settings and the data that made it."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neurofleet import paths

VALUE_LIMIT = 6000
"""MLflow's, in characters, for a parameter"""


def code_tags() -> dict[str, str]:
    """`git.commit`, `git.dirty` and `lock.digest` (first 16 hex of the SHA-256 of requirements.lock).

    The code is this package's own checkout; where the package is installed without one, the user's project.  What
    does not exist (no git there, no commit yet, no lock) is called "none".
    """
    checkout = paths.PACKAGE.parents[1]
    code = checkout if (checkout / ".git").exists() else paths.project()
    commit = _git(code, "rev-parse", "HEAD")
    lock = code / "requirements.lock"
    tags = {
        "git.commit": commit or "none",
        "git.dirty": "none" if commit is None else str(bool(_git(code, "status", "--porcelain"))).lower(),
        "lock.digest": hashlib.sha256(lock.read_bytes()).hexdigest()[:16] if lock.is_file() else "none",
    }
    if commit:
        tags["mlflow.source.git.commit"] = commit
    return tags


def _git(folder: Path, *arguments: str) -> str | None:
    """What git answers, or None where there is no git, no repository or no commit."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), "--no-optional-locks", *arguments], capture_output=True, text=True, timeout=10
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted names: {"family": {"width": 64}} -> {"family.width": "64"}; lists stay one value."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = str(value)
    return flat


def shorten(value: str) -> str:
    """MLflow's limit, with a word about what was cut."""
    note = f"... (cut: {len(value)} characters)"
    return value if len(value) <= VALUE_LIMIT else value[: VALUE_LIMIT - len(note)] + note


def dataset_input(record: dict[str, Any]) -> Any:
    """MLflow's entity for a dataset; its page shows the schema's columns and the number of rows."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    spec = record["spec"]
    shape = [-1, *spec["shape"]]
    if spec["kind"] == "tabular":
        columns = [{"type": "double", "name": name, "required": True} for name in spec["inputs"]]
        kind = "double" if spec["task"] == "regression" else "long"
        columns += [{"type": kind, "name": name, "required": True} for name in spec["targets"]]
        schema: dict[str, Any] = {"mlflow_colspec": columns}
    else:
        schema = {
            "mlflow_tensorspec": {
                "features": json.dumps(
                    [
                        {"name": name, "type": "tensor", "tensor-spec": {"dtype": "uint8", "shape": shape}}
                        for name in spec["inputs"]
                    ]
                ),
                "targets": json.dumps(
                    [
                        {"name": name, "type": "tensor", "tensor-spec": {"dtype": "int64", "shape": [-1]}}
                        for name in spec["targets"]
                    ]
                ),
            }
        }
    profile = {
        "num_rows": record["num_rows"],
        "num_elements": record["num_rows"],
        "task": spec["task"],
        "classes": list(spec["classes"]),
        "rows": dict(spec["num_rows"]),
    }
    dataset = Dataset(
        name=record["name"],
        digest=record["digest"],
        source_type="local",
        source=json.dumps({"uri": record["source"]}),
        schema=json.dumps(schema),
        profile=json.dumps(profile),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])
