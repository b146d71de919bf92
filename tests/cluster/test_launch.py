"""Workers of Ray Train, on the platform of conftest.py."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import socket
from pathlib import Path
from typing import Any

import psutil
import pytest

from neurofleet import launch, paths
from neurofleet.errors import (
    ConfigError,
    DivergedError,
    LostWorkerError,
    ResourceError,
    StoppedError,
    UnreachableError,
    WorkerError,
)
from neurofleet.launch import connection, machine, workers
from neurofleet.launch.relay import Relay
from neurofleet.progress import Progress

# Ray reads all of its own data options, deprecated ones too.
pytestmark = pytest.mark.filterwarnings("ignore:`use_\\w+` is deprecated:DeprecationWarning")

TRAINER = {"accelerator": "auto", "checkpoint": {"every_n_steps": None}}
LAUNCHER = {"name": "ray", "num_workers": 2, "use_gpu": False, "strategy": "ddp", "cpus_per_worker": 1}


class Shown:
    """Stands in for a bar."""

    def __init__(self) -> None:
        self.seen: list[Progress] = []

    def update(self, progress: Progress) -> None:
        self.seen.append(progress)


def test_relay_strips_the_prefix_and_moves_the_bar() -> None:
    out, bar = io.StringIO(), Shown()
    relay = Relay(out, bar)  # type: ignore[arg-type]
    for piece in (
        "(RayTrainWorker pid=12) hel",
        "lo\n",
        "(RayTrainWorker pid=12, ip=10.0.0.2) progress step=5/10 ",
        "epoch=1/2 train/loss=0.5 eta=3",
        "\n",
        "(this) is not Ray's\n",
        "progress step=6/10 epoch=1/2 eta=3\n",
        "(raylet) Raylet is terminated. Termination is unexpected. Last 20 lines:\n    [state-dump] \tNodeManager 1\n",
        "no end",
    ):
        relay.write(piece)
    relay.close()
    assert out.getvalue() == "hello\n(this) is not Ray's\nprogress step=6/10 epoch=1/2 eta=3\nno end"
    assert [(progress.step, progress.metrics) for progress in bar.seen] == [(5, {"train/loss": 0.5})]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "slurm"}, "launcher.name needs local or ray, got 'slurm'"),
        ({"num_workers": 0}, "launcher.num_workers needs a whole number of at least 1, got 0"),
        ({"cpus_per_worker": 0.5}, "launcher.cpus_per_worker needs a whole number of at least 1, got 0.5"),
        ({"num_workers": [4, 1]}, r"num_workers=\[minimum, maximum\] needs the smaller number first, got \[4, 1\]"),
        ({"num_workers": [1, 2], "strategy": "fsdp"}, r"needs trainer.checkpoint.every_n_steps, got null"),
        ({"strategy": "magic"}, "launcher.strategy needs ddp or fsdp, got 'magic'"),
        ({"num_workers": True}, "launcher.num_workers needs a whole number of at least 1, got True"),
        ({"use_gpu": "no thanks"}, "launcher.use_gpu needs true or false, got 'no thanks'"),
        ({"gpus": 2}, "launcher=ray needs the keys cpus_per_worker, name"),
        ({"name": "local"}, "launcher=local needs the keys name, got cpus_per_worker"),
    ],
)
def test_a_launcher_that_makes_no_sense_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        launch.check({"launcher": LAUNCHER | change, "trainer": TRAINER})


def test_a_launcher_without_a_name_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"launcher.name needs local or ray, got None"):
        launch.check({"launcher": {}, "trainer": {"accelerator": "auto"}})
    launch.check({"launcher": {"name": "local"}, "trainer": {"accelerator": "gpu"}})


@pytest.mark.parametrize(("accelerator", "use_gpu"), [("cpu", True), ("gpu", False)])
def test_trainer_and_launcher_agree_about_the_device(accelerator: str, use_gpu: bool) -> None:
    with pytest.raises(ConfigError, match=f"got {accelerator} and {str(use_gpu).lower()}; use trainer.accelerator="):
        launch.check({"launcher": LAUNCHER | {"use_gpu": use_gpu}, "trainer": {"accelerator": accelerator}})


def test_room_is_counted_per_node() -> None:
    two_nodes = [{"CPU": 3.0}, {"CPU": 3.0}]
    connection._need(LAUNCHER | {"cpus_per_worker": 2}, two_nodes)
    with pytest.raises(ResourceError, match=r"the cluster has: 6 CPUs on 2 node\(s\), room for 2 worker"):
        connection._need(LAUNCHER | {"cpus_per_worker": 2, "num_workers": 3}, two_nodes)
    with pytest.raises(ResourceError, match="with 1 CPU and 1 GPU each"):
        connection._need(LAUNCHER | {"use_gpu": True}, two_nodes)
    connection._need(LAUNCHER | {"num_workers": [6, 100]}, two_nodes)  # the fewest need room
    with pytest.raises(ResourceError, match=r"num_workers=\[7, 100\] with 1 CPU each .* room for 6 worker"):
        connection._need(LAUNCHER | {"num_workers": [7, 100]}, two_nodes)


def test_too_many_workers_for_this_machine_are_refused_before_a_private_ray_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NEUROFLEET_HOME", str(tmp_path))
    monkeypatch.setattr(connection, "_connect", lambda *_: pytest.fail("something was started"))
    with (
        pytest.raises(ResourceError, match="num_workers=100000"),
        connection.connected(LAUNCHER | {"num_workers": 100000}),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 64),
        ({"cpu.max": "max 100000\n"}, 64),
        ({"cpu.max": "250000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
    ],
)
def test_a_containers_quota_counts(
    files: dict[str, str], expected: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine.num_cpus(tmp_path) == expected


def test_no_gpu_is_refused_before_a_private_ray_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NEUROFLEET_HOME", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ResourceError, match=r"more than the cluster has: .*0 GPUs"):
        connection.check_room(LAUNCHER | {"use_gpu": True})


def test_a_platform_is_used_only_while_its_processes_live(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NEUROFLEET_HOME", str(tmp_path))
    assert connection._platform_address() is None
    begun = psutil.Process().create_time()
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        for processes, expected in (
            ({os.getpid(): begun}, address),
            ({os.getpid(): begun - 100}, None),  # a number that somebody else got
            ({}, None),
        ):
            (tmp_path / "platform.json").write_text(json.dumps({"ray": {"address": address, "processes": processes}}))
            assert connection._platform_address() == expected


def test_what_is_no_ray_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with connection.environment(connection._settings("127.0.0.1:7")):  # which Ray reads once, when it is imported
        import ray.autoscaler.v2.sdk
        import ray.exceptions

    def times_out(address: str) -> None:
        raise ray.exceptions.RpcError("Timed out while waiting for GCS to become available.\nmore")

    monkeypatch.setattr(ray.autoscaler.v2.sdk, "get_cluster_status", times_out)
    before = dict(os.environ)
    with pytest.raises(UnreachableError, match=r"needed at 127.0.0.1:7, got: Timed out while waiting for .*e; mend"):
        launch.cluster_nodes("127.0.0.1:7")
    assert dict(os.environ) == before


def test_an_address_where_nobody_listens_is_named(monkeypatch: pytest.MonkeyPatch, free_port: int) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port}")
    message = f"127.0.0.1:{free_port}, got: nobody listens"
    with pytest.raises(UnreachableError, match=message), connection.connected(LAUNCHER):
        pass


def test_the_token_is_the_users_or_ours_and_private(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NEUROFLEET_HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    token = tmp_path / "ray_token"
    assert launch.authentication() == {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    launch.ensure_token()
    assert (token.stat().st_mode & 0o777, len(token.read_text())) == (0o600, 64)
    before = token.read_text()
    launch.ensure_token()
    assert token.read_text() == before
    monkeypatch.setenv("RAY_AUTH_TOKEN", "theirs")
    assert launch.authentication() == {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "theirs"}


def test_processes_that_make_the_token_at_once_agree(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NEUROFLEET_HOME", str(tmp_path / "home"))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    exists = Path.exists
    # Each believes that there is none yet.
    monkeypatch.setattr(Path, "exists", lambda path: path.name != "ray_token" and exists(path))
    launch.ensure_token()
    first = (tmp_path / "home" / "ray_token").read_text()
    launch.ensure_token()
    assert (tmp_path / "home" / "ray_token").read_text() == first
    assert os.listdir(tmp_path / "home") == ["ray_token"]


class Failed:
    """Ray Train's error: what each rank raised."""

    def __init__(self, *failures: Exception) -> None:
        self.worker_failures = dict(enumerate(failures))


