"""The same network trained on the same rows in five ways, each timed over its training phase alone.

Every way takes the same batch size, optimizer and number of validations; reading data, importing and building the
network are left out of all of them.  Ours is `run` with a real tracker: Lightning's loop, validation with torchmetrics,
metrics to MLflow, progress lines and a checkpoint.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import math
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import quantiles
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import neurofleet.run
from neurofleet import experiment as experiments
from neurofleet import loaders
from neurofleet.experiment import Experiment
from neurofleet.spec import DataSpec
from neurofleet.watch import Log

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
_clock = CLOCKS["wall"]


def clock() -> float:
    return _clock()


def use_clock(name: str) -> None:
    """`cpu` counts this process alone: less noisy where others want the machine too, but blind to waiting."""
    global _clock
    _clock = CLOCKS[name]


def quartiles(ratios: Sequence[float]) -> tuple[float, float, float]:
    lower, middle, upper = quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    return lower, middle, upper


Timing = tuple[float, float]  # seconds of the training phase, the last validation's loss


class Task:
    """One network on one dataset at one batch size; `network()` is written by hand and starts from equal weights."""

    def __init__(self, title: str, overrides: list[str], network: Callable[[DataSpec], nn.Module]) -> None:
        self.title, self.overrides, self.make = title, overrides, network
        experiment = self.experiment(1)
        data = experiments.build_data(experiment)
        self.spec, self.batch_size = data.spec, data.batch_size
        self.train, self.val = data.rows("train"), data.rows("val")
        self.validate_every = experiment["trainer"]["check_val_every_n_epoch"]
        self.num_rows = len(self.train.targets)
        self.epochs = self.validate_every

    def experiment(self, epochs: int) -> Experiment:
        return experiments.compose([*self.overrides, f"trainer.max_epochs={epochs}"])

    def network(self) -> nn.Module:
        family, network = experiments.build_family(self.experiment(1), self.spec), self.make(self.spec)
        with torch.no_grad():
            for ours, theirs in zip(family.parameters(), network.parameters(), strict=True):
                theirs.copy_(ours)
        return network

    def last(self, seconds: float) -> None:
        """Choose `epochs` so that the loop by hand takes about so long on this machine."""
        by_hand(self, self.validate_every, fused=True)
        once, _ = by_hand(self, self.validate_every, fused=True)
        self.epochs = self.whole_rounds(seconds / once * self.validate_every)

    def whole_rounds(self, epochs: float) -> int:
        """Every run ends with a validation."""
        return max(round(epochs / self.validate_every), 1) * self.validate_every

    def num_steps(self, epochs: int) -> int:
        return epochs * -(-self.num_rows // self.batch_size)


@dataclasses.dataclass(frozen=True)
class Untimed:
    """What `ours` needs to know of a task, where there is no network to compare weights with."""

    overrides: list[str]


def adamw(network: nn.Module, *, fused: bool) -> torch.optim.AdamW:
    """The settings of configs/optimizer/adamw.yaml."""
    kind = {"fused": True} if fused else {}
    return torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.01, **kind)


# Ours.


class Stopwatch(list[float]):
    """Collects the seconds that `neurofleet.run` spends in its training phase."""

    @contextlib.contextmanager
    def __call__(self) -> Any:
        original = neurofleet.run._fit

        def timed(*arguments: Any) -> None:
            begin = clock()
            original(*arguments)
            self.append(clock() - begin)

        neurofleet.run._fit = timed
        try:
            yield
        finally:
            neurofleet.run._fit = original


def silence() -> contextlib.redirect_stdout[io.StringIO]:
    """Progress lines are made and written, but not seen."""
    return contextlib.redirect_stdout(io.StringIO())


def ours(task: Task | Untimed, epochs: int, tracker: Log | None, overrides: list[str] | None = None) -> Timing:
    stopwatch = Stopwatch()
    experiment = experiments.compose([*task.overrides, f"trainer.max_epochs={epochs}", *(overrides or [])])
    with tempfile.TemporaryDirectory() as folder, stopwatch(), silence():
        result = neurofleet.run.run(experiment, tracker=tracker, folder=Path(folder))
    return stopwatch[0], result.metrics.get("val/loss", math.nan)


# (a) by hand, over tensors in memory.


def our_order(task: Task) -> Callable[[int], Tensor]:
    """The order in which `run` visits the rows: with it, results must agree and not only resemble one another."""
    loader = loaders.ChunkLoader(
        task.train, batch_size=1, seed=0, max_epochs=1, epochs_per_round=1, cut_every=None, rank=0, world_size=1
    )
    return loader.order


def by_hand(task: Task, epochs: int, *, fused: bool, order: Callable[[int], Tensor] | None = None) -> Timing:
    network = task.network()
    (inputs, targets), batch_size, num_rows = task.train, task.batch_size, task.num_rows
    begin = clock()
    optimizer = adamw(network, fused=fused)
    for epoch in range(epochs):
        indices = order(epoch) if order else torch.randperm(num_rows)
        shuffled_inputs, shuffled_targets = inputs[indices], targets[indices]
        total = torch.zeros(())  # whoever trains wants to see the mean loss of an epoch
        for first in range(0, num_rows, batch_size):
            loss = F.cross_entropy(
                network(shuffled_inputs[first : first + batch_size]), shuffled_targets[first : first + batch_size]
            )
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            total += loss.detach()
        total.item()
        if (epoch + 1) % task.validate_every == 0:
            val_loss, _ = _validate(network, [(task.val.inputs, task.val.targets)])
    return clock() - begin, val_loss


def _validate(network: nn.Module, batches: Any) -> tuple[float, float]:
    network.eval()
    loss, correct, count = torch.zeros(()), torch.zeros(()), 0
    with torch.inference_mode():
        for inputs, targets in batches:
            outputs = network(inputs)
            loss += F.cross_entropy(outputs, targets, reduction="sum")
            correct += (outputs.argmax(1) == targets).sum()
            count += len(targets)
    network.train()
    return float(loss) / count, float(correct) / count


# (b) by hand, with DataLoader.


def with_loader(task: Task, epochs: int) -> Timing:
    network = task.network()
    begin = clock()
    optimizer = adamw(network, fused=True)
    train = DataLoader(TensorDataset(*task.train), batch_size=task.batch_size, shuffle=True)
    val = DataLoader(TensorDataset(*task.val), batch_size=512)
    for epoch in range(epochs):
        total = torch.zeros(())
        for inputs, targets in train:
            loss = F.cross_entropy(network(inputs), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            total += loss.detach()
        total.item()
        if (epoch + 1) % task.validate_every == 0:
            val_loss, _ = _validate(network, val)
    return clock() - begin, val_loss


# (c) stock Lightning.


class Stock(pl.LightningModule):
    """What the tutorials show: `self.log` in every step."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        inputs, targets = batch
        loss = F.cross_entropy(self.network(inputs), targets)
        self.log("train/loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        inputs, targets = batch
        outputs = self.network(inputs)
        self.log("val/loss", F.cross_entropy(outputs, targets))
        self.log("val/accuracy", (outputs.argmax(1) == targets).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return adamw(self.network, fused=True)


def stock_lightning(task: Task, epochs: int) -> Timing:
    """Its fastest sensible settings: metrics to CSV every 50 steps, its checkpoint a validation, no progress bar."""
    folder = tempfile.mkdtemp()
    module = Stock(task.network())
    with warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore")  # its advice on workers and loggers
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            check_val_every_n_epoch=task.validate_every,
            num_sanity_val_steps=0,
            logger=pl.loggers.CSVLogger(folder),
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        train = DataLoader(TensorDataset(*task.train), batch_size=task.batch_size, shuffle=True)
        val = DataLoader(TensorDataset(*task.val), batch_size=512)
        begin = clock()
        trainer.fit(module, train, val)
        seconds = clock() - begin
    shutil.rmtree(folder)
    return seconds, float(trainer.callback_metrics["val/loss"])


@contextlib.contextmanager
def quiet() -> Any:
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
