"""`neurofleet up` and `neurofleet down`."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
import urllib.parse
from collections.abc import Iterator
from types import FrameType

from neurofleet import tracking
from neurofleet.cluster import keeper, processes, servers, state
from neurofleet.cluster.job import RUNNING
from neurofleet.cluster.ledger import Ledger
from neurofleet.cluster.state import Half, Platform
from neurofleet.errors import ConfigError, ResourceError
from neurofleet.launch import ensure_token, is_open
from neurofleet.tracking import backend

GRACE = 8.0  # seconds between SIGTERM and SIGKILL
DEFAULTS = {"ray": 6379, "dashboard": 8265, "mlflow": 5000}


def up(*, ray_port: int | None = None, dashboard_port: int | None = None, mlflow_port: int | None = None) -> Platform:
    """Start the Ray head, the MLflow server and the keeper of jobs, those that do not run; wait until all answer.

    Raises:
        ResourceError: a port is taken, by whom, and how to choose another.
        RunError: a server failed to start; the end of its log.
    """
    asked = {"ray": ray_port, "dashboard": dashboard_port, "mlflow": mlflow_port}
    with state.exclusive():
        platform = state.load()
        missing = _missing(platform)
        if platform is not None:
            _say_if_elsewhere(platform, missing, asked)
        if platform is not None and not missing:
            print("the platform is up already", flush=True)
        else:
            platform = _start(_plan(platform, missing, asked), missing)
    print(f"Ray     {platform.ray.address}   dashboard {platform.dashboard}", flush=True)
    print(f"MLflow  {tracking.store.shown(platform.mlflow.address)}", flush=True)
    return platform


def down() -> int:
    """End what `up` started and nothing else; returns how many processes were ended."""
    with state.exclusive():
        platform = state.load()
        if platform is None:
            print("nothing is up", flush=True)
            return 0
        for job_id in running_jobs():
            print(f"cutting the running job {job_id}", flush=True)
        ended = _end(platform, ["keeper", "ray", "mlflow"])
        state.location().unlink()
        if waiting := keeper.cut("the platform was taken down"):
            print(f"{', '.join(job.id for job in waiting)}: to go on after the next `neurofleet up`", flush=True)
        print(f"the platform is down ({ended} processes ended)", flush=True)
        return ended


def running_jobs() -> list[str]:
    """Ids of the jobs that run."""
    with Ledger() as book:
        return [job.id for job in book.jobs(RUNNING)]


def is_up(platform: Platform, name: str) -> bool:
    """Whether a half's recorded processes all live and its door is open; of a foreign one, whether it answers."""
    half: Half = getattr(platform, name)
    if half.foreign:
        return is_open(_door(half.address))
    doors = {"mlflow": [platform.mlflow.address], "ray": [platform.ray.address, platform.dashboard]}.get(name, [])
    return (
        bool(half.processes)
        and len(processes.alive(half)) == len(half.processes)
        and all(is_open(_door(door)) for door in doors)
    )


def half_mark(platform: Platform, name: str) -> str:
    return f"{platform.mark}-{name}"


def _missing(platform: Platform | None) -> list[str]:
    return [name for name in state.NAMES if platform is None or not is_up(platform, name)]


def _plan(platform: Platform | None, missing: list[str], asked: dict[str, int | None]) -> Platform:
    """Where everything will be; ends what is left of a half that died and checks that its ports are free.

    A half that died comes back at its ports, unless others are asked for.
    """
    before = {} if platform is None else _ports(platform)
    ports = {name: state.port(name, asked[name], before.get(name, default)) for name, default in DEFAULTS.items()}
    if platform is None:
        platform = Platform(state.new_mark(), "", "", Half(""), Half(""))
    else:
        _end(platform, missing)
    if "mlflow" in missing:
        own = f"http://{servers.HOST}:{ports['mlflow']}"
        foreign = _foreign_server(own)
        if platform.mlflow.shared and not foreign and not backend.is_shared():
            raise ConfigError(
                f"the MLflow server here keeps runs in a team's store, and {backend.DATABASE} or {backend.ARTIFACTS} "
                "has to name it again; set them as before, or give it up with: neurofleet down"
            )
        platform.mlflow = Half(foreign or own, foreign=bool(foreign), shared=not foreign and backend.is_shared())
        if not foreign:
            _need_free("mlflow", ports["mlflow"])
    if "ray" in missing:
        platform.ray = Half(f"{servers.HOST}:{ports['ray']}")
        platform.dashboard = f"http://{servers.HOST}:{ports['dashboard']}"
        platform.ray_folder = str(servers.ray_folder())
        for name in ("ray", "dashboard"):
            _need_free(name, ports[name])
    return platform


