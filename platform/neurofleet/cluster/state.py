"""What `up` started, in `home()/platform.json`: addresses and processes of each part of the platform.

A process is known by its pid and the time it started, so that a number that the system gave to somebody else later is
never taken for ours.  Every process that `up` starts also carries the platform's mark in its environment, which its
children inherit: what is marked is ours, whoever its parent has become.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from neurofleet import paths
from neurofleet.errors import ResourceError

MARK = "NEUROFLEET_PLATFORM"
NAMES = ("ray", "mlflow", "keeper")


@dataclasses.dataclass
class Half:
    """One part: `ray`, `mlflow`, or the `keeper` of jobs.

    address:   where users reach it; Ray's is host:port, MLflow's a URL
    session:   the session (in the sense of setsid) that its processes were started in
    processes: pid -> start time in seconds since 1970
    foreign:   it is a server that the user named, which `up` neither starts nor ends
    shared:    it keeps runs in a team's store, and runs here go through it
    """

    address: str
    session: int = 0
    processes: dict[int, float] = dataclasses.field(default_factory=dict)
    foreign: bool = False
    shared: bool = False


@dataclasses.dataclass
class Platform:
    mark: str
    dashboard: str
    ray_folder: str
    ray: Half
    mlflow: Half
    keeper: Half = dataclasses.field(default_factory=lambda: Half(""))

    def save(self) -> None:
        file = location()
        written = file.with_suffix(".new")
        written.write_text(json.dumps(dataclasses.asdict(self), indent=2))
        written.chmod(0o600)
        written.replace(file)


def location() -> Path:
    return paths.home() / "platform.json"


def load() -> Platform | None:
    """What stands in platform.json, or None if nothing was started."""
    try:
        stored = json.loads(location().read_text())
    except FileNotFoundError:
        return None
    for name in NAMES:
        half = stored.get(name, {"address": "", "processes": {}})  # an older platform has no keeper
        half["processes"] = {int(pid): begun for pid, begun in half["processes"].items()}  # keys of JSON are text
        stored[name] = Half(**half)
    return Platform(**stored)


def new_mark() -> str:
    return secrets.token_hex(8)


@contextlib.contextmanager
def exclusive() -> Iterator[None]:
    """One `up` or `down` at a time for one home."""
    home = paths.home()
    home.mkdir(parents=True, exist_ok=True)
    with open(home / ".platform.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ResourceError(
                f"one `up` or `down` at a time for {home}, and another is at work; wait for it"
            ) from None
        yield


def port(name: str, configured: int | None, default: int) -> int:
    """A port: what was asked for, else the environment's NEUROFLEET_<NAME>_PORT, else the default."""
    variable = port_variable(name)
    text = os.environ.get(variable, "") if configured is None else str(configured)
    if not text:
        return default
    if not text.isdigit() or not 1024 <= int(text) <= 65535:
        raise ResourceError(f"{variable} (--{name}-port) needs a port from 1024 to 65535, got {text!r}")
    return int(text)


def port_variable(name: str) -> str:
    return f"NEUROFLEET_{name.upper()}_PORT"
