"""The next tracker's child, started before its order is known."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from typing import IO

from neurofleet import paths

_waiting: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = []
"""a child that imports MLflow while its order is not known yet"""


def warm_up() -> None:
    """Start the next tracker's child now: it imports MLflow while the caller imports what it needs."""
    if not _waiting:
        _waiting.append(_start_child())


def _start_child() -> tuple[subprocess.Popen[bytes], IO[bytes]]:
    noise: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the child)
    path = [str(paths.PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "neurofleet.tracking"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=noise,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(path)),
        start_new_session=True,
    )
    return child, noise


def take() -> tuple[subprocess.Popen[bytes], IO[bytes]]:
    """A child that waits for its order, and the file that takes its noise."""
    return _waiting.pop() if _waiting else _start_child()