def _foreign_server(own: str) -> str:
    """The MLflow server that the user named, or nothing where it is the platform's own one.

    Raises:
        UnreachableError: it does not answer.
    """
    named = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not named.startswith("http") or _door(named) == _door(own):
        return ""
    tracking.store.check_reachable(named)
    return named


def _ports(platform: Platform) -> dict[str, int]:
    """The ports that `up` chose for what it started."""
    addresses = {"ray": platform.ray.address, "dashboard": platform.dashboard}
    if not platform.mlflow.foreign:
        addresses["mlflow"] = platform.mlflow.address
    return {name: int(address.rpartition(":")[2]) for name, address in addresses.items()}


def _say_if_elsewhere(platform: Platform, missing: list[str], asked: dict[str, int | None]) -> None:
    for name, port in _ports(platform).items():
        half = "mlflow" if name == "mlflow" else "ray"
        wanted = state.port(name, asked[name], port)
        if half not in missing and wanted != port:
            print(f"{name} is up at port {port}, not {wanted}; to move it: neurofleet down, then up", flush=True)


def _door(address: str) -> str:
    """host:port of an address with or without a scheme."""
    parts = urllib.parse.urlsplit(address if "://" in address else f"http://{address}")
    host = servers.HOST if parts.hostname == "localhost" else parts.hostname
    return f"{host}:{parts.port or (443 if parts.scheme == 'https' else 80)}"


def _start(platform: Platform, missing: list[str]) -> Platform:
    ensure_token()
    makers = {"ray": servers.ray_head, "mlflow": servers.mlflow_server, "keeper": servers.keeper}
    starting = {name: makers[name](platform) for name in missing if not getattr(platform, name).foreign}
    with _undone_on_error(platform, missing):
        platform.save()  # before anything runs: should this process be killed, `down` finds the marked ones
        for server in starting.values():
            server.start()
            print(f"starting {server.name} ... (log: {server.log})", flush=True)
        waiting = dict(starting)
        while waiting:
            for name in [name for name, server in waiting.items() if server.is_ready()]:
                server = waiting.pop(name)
                processes.record(getattr(platform, name), server.process.pid, half_mark(platform, name))
                print(f"{server.name} is up after {time.monotonic() - server.began:.1f} s", flush=True)
            time.sleep(0.1)
        platform.save()
    return platform


@contextlib.contextmanager
def _undone_on_error(platform: Platform, missing: list[str]) -> Iterator[None]:
    """Ctrl-C, SIGTERM or an error while starting leave nothing of what was being started."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(143)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except BaseException:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("not started; ending what was begun ...", flush=True)
        _end(platform, missing)
        if len(missing) == len(state.NAMES):
            state.location().unlink(missing_ok=True)
        signal.signal(signal.SIGINT, interrupt)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(platform: Platform, names: list[str]) -> int:
    return sum(processes.end(getattr(platform, name), half_mark(platform, name), GRACE) for name in names)


def _need_free(name: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((servers.HOST, port))
        except OSError as error:
            raise ResourceError(
                f"the port {port} is needed for {name}, and {processes.listener(port)} has it ({error.strerror}); "
                f"choose another with --{name}-port or {state.port_variable(name)}"
            ) from None