def test_the_first_error_is_the_cause() -> None:
    lost, diverged = WorkerError("connection closed by peer"), DivergedError("loss is nan", 7)
    lost.__dict__["raised_at"], diverged.__dict__["raised_at"] = 2.0, 1.0
    assert workers._cause(Failed(lost, diverged)) is diverged
    died = workers._cause(Failed(OSError("The actor died\nwith a long story")))
    assert (type(died), str(died)) == (LostWorkerError, "worker 0 died (OSError): The actor died")


def test_a_worker_that_is_killed_counts_more_than_its_partners_complaint() -> None:
    complaint, bug = WorkerError("worker 0 raised: [gloo] Connection closed by peer"), WorkerError("worker 0: a bug")
    for error in (complaint, bug):
        error.__dict__["raised_at"] = 1.0
    died = workers._cause(Failed(complaint, OSError("The actor died")))
    assert (type(died), str(died)) == (LostWorkerError, "worker 1 died (OSError): The actor died")
    assert workers._cause(Failed(bug, OSError("The actor died"))) is bug
    assert workers._cause(Failed(complaint)) is complaint


class Interrupted:
    """Stands in for a trainer that a signal's handler of Ray ends."""

    def __init__(self, code: int) -> None:
        self.code = code

    def fit(self) -> None:
        raise SystemExit(self.code)


