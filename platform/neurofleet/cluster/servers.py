"""How the two servers are started and how one sees that they are ready.

Ray: everything on 127.0.0.1.  `ray start --node-ip-address 127.0.0.1` replaces that address by the outward one unless
RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0, which means "one machine, loopback" on every system.  Its Ray Client server
(port 10001) and its autoscaler are left out: nobody here uses them, each costs a process and a port.

MLflow: the server application in ONE process.  `mlflow server --workers 1` is a launcher that imports all of MLflow to
start uvicorn, which imports it again: twice the time and twice the memory (measured: 18 s and 500 MB against 9 s and
250 MB).  So uvicorn is started here with the environment that the launcher would give it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import http.client
import json
import os
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from neurofleet import paths
from neurofleet.cluster.keeper import is_kept
from neurofleet.cluster.state import MARK, Platform
from neurofleet.errors import ResourceError, RunError
from neurofleet.launch import API_SERVER, LOOPBACK, authentication
from neurofleet.tracking import backend

HOST = "127.0.0.1"
# Servers outlive what started them; a Popen that is forgotten while its process runs warns.
_begun: list[subprocess.Popen[bytes]] = []
# A socket's path may have 107 bytes; below its folder Ray needs /session_<date>_<time>_<pid>/sockets/dash_MetricsHead.
LONGEST_RAY_FOLDER = 107 - len("/session_2026-01-01_00-00-00_000000_4194304/sockets/dash_MetricsHead")


@dataclasses.dataclass
class Server:
    """A server that is being started: `ready` is asked until it says yes, at most `patience` seconds."""

    name: str
    command: list[str]
    environment: dict[str, str]
    log: Path
    ready: Callable[[], bool]
    patience: float
    goes_on: bool  # whether the started process stays; `ray start` itself ends when Ray runs

    def start(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.began = time.monotonic()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C at the terminal is for `up`, which then ends this itself
            )
        _begun.append(self.process)

    def is_ready(self) -> bool:
        """Raises RunError with the end of its log where it failed or took too long."""
        code = self.process.poll()
        if code is not None and (self.goes_on or code != 0):
            raise RunError(f"{self.name} ended with code {code} while starting; the end of {self.log}:\n{self._tail()}")
        if (self.goes_on or code == 0) and self.ready():
            return True
        if time.monotonic() - self.began > self.patience:
            raise RunError(f"{self.name} did not answer within {self.patience:.0f} s; {self.log}:\n{self._tail()}")
        return False

    def _tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-12:])


def ray_head(platform: Platform) -> Server:
    port = platform.ray.address.rpartition(":")[2]
    dashboard_port = platform.dashboard.rpartition(":")[2]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--node-ip-address", HOST]
    command += ["--port", port, "--dashboard-host", HOST, "--dashboard-port", dashboard_port]
    command += ["--temp-dir", platform.ray_folder, "--disable-usage-stats", "--no-monitor"]
    # Ports that nobody needs to know are chosen by the system, so that they never collide.
    command += ["--min-worker-port", "0", "--max-worker-port", "0", "--dashboard-agent-listen-port", "0"]
    environment = _environment(f"{platform.mark}-ray") | {
        LOOPBACK: "0",
        API_SERVER: platform.dashboard,  # workers that ask for it would search this machine, and find another's too
        "RAY_START_HOOK": "neurofleet.cluster.servers.without_client_server",
    }
    for name in ("RAY_ADDRESS", backend.DATABASE):  # the database's password is for the MLflow server alone
        environment.pop(name, None)
    return Server(
        name="the Ray head",
        command=command,
        environment=environment,
        log=paths.home() / "logs" / "ray.log",
        ready=lambda: answers(f"{platform.dashboard}/api/version", bearer()),
        patience=120,
        goes_on=False,
    )


def without_client_server(parameters: Any, _is_head: bool) -> None:
    """RAY_START_HOOK: `ray start` has no flag that leaves the Ray Client server out."""
    parameters.ray_client_server_port = None


def mlflow_server(platform: Platform) -> Server:
    address = urllib.parse.urlsplit(platform.mlflow.address)
    command = [sys.executable, "-m", "uvicorn", "--host", HOST, "--port", str(address.port)]
    command += ["--log-level", "warning", "mlflow.server.fastapi_app:app"]
    environment = _environment(f"{platform.mark}-mlflow") | {
        **backend.environment(),
        "_MLFLOW_SERVER_BOOT_ID": secrets.token_hex(16),
        "_MLFLOW_SGI_NAME": "uvicorn",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    return Server(
        name="the MLflow server",
        command=command,
        environment=environment,
        log=paths.home() / "logs" / "mlflow.log",
        # Not /health, which answers before the store was opened.
        ready=lambda: answers(f"{platform.mlflow.address}/api/2.0/mlflow/experiments/get?experiment_id=0"),
        patience=120,
        goes_on=True,
    )


def keeper(platform: Platform) -> Server:
    return Server(
        name="the keeper of jobs",
        command=[sys.executable, "-m", "neurofleet.cluster"],
        environment=_environment(f"{platform.mark}-keeper") | {LOOPBACK: "0"},
        log=paths.home() / "logs" / "keeper.log",
        ready=is_kept,
        patience=120,
        goes_on=True,
    )


def ray_folder() -> Path:
    """Ray's own files: below home() unless that is too long for a socket's name."""
    folder = paths.home() / "ray"
    if len(os.fsencode(folder)) > LONGEST_RAY_FOLDER:
        folder = Path("/tmp") / f"neurofleet-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]}"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_uid != os.getuid():
        raise ResourceError(f"Ray's folder {folder} belongs to somebody else; set NEUROFLEET_HOME to a shorter path")
    return folder


def bearer() -> dict[str, str]:
    """The header that Ray's dashboard wants."""
    settings = authentication()
    if settings["RAY_AUTH_MODE"] != "token":
        return {}
    token = settings.get("RAY_AUTH_TOKEN") or Path(settings["RAY_AUTH_TOKEN_PATH"]).read_text()
    return {"Authorization": f"Bearer {token.strip()}"}


def answers(url: str, headers: dict[str, str] | None = None) -> bool:
    try:
        fetch(url, headers)
    except (OSError, ValueError):
        return False
    return True


def fetch(url: str, headers: dict[str, str] | None = None) -> Any:
    """GET of JSON from a server on this machine, past any proxy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, headers=headers or {}), timeout=5) as answer:
            return json.load(answer)
    except http.client.HTTPException as error:  # it speaks no HTTP, or hung up
        raise ConnectionError(f"{url}: {error!r}") from error


def _environment(mark: str) -> dict[str, str]:
    """This process's, with Ray's token, the mark, the same home in every child, and this package importable."""
    environment = os.environ | authentication() | {MARK: mark, "RAY_USAGE_STATS_ENABLED": "0"}
    environment |= {"NEUROFLEET_HOME": str(paths.home()), "NEUROFLEET_DATA": str(paths.data())}
    # It would make the MLflow server a client of itself; a job gets it from who submits.
    environment.pop("MLFLOW_TRACKING_URI", None)
    source_root = str(paths.PACKAGE.parent)
    inherited = environment.get("PYTHONPATH", "")
    if paths.PACKAGE.parent.name != "site-packages" and source_root not in inherited.split(os.pathsep):
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [source_root, inherited]))
    return environment
