"""`neurofleet up` and `neurofleet down`."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from types import FrameType

from neurofleet import tracking
from neurofleet.cluster import processes, servers, state
from neurofleet.cluster.state import Half, Platform
from neurofleet.errors import ResourceError
from neurofleet.launch import ensure_token, is_open

GRACE = 8.0  # seconds between SIGTERM and SIGKILL


def up(*, ray_port: int | None = None, dashboard_port: int | None = None, mlflow_port: int | None = None) -> Platform:
    """Start the Ray head and the MLflow server, those of them that do not run, and wait until both answer.

    Raises:
        ResourceError: a port is taken, by whom, and how to choose another.
        RunError: a server failed to start; the end of its log.
    """
    with state.exclusive():
        platform = state.load()
        missing = _missing(platform)
        if platform is not None and not missing:
            print("the platform is up already", flush=True)
        else:
            platform = _start(_plan(platform, missing, ray_port, dashboard_port, mlflow_port), missing)
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
        for job in running_jobs(platform):
            print(f"stopping the running job {job}", flush=True)
        ended = _end(platform, ["ray", "mlflow"])
        state.location().unlink()
        print(f"the platform is down ({ended} processes ended)", flush=True)
        return ended


def running_jobs(platform: Platform) -> list[str]:
    """Ids of the submitted jobs that are not done; none where Ray does not answer any more."""
    try:
        jobs = servers.fetch(f"{platform.dashboard}/api/jobs/", servers.bearer())
    except (OSError, ValueError):
        return []
    return [job["submission_id"] for job in jobs if job["submission_id"] and job["status"] in ("PENDING", "RUNNING")]


def is_up(platform: Platform, name: str) -> bool:
    """Whether a half's recorded processes all live and its door is open."""
    if name == "mlflow" and _is_foreign(platform):
        return True
    half: Half = getattr(platform, name)
    doors = [platform.mlflow.address] if name == "mlflow" else [platform.ray.address, platform.dashboard]
    return (
        bool(half.processes)
        and len(processes.alive(half)) == len(half.processes)
        and all(is_open(door.removeprefix("http://")) for door in doors)
    )


def half_mark(platform: Platform, name: str) -> str:
    return f"{platform.mark}-{name}"


def _missing(platform: Platform | None) -> list[str]:
    return [name for name in ("ray", "mlflow") if platform is None or not is_up(platform, name)]


def _plan(
    platform: Platform | None,
    missing: list[str],
    ray_port: int | None,
    dashboard_port: int | None,
    mlflow_port: int | None,
) -> Platform:
    """Where everything will be; ends what is left of a half that died and checks that its ports are free."""
    if platform is None:
        platform = Platform(state.new_mark(), "", "", Half(""), Half(""))
    else:
        _end(platform, missing)
    wanted = []
    if "ray" in missing:
        ports = {"ray": state.port("ray", ray_port, 6379), "dashboard": state.port("dashboard", dashboard_port, 8265)}
        wanted += list(ports.items())
        platform.ray = Half(f"{servers.HOST}:{ports['ray']}")
        platform.dashboard = f"http://{servers.HOST}:{ports['dashboard']}"
        platform.ray_folder = str(servers.ray_folder())
    if "mlflow" in missing:
        if tracking.store_uri().startswith("http"):
            platform.mlflow = Half(tracking.store_uri())
        else:
            wanted.append(("mlflow", state.port("mlflow", mlflow_port, 5000)))
            platform.mlflow = Half(f"http://{servers.HOST}:{wanted[-1][1]}")
    for name, port in wanted:
        _need_free(name, port)
    return platform


def _start(platform: Platform, missing: list[str]) -> Platform:
    ensure_token()
    makers = {"ray": servers.ray_head, "mlflow": servers.mlflow_server}
    starting = {name: makers[name](platform) for name in missing if name == "ray" or not _is_foreign(platform)}
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
        if len(missing) == 2:
            state.location().unlink(missing_ok=True)
        signal.signal(signal.SIGINT, interrupt)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(platform: Platform, names: list[str]) -> int:
    return sum(processes.end(getattr(platform, name), half_mark(platform, name), GRACE) for name in names)


def _is_foreign(platform: Platform) -> bool:
    """Whether the MLflow server is one that the user named, which `up` neither starts nor ends."""
    return bool(platform.mlflow.address) and platform.mlflow.address == os.environ.get("MLFLOW_TRACKING_URI")


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
