"""A machine that has no shared memory left, and many that begin at once."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from neurofleet import experiment as experiments
from neurofleet import paths
from neurofleet.cluster.job import Order
from neurofleet.cluster.ledger import Ledger
from neurofleet.launch import record

FULL = 'mount -t tmpfs -o size=64k none /dev/shm && { head -c 200k /dev/zero > /dev/shm/all 2> /dev/null; exec "$@"; }'


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param([], marks=pytest.mark.chaos("/dev/shm full", allowed="trains on, or an error within 60 s")),
        pytest.param(
            ["launcher=ray", "launcher.num_workers=2"],
            marks=pytest.mark.chaos("/dev/shm full, 2 Ray workers", allowed="trains on, or an error", long=True),
        ),
    ],
    ids=["local", "ray"],
)
def test_no_shared_memory_is_left(launcher: list[str], tmp_path: Path, reached: Callable[[str], None]) -> None:
    if os.geteuid() or sys.platform != "linux":
        pytest.skip("only Linux's root can fill a /dev/shm of its own")
    inside = ["unshare", "--mount", "sh", "-c", FULL, "sh"]
    if subprocess.run([*inside, "true"], capture_output=True).returncode:
        pytest.skip("no mount of its own can be made here")
    command = [sys.executable, "-m", "neurofleet.cli", "train", "family=mlp", "data=digits", "trainer.max_epochs=1"]
    began = time.monotonic()
    environment = os.environ | {"NEUROFLEET_HOME": str(tmp_path)}
    done = subprocess.run([*inside, *command, *launcher], env=environment, capture_output=True, text=True, timeout=400)
    last = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()[-1]
    reached(f"exit {done.returncode} after {time.monotonic() - began:.0f} s: {last[:60]}")
    assert done.returncode == 0, done.stderr


@pytest.mark.chaos("50 submits in the same second", allowed="50 jobs, each with an id of its own")
def test_jobs_that_are_submitted_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reached: Callable[[str], None]
) -> None:
    monkeypatch.setenv("NEUROFLEET_HOME", str(tmp_path))

    def submit(_: int) -> str:
        with Ledger() as book:
            return book.submit(Order("train", ["family=mlp"], ["true"], "/"))[0].id

    found, seconds = at_once(submit, 50)
    reached(f"{len(set(found))} ids in {seconds:.2f} s")
    assert len(set(found)) == 50


@pytest.mark.slow
@pytest.mark.parametrize(
    "number",
    [
        pytest.param(6, marks=pytest.mark.chaos("6 runs that begin at once", allowed="6 folders")),
        pytest.param(50, marks=pytest.mark.chaos("50 runs that begin at once", allowed="50 folders", long=True)),
    ],
)
def test_runs_that_begin_at_once(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reached: Callable[[str], None]
) -> None:
    monkeypatch.setenv("NEUROFLEET_HOME", str(tmp_path))
    experiment = experiments.compose(["family=mlp", "data=digits"])
    found, seconds = at_once(lambda _: record.scheduled(experiment), number)
    folders = {paths.run(run_id).resolve() for run_id in found}
    reached(f"{len(folders)} folders in {seconds:.1f} s")
    assert len(folders) == number
    assert all((folder / "experiment.yaml").is_file() for folder in folders)


def at_once(function: Callable[[int], str], number: int) -> tuple[list[str], float]:
    """What it gives to so many threads that call it together, and how long all of them took."""
    barrier, found = threading.Barrier(number + 1), list[str]()

    def one(place: int) -> None:
        barrier.wait()
        found.append(function(place))

    threads = [threading.Thread(target=one, args=(place,)) for place in range(number)]
    for thread in threads:
        thread.start()
    barrier.wait()
    began = time.monotonic()
    for thread in threads:
        thread.join()
    return found, time.monotonic() - began
