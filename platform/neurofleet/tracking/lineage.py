"""What a run says about the code and settings that made it."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neurofleet import paths


def code_tags() -> dict[str, str]:
    """`git.commit`, `git.dirty` and `lock.digest` (first 16 hex of the SHA-256 of requirements.lock).

    The code is this package's own checkout; where the package is installed without one, the user's project.  What
    does not exist (no git there, no commit yet, no lock) is called "none".
    """
    checkout = paths.PACKAGE.parents[1]
    code = checkout if (checkout / ".git").exists() else paths.project()
    commit = _git(code, "rev-parse", "HEAD")
    lock = code / "requirements.lock"
    tags = {"git.commit": commit or "none",
            "git.dirty": "none" if commit is None else str(bool(_git(code, "status", "--porcelain"))).lower(),
            "lock.digest": hashlib.sha256(lock.read_bytes()).hexdigest()[:16] if lock.is_file() else "none"}
    if commit:
        tags["mlflow.source.git.commit"] = commit
    return tags


def _git(folder: Path, *arguments: str) -> str | None:
    """What git answers, or None where there is no git, no repository or no commit."""
    try:
        answer = subprocess.run(["git", "-C", str(folder), "--no-optional-locks", *arguments],
                                capture_output=True, text=True, timeout=10)
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
