"""`make bench`: training speed against a plain PyTorch loop and stock Lightning, and what tracking costs.

All contenders take turns within a repetition, in an order that changes, so that a ratio compares neighbours in time; a
table gives the median of the ratios and their quartiles.  One thread.  A slow contender trains fewer epochs: rates are
compared, not times.  Before the clock runs, ours and the loop by hand are held to the same losses in the same order of
rows.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["NEUROFLEET_HOME"] = tempfile.mkdtemp(prefix="neurofleet-bench-")
os.environ.pop("MLFLOW_TRACKING_URI", None)
os.environ.setdefault("NEUROFLEET_DATA", str(Path(__file__).resolve().parents[2] / "data"))

import contenders
import torch
import tracking_cost
from contenders import Task, Timing
from networks import cnn, mlp
from rich.console import Console
from rich.table import Table

from neurofleet.tracking import Tracker

SLOWER = 4  # DataLoader and stock Lightning train a quarter of the epochs
console = Console(width=110)


def tasks() -> list[Task]:
    common = ["trainer.num_threads=1", "trainer.accelerator=cpu", "optimizer=adamw"]
    small = [*common, "family=mlp", "data=digits", "trainer.check_val_every_n_epoch=20"]
    plain = [*common, "family=cnn", "family.norm=none", "family.dropout=0.0", "data=mnist5k"]
    return [
        Task("MLP 64-64-10, digits, batch 32", [*small, "data.batch_size=32"], mlp.Plain),
        Task("MLP 64-64-10, digits, batch 256", [*small, "data.batch_size=256"], mlp.Plain),
        Task("CNN 16-32, mnist5k, batch 64", [*plain, "data.batch_size=64"], cnn.Plain),
    ]


def compare(task: Task, tracker: Tracker, num_repetitions: int) -> None:
    check_results(task)
    few = task.whole_rounds(task.epochs / SLOWER)
    ways: dict[str, tuple[int, Callable[[int], Timing]]] = {
        "Neurofleet": (task.epochs, lambda epochs: contenders.ours(task, epochs, tracker)),
        "(a) by hand, tensors in memory": (task.epochs, lambda epochs: contenders.by_hand(task, epochs, fused=True)),
        "(a) with torch's default AdamW": (task.epochs, lambda epochs: contenders.by_hand(task, epochs, fused=False)),
        "(b) by hand, DataLoader": (few, lambda epochs: contenders.with_loader(task, epochs)),
        "(c) stock Lightning": (few, lambda epochs: contenders.stock_lightning(task, epochs)),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for repetition in range(num_repetitions):
        for name in list(ways) if repetition % 2 == 0 else reversed(ways):
            epochs, train = ways[name]
            seconds, loss = train(epochs)
            assert math.isfinite(loss)
            rates[name].append(task.num_steps(epochs) / seconds)
    title = f"{task.title}: {task.num_steps(task.epochs)} steps, {num_repetitions} repetitions, validated every "
    title += f"{task.validate_every} epochs" if task.validate_every > 1 else "epoch"
    table = Table("contender", title=title, title_justify="left")
    for heading in ("steps/s", "Neurofleet is faster by", "quartiles"):
        table.add_column(heading, justify="right")
    for name, own in rates.items():
        ratios = [ours / theirs for ours, theirs in zip(rates["Neurofleet"], own, strict=True)]
        lower, middle, upper = contenders.quartiles(ratios)
        table.add_row(name, f"{median(own):.0f}", f"{middle:.2f}x", f"{lower:.2f} to {upper:.2f}")
    console.print(table)


def check_results(task: Task) -> None:
    """The same rows in the same order must give the same loss: nothing is left out to be fast."""
    epochs = task.validate_every
    _, ours = contenders.ours(task, epochs, None)
    _, theirs = contenders.by_hand(task, epochs, fused=True, order=contenders.our_order(task))
    difference = abs(ours - theirs)
    console.print(f"\n{task.title}: validation loss {ours:.6f}, by hand in the same order {theirs:.6f}")
    if not difference <= 1e-3 * abs(theirs):
        sys.exit(f"the results of {task.title} differ by {difference}: what is timed is not the same training")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a run of the loop by hand")
    parser.add_argument(
        "--clock", choices=contenders.CLOCKS, default="wall", help="cpu: less noisy on a shared machine"
    )
    options = parser.parse_args()
    contenders.use_clock(options.clock)
    torch.set_num_threads(1)
    begin = time.monotonic()
    console.print(
        f"torch {torch.__version__}, one of {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, {options.clock} time"
    )
    tracker = Tracker.start(experiment="bench", run_name="training speed", tags={}, params={})
    assert tracker.run_id  # MLflow is imported while nothing is timed
    made = tasks()
    for task in made:
        task.last(options.seconds)
        compare(task, tracker, options.repetitions)
    tracker.finish()
    tracking_cost.report(made[0], console, options.repetitions)
    console.print(f"{time.monotonic() - begin:.0f} s in all, load at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
