"""`python tests/benchmarks/families_speed.py [NAME ...]`: a step of every family against a plain PyTorch loop.

`networks/NAME.py` holds the same network written by hand (`Plain(spec)` with `loss(inputs, targets)`) and the
experiment (`OVERRIDES`).  Both take the steps of the same number of epochs over tensors in memory with the optimizer of
the experiment, in turns, in an order that changes; one thread.  A table gives the median of the paired ratios.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path
from statistics import median, quantiles
from types import ModuleType

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("NEUROFLEET_DATA", str(Path(__file__).resolve().parents[2] / "data"))

import contenders
import torch
from rich.console import Console
from rich.table import Table

from neurofleet import experiment as experiments
from neurofleet.run import plan

FOLDER = Path(__file__).parent / "networks"
COMMON = ["trainer.num_threads=1", "trainer.accelerator=cpu", "trainer.check_val_every_n_epoch=1000"]


def ours(network: ModuleType, epochs: int) -> float:
    """Seconds of the training phase of `neurofleet.run`, without validation."""
    task = contenders.Untimed([*COMMON, *network.OVERRIDES])
    seconds, _ = contenders.ours(task, epochs, None)
    return seconds


def by_hand(network: ModuleType, epochs: int) -> float:
    experiment = experiments.compose([*COMMON, *network.OVERRIDES])
    planned = plan(experiment)
    plain, (inputs, targets) = network.Plain(planned.data.spec), planned.data.rows("train")
    optimizer = planned.family.recipe.optimizer([one for one in plain.parameters() if one.requires_grad])
    batch_size = planned.data.batch_size
    begin = contenders.clock()
    for _ in range(epochs):
        order = torch.randperm(len(targets))
        for first in range(0, len(targets), batch_size):
            rows = order[first : first + batch_size]
            plain.loss(inputs[rows], targets[rows]).backward()
            optimizer.step()
            optimizer.zero_grad()
    return contenders.clock() - begin


def compare(name: str, seconds: float, num_repetitions: int) -> tuple[str, ...]:
    network = importlib.import_module(f"networks.{name}")
    once = by_hand(network, 1)
    epochs = max(1, round(seconds / once))
    ratios = []
    for repetition in range(num_repetitions):
        ways = (ours, by_hand) if repetition % 2 == 0 else (by_hand, ours)
        taken = {way.__name__: way(network, epochs) for way in ways}
        ratios.append(taken["by_hand"] / taken["ours"])
    lower, _, upper = quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return name, f"{once * 1e3:.0f} ms", f"{median(ratios):.2f}x", f"{lower:.2f} to {upper:.2f}"


def main() -> None:
    names = sorted(path.stem for path in FOLDER.glob("*.py"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=names, help=f"out of {', '.join(names)}")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a run of the loop by hand")
    parser.add_argument("--clock", choices=contenders.CLOCKS, default="wall")
    options = parser.parse_args()
    contenders.use_clock(options.clock)
    torch.set_num_threads(1)
    table = Table("family", title="a step of each family against a plain loop", title_justify="left")
    for heading in ("an epoch by hand", "Neurofleet is faster by", "quartiles"):
        table.add_column(heading, justify="right")
    for name in options.names:
        row = compare(name, options.seconds, options.repetitions)
        print(" | ".join(row), file=sys.stderr, flush=True)
        table.add_row(*row)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
