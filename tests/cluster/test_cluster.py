"""The local platform, without starting it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from neurofleet import cluster, errors
from neurofleet.cluster import jobs, processes, servers, state
from neurofleet.cluster import platform as platforms
from neurofleet.cluster.state import MARK, Half, Platform


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("NEUROFLEET_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def sleeper() -> Iterator[Any]:
    """Starts `python -c CODE` with a mark, in a session of its own."""
    begun: list[subprocess.Popen[bytes]] = []

    def start(mark: str, code: str = "import time; print(1, flush=True); time.sleep(60)") -> subprocess.Popen[bytes]:
        environment = os.environ | {MARK: mark}
        child = subprocess.Popen(
            [sys.executable, "-c", code], env=environment, start_new_session=True, stdout=subprocess.PIPE
        )
        begun.append(child)
        assert child.stdout is not None
        child.stdout.readline()
        return child

    yield start
    for child in begun:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


def test_only_what_carries_the_mark_is_ended(sleeper: Any) -> None:
    ours, theirs = sleeper("one-ray"), sleeper("two-ray")
    assert [process.pid for process in processes.members(Half(""), "one-ray")] == [ours.pid]
    assert processes.end(Half(""), "one-ray", grace=5) == 1
    assert ours.poll() is not None
    assert theirs.poll() is None


def test_children_and_the_session_are_ours_even_without_the_mark(sleeper: Any) -> None:
    code = (
        "import os,subprocess,sys,time; p=subprocess.Popen([sys.executable,'-c','import time; time.sleep(60)'],env={},"
    )
    code += "start_new_session=True); print(p.pid, flush=True); time.sleep(60)"
    parent = sleeper("one-ray", code)
    child = psutil.Process(parent.pid).children()[0].pid
    half = Half("")
    processes.record(half, parent.pid, "one-ray")
    assert list(half.processes) == [parent.pid]
    assert {process.pid for process in processes.members(half, "lost-mark")} == {parent.pid, child}
    assert processes.end(half, "lost-mark", grace=5) == 2
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_a_recycled_pid_is_not_ours(sleeper: Any) -> None:
    stranger = sleeper("somebody")
    begun = psutil.Process(stranger.pid).create_time()
    half = Half("", session=stranger.pid, processes={stranger.pid: begun - 100})
    assert processes.alive(half) == []
    assert processes.end(half, "one-ray", grace=1) == 0
    assert stranger.poll() is None


def test_what_ignores_sigterm_is_killed(sleeper: Any) -> None:
    code = "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    stubborn = sleeper("one-ray", code)
    assert processes.end(Half(""), "one-ray", grace=0.5) == 1
    assert stubborn.poll() is not None


def test_a_taken_port_is_named_with_its_holder_and_the_remedy(
    home: Path, free_ports: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, number in free_ports.items():
        monkeypatch.setenv(name, number)
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(errors.ResourceError) as caught:
            cluster.up(dashboard_port=port)
    message = str(caught.value)
    assert f"port {port} is needed for dashboard" in message
    assert f"(pid {os.getpid()}) has it" in message
    assert "--dashboard-port or NEUROFLEET_DASHBOARD_PORT" in message
    assert not state.location().exists()


@pytest.mark.parametrize("text", ["80", "port", "70000"])
def test_a_port_that_is_none_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEUROFLEET_MLFLOW_PORT", text)
    with pytest.raises(
        errors.ResourceError, match=f"NEUROFLEET_MLFLOW_PORT .* needs a port from 1024 to 65535, got '{text}'"
    ):
        state.port("mlflow", None, 5000)
    assert state.port("mlflow", 5001, 5000) == 5001


def test_one_up_at_a_time(home: Path) -> None:
    with state.exclusive(), pytest.raises(errors.ResourceError, match="one `up` or `down` at a time"):
        cluster.down()


def test_nothing_up(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cluster.status()["ray"] == {"up": False}
    assert cluster.down() == 0
    assert "start with: neurofleet up" in capsys.readouterr().out
    with pytest.raises(errors.UnreachableError, match="start it with: neurofleet up"):
        jobs.address()


def test_state_survives_a_round_trip_and_is_private(home: Path) -> None:
    home.mkdir()
    platform = Platform(
        "mark", "http://127.0.0.1:2", "/x", Half("127.0.0.1:1", 7, {7: 1.5}), Half("http://127.0.0.1:3")
    )
    platform.save()
    assert state.load() == platform
    assert state.location().stat().st_mode & 0o777 == 0o600


def test_rays_folder_is_short_enough_for_its_sockets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NEUROFLEET_HOME", str(tmp_path / ("long" * 30)))
    folder = servers.ray_folder()
    assert len(str(folder)) <= servers.LONGEST_RAY_FOLDER
    assert folder.stat().st_mode & 0o777 == 0o700
    assert servers.ray_folder() == folder
    folder.rmdir()


def plan(home: Path, named: str, monkeypatch: pytest.MonkeyPatch, port: int) -> Half:
    """Where MLflow will be, if the environment names an address."""
    monkeypatch.delenv("NEUROFLEET_MLFLOW_PORT", raising=False)  # the one of these tests' platform
    monkeypatch.setenv("MLFLOW_TRACKING_URI", named)
    platform = Platform("mark", "http://127.0.0.1:2", "/x", Half("127.0.0.1:1"), Half(f"http://127.0.0.1:{port}"))
    return platforms._plan(platform, ["mlflow"], {"ray": None, "dashboard": None, "mlflow": None}).mlflow


@pytest.mark.parametrize("named", ["http://127.0.0.1:{}", "http://localhost:{}/"])
def test_the_platforms_own_address_is_no_foreign_server(
    named: str, home: Path, monkeypatch: pytest.MonkeyPatch, free_port: int
) -> None:
    half = plan(home, named.format(free_port), monkeypatch, free_port)
    assert half == Half(f"http://127.0.0.1:{free_port}", foreign=False)


def test_a_foreign_server_must_answer_and_is_remembered(
    home: Path, monkeypatch: pytest.MonkeyPatch, free_port: int
) -> None:
    with pytest.raises(errors.UnreachableError, match=r"127.0.0.1:9, which does not answer"):
        plan(home, "http://127.0.0.1:9", monkeypatch, free_port)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        named = f"http://127.0.0.1:{server.getsockname()[1]}"
        with monkeypatch.context() as patch:
            patch.setattr(platforms.tracking.store, "check_reachable", lambda uri: None)
            half = plan(home, named, monkeypatch, free_port)
        assert half == Half(named, foreign=True)
        monkeypatch.delenv("MLFLOW_TRACKING_URI")
        platform = Platform("mark", "http://127.0.0.1:2", "/x", Half("127.0.0.1:1"), half)
        assert platforms.is_up(platform, "mlflow") is True
    assert platforms.is_up(platform, "mlflow") is False


def test_what_speaks_no_http_does_not_answer() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()

        def babble() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"SSH-2.0-OpenSSH\r\n")

        thread = threading.Thread(target=babble)
        thread.start()
        assert servers.answers(f"http://127.0.0.1:{server.getsockname()[1]}/") is False
        thread.join()
