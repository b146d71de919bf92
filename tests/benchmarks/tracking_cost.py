"""What tracking costs a run: its share of a long one, every step measured, and the first run on a fresh store."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import contenders
from contenders import Task
from rich.console import Console
from rich.table import Table

from neurofleet import experiment as experiments
from neurofleet.run import run
from neurofleet.tracking import Tracker

LONG_RUN = 60.0  # seconds


def report(task: Task, console: Console, num_repetitions: int) -> None:
    table = Table("what tracking costs", title_justify="left")
    table.add_column("measured", justify="right")
    table.add_column("at most", justify="right")
    cost = long_run(task)
    share = f"{cost['waits'] / cost['seconds']:.2%}"
    table.add_row(f"`neurofleet train` for {cost['seconds']:.0f} s: share of waiting for the tracker", share, "1 %")
    longest = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in cost["longest"].items() if seconds > 0.01)
    table.add_row(f"  the longest waits: {longest}", f"{cost['waits']:.2f} s in all", "")
    table.add_row("  beside the training: CPU time of tracking's own process", f"{cost['child']:.1f} s", "")
    slower = every_step(task, num_repetitions)
    lower, middle, upper = contenders.quartiles(slower)
    table.add_row(
        "every step measured and tracked, over one in 50", f"{middle:+.1%} ({lower:+.1%} to {upper:+.1%})", "5 %"
    )
    table.add_row("the first run on a fresh store, over a later one", f"{fresh_store(3):+.2f} s", "0.5 s")
    console.print(table)


def long_run(task: Task) -> dict[str, Any]:
    """`neurofleet train` in a process of its own, for about LONG_RUN seconds of training.

    Out: seconds, waits (of them, for the tracker), longest (wait by call), child (CPU seconds of tracking's process).
    """
    epochs = task.validate_every
    for _ in range(2):
        once, _ = contenders.ours(task, epochs, None)
    overrides = [*task.overrides, f"trainer.max_epochs={max(int(LONG_RUN / once), 1) * epochs}"]
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("timed_train.py")), *overrides],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return {"seconds": time.perf_counter() - begin, **json.loads(done.stderr.splitlines()[-1])}


def every_step(task: Task, num_repetitions: int) -> list[float]:
    """How much longer training takes when each step is measured and tracked, as a share."""
    epochs = task.epochs
    tracker = Tracker.start(experiment="bench", run_name="every step", tags={}, params={})
    assert tracker.run_id
    shares = []
    for _ in range(num_repetitions):
        seldom, _ = contenders.ours(task, epochs, tracker)
        often, _ = contenders.ours(task, epochs, tracker, ["trainer.log_every_n_steps=1"])
        shares.append(often / seldom - 1)
    tracker.finish()
    return shares


def fresh_store(num_repetitions: int) -> float:
    """Median seconds that the first tracked run under a new NEUROFLEET_HOME takes beyond the second."""
    before = os.environ["NEUROFLEET_HOME"]
    extra = []
    for _ in range(num_repetitions):
        home = tempfile.mkdtemp(prefix="neurofleet-fresh-")
        os.environ["NEUROFLEET_HOME"] = home
        first, second = tracked_run(Path(home) / "one"), tracked_run(Path(home) / "two")
        extra.append(first - second)
        shutil.rmtree(home)
    os.environ["NEUROFLEET_HOME"] = before
    return median(extra)


def tracked_run(folder: Path) -> float:
    experiment = experiments.compose(["family=mlp", "data=digits", "trainer.max_epochs=1", "trainer.num_threads=1"])
    begin = time.perf_counter()
    tracker = Tracker.start(experiment="bench", run_name="first", tags={}, params=experiment)
    with contenders.silence():
        run(experiment, tracker=tracker, folder=folder)
    tracker.finish()
    return time.perf_counter() - begin