def test_sigterm_and_ctrl_c_are_told_apart_whatever_ray_does_with_them() -> None:
    with pytest.raises(StoppedError, match="SIGTERM") as caught:
        workers._fit(Interrupted(signal.SIGTERM))
    assert caught.value.exit_code == 143
    with pytest.raises(KeyboardInterrupt):
        workers._fit(Interrupted(0))


def test_a_controller_that_dies_is_no_error_of_the_run() -> None:
    import ray.exceptions

    class Cut:
        def fit(self) -> None:
            raise ray.exceptions.ActorDiedError

    with pytest.raises(LostWorkerError, match=r"the controller of the workers died \(ActorDiedError\)"):
        workers._fit(Cut())


# Functions for the workers; Ray carries them by value since tests are no package.
def summed(task: dict[str, Any]) -> dict[str, Any]:
    import os

    import torch
    import torch.distributed as dist

    total = torch.tensor([float(dist.get_rank() + 1)])
    dist.all_reduce(total)
    print("said by a worker", flush=True)
    return {
        "total": float(total),
        "backend": dist.get_backend(),
        "size": dist.get_world_size(),
        "threads": torch.get_num_threads(),
        "interface": os.environ["GLOO_SOCKET_IFNAME"],
        "home": os.environ["NEUROFLEET_HOME"],
        "folder": os.getcwd(),
        "word": task["word"],
        "devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
    }


def diverges_on_rank_1(task: dict[str, Any]) -> None:
    import torch.distributed as dist

    if dist.get_rank() == 1:
        raise DivergedError("loss became nan at step 7", 7)
    dist.barrier()


@pytest.mark.slow
def test_two_workers_form_a_group(platform_up: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = dict(os.environ)
    found = workers.fit(LAUNCHER, by_value(summed), {"word": "x", "working_folder": str(tmp_path)}, tmp_path / "run")
    changed = {name for name in os.environ.keys() | before if os.environ.get(name) != before.get(name)}
    assert {name for name in changed if name in workers.SETTINGS or name.startswith("RAY_AUTH")} == set()
    assert found["devices"] == ""  # no GPU was granted
    assert found["total"] == 3.0
    assert (found["backend"], found["size"], found["threads"], found["word"]) == ("gloo", 2, 1, "x")
    assert found["interface"].startswith("lo")
    assert (found["home"], found["folder"]) == (str(paths.home()), str(tmp_path))
    shown = capfd.readouterr().out
    assert "said by a worker\n" in shown
    assert "pid=" not in shown


@pytest.mark.slow
def test_an_error_in_a_worker_comes_back_as_itself(platform_up: Any, tmp_path: Path) -> None:
    with pytest.raises(DivergedError) as caught:
        workers.fit(LAUNCHER, by_value(diverges_on_rank_1), {}, tmp_path / "run")
    assert (str(caught.value), caught.value.step) == ("loss became nan at step 7", 7)


@pytest.mark.slow
def test_three_workers_on_fewer_cpus_are_refused(platform_up: Any, tmp_path: Path) -> None:
    number = math.floor(platform_up.cpus) + 1
    with pytest.raises(ResourceError, match=f"num_workers={number} with 1 CPU each .* has: {platform_up.cpus:g} CPUs"):
        workers.fit(LAUNCHER | {"num_workers": number}, by_value(summed), {"word": ""}, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def by_value(function: Any) -> Any:
    import sys

    import ray.cloudpickle

    ray.cloudpickle.register_pickle_by_value(sys.modules[function.__module__])
    return function
