"""Workers of Ray Train, on the platform of conftest.py."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pytest

from neurofleet import launch, paths
from neurofleet.errors import ConfigError, DivergedError, ResourceError, UnreachableError, WorkerError
from neurofleet.launch import connection, workers
from neurofleet.launch.relay import Relay
from neurofleet.progress import Progress

# Ray reads all of its own data options, deprecated ones too.
pytestmark = pytest.mark.filterwarnings("ignore:`use_\\w+` is deprecated:DeprecationWarning")

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
        ({"strategy": "magic"}, "launcher.strategy needs ddp or fsdp, got 'magic'"),
        ({"gpus": 2}, "launcher needs the keys cpus_per_worker, name"),
    ],
)
def test_a_launcher_that_makes_no_sense_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        workers.check(LAUNCHER | change)


def test_room_is_counted_per_node() -> None:
    two_nodes = [{"CPU": 3.0}, {"CPU": 3.0}]
    connection._need(LAUNCHER | {"cpus_per_worker": 2}, two_nodes)
    with pytest.raises(ResourceError, match=r"the cluster has: 6 CPUs on 2 node\(s\), room for 2 worker"):
        connection._need(LAUNCHER | {"cpus_per_worker": 2, "num_workers": 3}, two_nodes)
    with pytest.raises(ResourceError, match="with 1 CPU and 1 GPU each"):
        connection._need(LAUNCHER | {"use_gpu": True}, two_nodes)


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


class Failed:
    """Ray Train's error: what each rank raised."""

    def __init__(self, *failures: Exception) -> None:
        self.worker_failures = dict(enumerate(failures))


def test_the_first_error_is_the_cause() -> None:
    lost, diverged = WorkerError("connection closed by peer"), DivergedError("loss is nan", 7)
    lost.__dict__["raised_at"], diverged.__dict__["raised_at"] = 2.0, 1.0
    assert workers._cause(Failed(lost, diverged)) is diverged
    died = workers._cause(Failed(OSError("The actor died\nwith a long story")))
    assert (type(died), str(died)) == (WorkerError, "a worker died (OSError): The actor died")


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
    }


def diverges_on_rank_1(task: dict[str, Any]) -> None:
    import torch.distributed as dist

    if dist.get_rank() == 1:
        raise DivergedError("loss became nan at step 7", 7)
    dist.barrier()


@pytest.mark.slow
def test_two_workers_form_a_group(platform_up: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = workers.fit(LAUNCHER, by_value(summed), {"word": "x", "working_folder": str(tmp_path)}, tmp_path / "run")
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
