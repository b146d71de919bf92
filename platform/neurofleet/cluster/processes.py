"""Which processes belong to the platform, how much memory they hold, and how they end.

A process is ours if it carries the platform's mark in its environment, lives in the session of a half whose recorded
process is still there, or descends from such a one.  (Ray's helpers overwrite their environment with a title, and
workers get sessions of their own: no single sign is enough.)  A Ray that somebody else started has none of the three.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

import psutil

from neurofleet.cluster.state import MARK, Half
from neurofleet.launch import running, runs

# They take ten seconds over SIGTERM to say goodbye to one another; once nothing else is left they have nothing to lose.
RAYS_OWN = ("gcs_server", "raylet", "ray::RuntimeEnv", "ray::Dashboard")


def alive(half: Half) -> list[psutil.Process]:
    """The recorded processes of a half that still run."""
    return running(half.processes)


def members(half: Half, mark: str) -> list[psutil.Process]:
    """All living processes of a half; `mark` is the half's own."""
    ours = {process.pid: process for process in alive(half)}
    session = half.session if any(_session(pid) == half.session for pid in ours) else None
    others = []
    for process in psutil.process_iter():
        if process.pid == os.getpid() or process.pid in ours:
            continue
        if _has_mark(process, mark) or (session is not None and _session(process.pid) == session):
            ours[process.pid] = process
        else:
            others.append(process)
    ours |= {process.pid: process for process in _descendants(ours, others)}
    return [process for process in ours.values() if runs(process)]


def record(half: Half, session: int, mark: str) -> None:
    """Remember the processes that make this half: the servers, not the workers below them, which come and go."""
    half.session = session
    half.processes = {}
    found = {process.pid: process for process in members(half, mark)}
    for pid, process in found.items():
        try:
            if process.ppid() not in found:
                half.processes[pid] = process.create_time()
        except psutil.NoSuchProcess:
            continue


def end(half: Half, mark: str, grace: float) -> int:
    """SIGTERM, after `grace` seconds SIGKILL; returns how many processes were ended.  Nothing is left."""
    ended: set[int] = set()
    deadline = time.monotonic() + grace
    told: set[int] = set()
    while found := members(half, mark):
        late = time.monotonic() > deadline or all(_name(process).startswith(RAYS_OWN) for process in found)
        for process in found:
            ended.add(process.pid)
            if late or process.pid not in told:
                told.add(process.pid)
                _signal(process, late)
        psutil.wait_procs(found, timeout=0.2)
        if time.monotonic() > deadline + 30:
            raise RuntimeError(f"these processes do not end: {[process.pid for process in found]}")
    return len(ended)


def memory(processes: Iterable[psutil.Process]) -> int:
    """Bytes: proportional set size where the system tells it (shared pages counted once), else resident size."""
    total = 0
    for process in processes:
        try:
            total += process.memory_full_info().pss if psutil.LINUX else process.memory_info().rss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


def listener(port: int) -> str:
    """Who listens on a TCP port, in words."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except (psutil.AccessDenied, psutil.NoSuchProcess):
        pass  # macOS tells only root
    return "another process"


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.NoSuchProcess:
        return ""


def _signal(process: psutil.Process, hard: bool) -> None:
    try:
        if hard:
            process.kill()
        else:
            process.terminate()
    except psutil.NoSuchProcess:
        return


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return -1


def _has_mark(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get(MARK) == mark
    except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
        return False


def _descendants(ours: dict[int, psutil.Process], others: list[psutil.Process]) -> list[psutil.Process]:
    known, found, grew = set(ours), [], True
    while grew:
        grew = False
        for process in list(others):
            try:
                parent = process.ppid()
            except psutil.NoSuchProcess:
                others.remove(process)
                continue
            if parent in known:
                known.add(process.pid)
                found.append(process)
                others.remove(process)
                grew = True
    return found
