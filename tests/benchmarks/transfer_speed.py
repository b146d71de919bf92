"""`make bench-transfer`: what fine-tuning costs beside what it cannot do without.

An epoch on frozen features against a linear head on the same features by hand, with the same fused AdamW, in the same
order of rows; and getting a base into a network, ready to train, against reading its file: its bytes alone, with the
sha256 that every reader of a base checks, and into tensors.  One thread, paired in one run, medians of ratios and their
quartiles; milliseconds are the least.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["NEUROFLEET_HOME"] = tempfile.mkdtemp(prefix="neurofleet-bench-")
os.environ.pop("MLFLOW_TRACKING_URI", None)
os.environ.setdefault("NEUROFLEET_DATA", str(Path(__file__).resolve().parents[2] / "data"))

import contenders
import safetensors.torch
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import neurofleet.run
from neurofleet import experiment as experiments
from neurofleet import paths
from neurofleet.data.parquet import Rows
from neurofleet.experiment import Experiment
from neurofleet.families._base import Family
from neurofleet.release import bases
from neurofleet.run import plan
from neurofleet.spec import DataSpec
from neurofleet.transfer import base as kept
from neurofleet.transfer import order

console = Console(width=110)
COMMON = ("trainer.num_threads=1", "trainer.accelerator=cpu", "optimizer=adamw", "control=off", "method=frozen")
LOADED = (("pretrained/efficientnet_lite0", "textures"), ("pretrained/minilm", "food_reviews"))


def ordered(base: str, *overrides: str) -> Experiment:
    settings = experiments.plain(experiments.composed("finetune", [f"base={base}", *COMMON, *overrides]))
    return order.Start(bases.resolve(base)).order(settings).experiment


class Head(contenders.Task):
    """A head on features that stand in memory: ours with `method=frozen`, and a linear layer by hand."""

    def __init__(self, title: str, base: str, *overrides: str) -> None:
        self.base, self.given = base, overrides
        planned = plan(self.experiment(1))
        cpu = torch.device("cpu")
        self.title, self.spec, self.batch_size = title, planned.data.spec, planned.data.batch_size
        self.train, self.val = (Rows(*planned.supply.tensors(stage, cpu)) for stage in ("train", "val"))
        self.validate_every = planned.config.check_val_every_n_epoch
        self.num_rows, self.epochs = len(self.train.targets), self.validate_every

    def experiment(self, epochs: int) -> Experiment:
        return ordered(self.base, *self.given, f"trainer.max_epochs={epochs}")

    def network(self) -> nn.Module:
        readout = plan(self.experiment(1)).family.readout
        assert isinstance(readout, nn.Linear)
        layer = nn.Linear(readout.in_features, readout.out_features)
        layer.load_state_dict(readout.state_dict())
        return layer


def base_of_ours(folder: Path) -> str:
    experiment = experiments.compose(
        ["family=cnn", "data=mnist5k", "trainer.max_epochs=1", "trainer.num_threads=1", "trainer.accelerator=cpu"]
    )
    with contenders.silence():
        neurofleet.run.run(experiment, folder=folder)
    return str(folder)


def compare_heads(task: Head, seconds: float, repetitions: int) -> None:
    once, theirs = contenders.by_hand(task, task.validate_every, fused=True, order=contenders.our_order(task))
    _, mine = ours(task, task.validate_every)
    console.print(f"\n{task.title}: validation loss {mine:.6f}, by hand in the same order {theirs:.6f}")
    if not abs(mine - theirs) <= 1e-3 * abs(theirs):
        sys.exit(f"the results of {task.title} differ by {abs(mine - theirs)}: what is timed is not the same training")
    task.epochs = task.whole_rounds(seconds / once * task.validate_every)
    ratios = []
    for repetition in range(repetitions):
        ways: dict[str, Callable[[], contenders.Timing]] = {
            "ours": lambda: ours(task, task.epochs),
            "hand": lambda: contenders.by_hand(task, task.epochs, fused=True),
        }
        took = {name: ways[name]()[0] for name in (list(ways) if repetition % 2 == 0 else reversed(ways))}
        ratios.append(took["ours"] / took["hand"])
    show(f"{task.title}, {task.epochs} epochs of {task.num_rows} rows", [("ours / head by hand", ratios)])


def ours(task: Head, epochs: int) -> contenders.Timing:
    stopwatch = contenders.Stopwatch()
    with tempfile.TemporaryDirectory() as folder, stopwatch(), contenders.silence():
        result = neurofleet.run.run(task.experiment(epochs), folder=Path(folder))
    return stopwatch[0], result.metrics["val/loss"]


def compare_loading(base: str, data: str, repetitions: int) -> None:
    experiment = ordered(base, f"data={data}")
    spec = experiments.build_data(experiment).spec
    path = paths.home() / "bases" / experiment["family"]["base"]["sha256"] / kept.WEIGHTS
    ways: dict[str, Callable[[], object]] = {
        "base to network": lambda: loaded(experiment, spec),
        "bytes from the page cache alone": path.read_bytes,
        "bytes and their sha256": lambda: hashlib.sha256(path.read_bytes()).digest(),
        "tensors, verified": lambda: verified(path),
    }
    took: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repetitions):
        kept._latest.clear()  # as in a process that starts
        for name, way in ways.items():
            took[name].append(timed(way))
    mine = took.pop("base to network")
    title = f"{base}, {path.stat().st_size / 1e6:.0f} MB: base to network {1000 * min(mine):.0f} ms, against reading"
    show(
        title,
        [
            (f"{name}, {1000 * min(theirs):.1f} ms", [one / other for one, other in zip(mine, theirs, strict=True)])
            for name, theirs in took.items()
        ],
    )


def verified(path: Path) -> dict[str, torch.Tensor]:
    """What a reader that checks what it reads cannot do without, by the format's own library."""
    payload = path.read_bytes()
    hashlib.sha256(payload).digest()
    return safetensors.torch.load(payload)


def loaded(experiment: Experiment, spec: DataSpec) -> Family:
    family = experiments.build_family(experiment, spec)
    family.begin(experiment["seed"])
    return family


def timed(function: Callable[[], object]) -> float:
    begin = contenders.clock()
    function()
    return contenders.clock() - begin


def show(title: str, rows: list[tuple[str, list[float]]]) -> None:
    table = Table("ratio", title=title, title_justify="left")
    for heading in ("median", "quartiles"):
        table.add_column(heading, justify="right")
    for name, ratios in rows:
        lower, middle, upper = contenders.quartiles(ratios)
        table.add_row(name, f"{middle:.2f}", f"{lower:.2f} to {upper:.2f}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a run of the head by hand")
    parser.add_argument("--clock", choices=contenders.CLOCKS, default="wall")
    options = parser.parse_args()
    contenders.use_clock(options.clock)
    torch.set_num_threads(1)
    begin = time.monotonic()
    console.print(f"torch {torch.__version__}, load {os.getloadavg()[0]:.1f}, {options.clock} time")
    with tempfile.TemporaryDirectory() as folder:
        cnn = base_of_ours(Path(folder, "cnn"))
        every = "trainer.check_val_every_n_epoch=20"
        for batch_size in (32, 256):
            task = Head(
                f"mnist5k from a CNN, batch {batch_size}", cnn, "data=mnist5k", f"data.batch_size={batch_size}", every
            )
            compare_heads(task, options.seconds, options.repetitions)
    for base, data in LOADED:
        compare_loading(base, data, options.repetitions)
    console.print(f"{time.monotonic() - begin:.0f} s in all, load at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
