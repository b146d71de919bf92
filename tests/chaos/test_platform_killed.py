"""All of the platform killed, again and again, while 200 jobs wait and run."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neurofleet import cluster
from neurofleet.cluster import platform as platforms
from neurofleet.cluster import processes, state
from neurofleet.cluster.job import ENDS
from neurofleet.cluster.ledger import Ledger
from neurofleet.submit import submit

SCRIPT = """
import os, sys
with open("done.txt", "a") as done:
    done.write(sys.argv[1] + "\\n")
"""
NUMBER, KILLS = 200, (0, 20, 60)
PATIENCE = 3600.0  # seconds for all of them


@pytest.mark.slow
@pytest.mark.chaos(
    f"the platform killed {', '.join(map(str, KILLS))} s after {NUMBER} submits",
    allowed="none lost, none twice but what ran at a kill",
    long=True,
)
def test_no_acknowledged_job_is_lost_or_doubled(
    start_platform: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reached: Callable[[str], None]
) -> None:
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "note.py").write_text(SCRIPT)
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    with start_platform(tmp_path / "home") as up:
        submitted = {submit("note", [f"job{place}"]).id: f"job{place}" for place in range(NUMBER)}
        began = time.monotonic()
        for kill in KILLS:
            time.sleep(max(0.0, kill - (time.monotonic() - began)))
            kill_all()
            cluster.up()
        while any(job.state not in ENDS for job in listed()):
            assert time.monotonic() < began + PATIENCE
            time.sleep(1)
        jobs = listed()
    states = collections.Counter(job.state for job in jobs)
    times = collections.Counter((tmp_path / "done.txt").read_text().split())
    twice = sum(count - 1 for count in times.values())
    reached(f"{dict(states)}, {len(times)} of {NUMBER} done, {twice} twice, {time.monotonic() - began:.0f} s")
    assert {job.id for job in jobs} == set(submitted)
    assert states == {"SUCCEEDED": NUMBER}
    assert set(times) == set(submitted.values())
    assert twice <= len(KILLS) * up.cpus


def kill_all() -> None:
    """Every process of the platform and of what runs on it, with SIGKILL."""
    platform = state.load()
    assert platform is not None
    for name in state.NAMES:
        for process in processes.members(getattr(platform, name), platforms.half_mark(platform, name)):
            process.kill()


def listed() -> list[Any]:
    with Ledger() as book:
        return book.jobs()
