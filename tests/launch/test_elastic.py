"""What becomes of a run that loses workers: the loop, and one real run on a cluster of two raylets."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from neurofleet import checkpoint, launch
from neurofleet import experiment as experiments
from neurofleet.errors import DivergedError, LostWorkerError, NeurofleetError, ResourceError, WorkerError
from neurofleet.launch import elastic, workers
from neurofleet.launch.connection import Node
from neurofleet.run import run

ROOT = Path(__file__).resolve().parents[2]

LAUNCHER = {"name": "ray", "num_workers": [1, 3], "use_gpu": False, "strategy": "ddp", "cpus_per_worker": 1}
LOST = LostWorkerError("a worker died (ActorDiedError): its node is gone\nand more")
PARTNER = WorkerError("worker 0 raised RuntimeError: [gloo/pair.cc:537] Read error: Connection reset by peer. GLHF!")
BUG = WorkerError("worker 0 raised KeyError: 'colour'")


class Cluster:
    """Stands in for Ray: `places[i]` workers have room at the i-th attempt, which ends as `ends[i]` says."""

    def __init__(self, folder: Path, places: list[int], ends: list[NeurofleetError | str]) -> None:
        self.folder, self.places, self.ends = folder, places, ends
        self.seen: list[tuple[int, bool]] = []
        self.noted: list[tuple[int, int]] = []
        self.checkpoint: int | None = None  # what each attempt leaves

    def room(self) -> list[Node]:
        each = {"CPU": float(self.places[min(len(self.seen), len(self.places) - 1)])}
        return [Node(each, each)]

    def attempt(self, launcher: Any, function: Any, task: Any, folder: Path, *, local: bool) -> str:
        self.seen.append((launcher["num_workers"], task["resume"]))
        (folder / "experiment.yaml").touch()
        if self.checkpoint is not None:
            (folder / "checkpoints").mkdir(exist_ok=True)
            (folder / "checkpoints" / "index.json").write_text(json.dumps([{"step": self.checkpoint}]))
            self.checkpoint += 10
        end = self.ends[len(self.seen) - 1]
        if isinstance(end, NeurofleetError):
            raise end
        return end

    def fit(self) -> str:
        task = {"resume": False}
        answer: str = elastic.fit(LAUNCHER, print, task, self.folder, lambda *noted: self.noted.append(noted))
        return answer


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    @contextlib.contextmanager
    def ready(launcher: Any, what: str) -> Iterator[bool]:
        assert what == "1 to 3 workers"
        yield True

    def make(places: list[int], ends: list[NeurofleetError | str]) -> Cluster:
        cluster = Cluster(tmp_path, places, ends)
        monkeypatch.setattr(workers, "attempt", cluster.attempt)
        monkeypatch.setattr(elastic, "room", cluster.room)
        return cluster

    monkeypatch.setattr(workers, "ready", ready)
    monkeypatch.setattr(elastic.time, "sleep", lambda seconds: None)
    return make


def test_a_run_goes_on_with_what_is_left_and_grows_again(cluster: Any, capsys: pytest.CaptureFixture[str]) -> None:
    one = cluster([3, 1, 5], [LOST, PARTNER, "done"])
    one.checkpoint = 40
    assert one.fit() == "done"
    assert one.seen == [(3, False), (1, True), (3, True)]
    assert one.noted == [(3, 0), (1, 40), (3, 50)]
    assert capsys.readouterr().out.splitlines() == [
        "starts with 3 of 3 workers",
        "a worker died (ActorDiedError): its node is gone",
        "goes on with 1 of 3 workers from step 40",
        "a worker is gone (connection reset)",
        "goes on with 3 of 3 workers from step 50",
    ]


@pytest.mark.parametrize("error", [BUG, DivergedError("loss is nan", 7)])
def test_an_error_of_the_run_is_not_tried_again(error: NeurofleetError, cluster: Any) -> None:
    one = cluster([3], [error, "done"])
    with pytest.raises(type(error)) as caught:
        one.fit()
    assert caught.value is error
    assert one.seen == [(3, False)]


def test_a_place_that_somebody_else_took_is_counted_again(cluster: Any) -> None:
    one = cluster([3, 2], [ResourceError("the workers' CPUs or GPUs did not become free in time"), "done"])
    assert one.fit() == "done"
    assert one.seen == [(3, False), (2, True)]


def test_workers_that_are_lost_at_the_same_place_again_and_again_end_the_run(cluster: Any) -> None:
    one = cluster([2], [LOST] * 5)
    with pytest.raises(LostWorkerError, match="its node is gone"):
        one.fit()
    assert one.seen == [(2, False), (2, True), (2, True)]


def test_a_run_that_comes_further_each_time_is_not_given_up(cluster: Any) -> None:
    one = cluster([2], [*[LOST] * 5, "done"])
    one.checkpoint = 10
    assert one.fit() == "done"
    assert len(one.seen) == 6


def test_no_room_for_the_fewest_ends_the_run_as_lost(
    cluster: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = cluster([3, 0], [LOST, "done"])
    clock = itertools.count(0.0, 100.0)
    monkeypatch.setattr(elastic.time, "monotonic", lambda: next(clock))
    with pytest.raises(LostWorkerError, match=r"=\[1, 3\] needs room for 1 worker\(s\), got room for 0 on 1 "):
        one.fit()
    assert len(one.seen) == 1
    assert capsys.readouterr().out.count("room for 0 worker(s) now, waiting for more ...") == 1


# On Ray.

# A checkpoint a step makes them take long enough for a node to die during the run.  SGD: Adam divides by gradients that
# are next to nothing for the pixels at the border, and makes weights of their rounding errors.
TRAINED = ["family=mlp", "data=digits", "data.batch_size=64", "trainer.max_epochs=20", "trainer.num_threads=1"]
TRAINED += ["optimizer=sgd", "trainer.checkpoint.every_n_steps=1"]
NUM_STEPS = 400


@contextlib.contextmanager
def two_raylets(environment: dict[str, str]) -> Iterator[tuple[str, Any]]:
    """An address, and how to take the second node away."""
    command = [sys.executable, str(ROOT / "tests" / "raylets.py"), "1", "1"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, stderr=subprocess.DEVNULL, env=environment) as raylets:

        def take_away() -> None:
            raylets.stdin.write("1\n")
            raylets.stdin.flush()
            assert json.loads(raylets.stdout.readline()) == {"removed": 1}

        try:
            yield json.loads(raylets.stdout.readline())["address"], take_away
        finally:
            raylets.stdin.close()


def newest(folder: Path) -> int:
    """The step of the newest checkpoint of the run in a home."""
    return max((elastic._step(run) for run in folder.glob("home/runs/*")), default=0)


@pytest.mark.slow
def test_a_run_whose_second_node_dies_ends_on_the_first_with_the_weights_of_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEUROFLEET_HOME", str(tmp_path / "home"))
    launch.ensure_token()
    environment = os.environ | launch.authentication() | {launch.LOOPBACK: "0"}
    command = [sys.executable, "-m", "neurofleet.cli", "train", *TRAINED]
    command += ["launcher=ray", "launcher.num_workers=[1,2]"]
    with two_raylets(environment) as (address, take_away), (tmp_path / "log").open("w+") as log:
        environment["RAY_ADDRESS"] = address
        with subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment) as training:
            while training.poll() is None and newest(tmp_path) < NUM_STEPS // 10:
                time.sleep(0.05)
            take_away()
            training.wait(timeout=500)
        log.seek(0)
        told = log.read()
    assert training.returncode == 0, told
    (folder,) = (tmp_path / "home" / "runs").iterdir()
    assert "starts with 2 of 2 workers\n" in told
    assert "goes on with 1 of 2 workers from step " in told
    assert "[state-dump]" not in told

    with contextlib.closing(sqlite3.connect(tmp_path / "home" / "mlflow" / "mlflow.db")) as store:
        assert store.execute("SELECT run_uuid, status FROM runs").fetchall() == [(folder.name, "FINISHED")]
        sizes = "SELECT step, value FROM metrics WHERE key = ? ORDER BY step"
        (first, two), (then, one) = store.execute(sizes, [launch.NUM_WORKERS]).fetchall()
    assert (first, two, one) == (0, 2.0, 1.0)
    assert 0 < then < NUM_STEPS

    run(experiments.compose(TRAINED), folder=tmp_path / "alone")
    ours, theirs = (
        checkpoint.decode((one / "weights.safetensors").read_bytes())[0] for one in (folder, tmp_path / "alone")
    )
    assert set(ours) == set(theirs)
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-5
