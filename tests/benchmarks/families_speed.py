"""`python tests/benchmarks/families_speed.py [NAME ...]`: a step of every family against a plain PyTorch loop.

`networks/NAME.py` holds the same network written by hand (`Plain(spec)` with `loss(*batch)`) and the experiment
(`OVERRIDES`), or `train(epochs)`, another library's.  Both take the steps of the same number of epochs over tensors in
memory with the optimizer of the experiment, in turns, in an order that changes; one thread.  Of agents the learning is
compared: both learn from the same batches, for which an agent acted before the clock ran.

A table gives the median of the paired ratios.  Exit code 1 if one is below 0.95.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("NEUROFLEET_DATA", str(Path(__file__).resolve().parents[2] / "data"))

from collections.abc import Iterator
from typing import Any
from unittest import mock

import contenders
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from neurofleet import experiment as experiments
from neurofleet import supply
from neurofleet.data.acting import ActingLoader, acting_loader
from neurofleet.run import Plan, plan
from neurofleet.steps import Batch

FOLDER = Path(__file__).parent / "networks"
SLOWEST = 0.95
ALONE = {"rank": 0, "world_size": 1, "device": torch.device("cpu")}
COMMON = ["trainer.num_threads=1", "trainer.accelerator=cpu", "trainer.check_val_every_n_epoch=1000"]


class Learning(ActingLoader):
    """An agent's loader that lets nobody act: its batches are those that are stored."""

    stored: tuple[Batch, ...] = ()

    def _size(self, step: int) -> int:
        return len(self._batch(step)[0])

    def _batch(self, step: int) -> Batch:
        return self.stored[step % len(self.stored)]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {}


def planned(network: ModuleType) -> Plan:
    return plan(experiments.compose([*COMMON, *network.OVERRIDES]))


@functools.cache
def experience(network: ModuleType) -> tuple[Batch, ...]:
    """An epoch's batches of an agent that does not learn."""
    made = planned(network)
    loader = acting_loader(
        made.data, made.family, dtype=torch.float32, seed=0, max_epochs=1, epochs_per_round=1, cut_every=None, **ALONE
    )
    with torch.no_grad():
        return tuple(batch for chunk in loader for batch in chunk.batches)


@contextlib.contextmanager
def learning_alone(network: ModuleType) -> Iterator[None]:
    """A run of an agent learns from what is stored, and is not validated."""

    def loader(*arguments: Any, **settings: Any) -> Learning:
        made = Learning(*arguments, **settings)
        made.stored = experience(network)
        return made

    def nothing(*arguments: Any, **settings: Any) -> None:
        return None

    with (
        mock.patch.object(supply, "acting_loader", loader),
        mock.patch.object(supply.EpisodeSupply, "held_out", nothing),
    ):
        yield


def acts(network: ModuleType) -> bool:
    return any(override.startswith("data=env/") for override in network.OVERRIDES)


def ours(network: ModuleType, epochs: int) -> float:
    """Seconds of the training phase of `neurofleet.run`."""
    task = contenders.Untimed([*COMMON, *network.OVERRIDES])
    with learning_alone(network) if acts(network) else contextlib.nullcontext():
        seconds, _ = contenders.ours(task, epochs, None)
    return seconds


def by_hand(network: ModuleType, epochs: int) -> float:
    if hasattr(network, "train"):
        return float(network.train(epochs))
    made = planned(network)
    plain = network.Plain(made.data.spec)
    check_equal_size(made.family, plain)
    optimizer = made.family.recipe.optimizer([one for one in plain.parameters() if one.requires_grad])
    stored = experience(network) if acts(network) else None
    rows = made.data.rows("train") if stored is None else ()
    begin = contenders.clock()
    for _ in range(epochs):
        for batch in stored or shuffled(rows, made.data.batch_size):
            plain.loss(*batch).backward()
            optimizer.step()
            optimizer.zero_grad()
    return contenders.clock() - begin


def shuffled(tensors: Batch, batch_size: int) -> Iterator[Batch]:
    order = torch.randperm(len(tensors[0]))
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        yield tuple(tensor[rows] for tensor in tensors)


def check_equal_size(family: nn.Module, plain: nn.Module) -> None:
    """Raises AssertionError if one has more to learn than the other."""
    sizes = [sum(one.numel() for one in side.parameters() if one.requires_grad) for side in (family, plain)]
    assert sizes[0] == sizes[1], f"{type(family).__name__} has {sizes[0]} trainable parameters, {sizes[1]} by hand"


def compare(name: str, seconds: float, num_repetitions: int) -> tuple[tuple[str, ...], float]:
    """(name, an epoch by hand, the median ratio, its quartiles), and the median."""
    network = importlib.import_module(f"networks.{name}")
    once = by_hand(network, 1)
    epochs = max(1, round(seconds / once))
    ratios = []
    for repetition in range(num_repetitions):
        ways = (ours, by_hand) if repetition % 2 == 0 else (by_hand, ours)
        taken = {way.__name__: way(network, epochs) for way in ways}
        ratios.append(taken["by_hand"] / taken["ours"])
    lower, middle, upper = contenders.quartiles(ratios)
    return (name, f"{once * 1e3:.0f} ms", f"{middle:.2f}x", f"{lower:.2f} to {upper:.2f}"), middle


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
    slow = []
    for name in options.names:
        row, ratio = compare(name, options.seconds, options.repetitions)
        slow += [name] * (ratio < SLOWEST)
        print(" | ".join(row), file=sys.stderr, flush=True)
        table.add_row(*row)
    Console(width=110).print(table)
    if slow:
        sys.exit(f"slower than {SLOWEST} of a plain loop: {', '.join(slow)}")


if __name__ == "__main__":
    main()
