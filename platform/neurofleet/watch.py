"""Watch: the Lightning callback that follows a run: progress, tracking, checkpoints, the best weights, signals.

It acts between chunks of steps, never within one.  A Lightning epoch is one round: the epochs between two validations.
"""

from __future__ import annotations

import contextlib
import math
import secrets
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason
from torch import Tensor

from neurofleet import checkpoint
from neurofleet.errors import CheckpointError, DivergedError, StoppedError
from neurofleet.families._base import Family
from neurofleet.loaders import Loader
from neurofleet.progress import Bar, Progress
from neurofleet.steps import Chunk

CHECKPOINTS = "checkpoints"  # in a run's folder
WRITER = ".writer"  # beside it: who writes checkpoints
STOP = ".stop"  # beside it: the number of the signal that the driver of workers got
Row = tuple[int, float, dict[str, float]]


class Log(Protocol):
    """What a run needs of a tracker."""

    def log_many(self, rows: Sequence[Row]) -> None:
        """Rows of (step, epoch, {name: value})."""


class Watch(pl.Callback):
    """Follows one fit.  Only the writer (rank 0) shows, logs and saves; every worker keeps the same state.

    every_n_steps, every_n_minutes: when checkpoints are written besides the one at the end; None for never
    keep_last:                      how many checkpoints stay on disk
    """

    def __init__(
        self,
        *,
        folder: Path,
        loader: Loader,
        tracker: Log | None,
        stopper: EarlyStopping | None,
        restore_best: bool,
        writer: bool,
        every_n_steps: int | None,
        every_n_minutes: float | None,
        keep_last: int,
        experiment_digest: str,
        description: str,
    ) -> None:
        self.folder = folder / CHECKPOINTS
        self._stop = folder / STOP
        self._claim = folder / WRITER
        self._name = secrets.token_hex(8)
        self.experiment_digest = experiment_digest
        self.loader = loader
        self.tracker = tracker
        self.stopper = stopper
        self.restore_best = restore_best
        self.writer = writer
        self.every_n_steps = every_n_steps
        self.every_seconds = None if every_n_minutes is None else every_n_minutes * 60
        self.keep_last = keep_last
        self.bar = Bar(description) if writer else None
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}
        self.verdict: dict[str, float] = {}  # the last validation, or that of the best weights
        self.step = 0
        self.finished = False
        self._round_loss = (0.0, 0)  # sum over the steps of this round, and their number
        self._latest: dict[str, float] = {}
        self._saved_at = time.monotonic()
        self._started = (time.monotonic(), 0)
        self._signal: int | None = None
        self._handlers: dict[int, Any] = {}
        self._restored: dict[str, Tensor] = {}

    # What happens between chunks.

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._started = (time.monotonic(), self.step)
        checkpoint.unpack_optimizer(trainer.optimizers[0], self._restored)
        self._restored = {}
        for number in self._handlers:  # over Lightning's own, which end a run with exit code 0
            signal.signal(number, self._on_signal)
        if self.bar is not None:
            self.bar.__enter__()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Chunk, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Family)
        assert pl_module.last_chunk is not None
        result = pl_module.last_chunk
        self.step = self.loader.step = self.step + len(result.losses)
        self.loader.pace(result.step_seconds)
        total, count = self._round_loss
        for loss in result.losses:  # one after another, so that the sum does not depend on where chunks are cut
            total += loss
        self._round_loss = (total, count + len(result.losses))
        self._latest["train/loss"] = result.losses[-1]
        if self.tracker is not None and result.measured:
            per_epoch = self.loader.steps_per_epoch
            self.tracker.log_many(
                [
                    (step, step / per_epoch, {f"train/{name}": value for name, value in metrics.items()})
                    for step, metrics in result.measured.items()
                ]
            )
        self._show()
        ends_round = self.step % self.loader.steps_per_round == 0 or self.step == self.loader.num_steps
        if not ends_round:  # at the end of a round validation comes first: its verdict is part of the state
            self._save_if_due(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch = self.step / self.loader.steps_per_epoch
        total, count = self._round_loss
        row = {"train/loss_epoch": total / count}
        row |= {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        row |= self.loader.scores()
        self._require_finite(pl_module, row)
        self._round_loss = (0.0, 0)
        self._latest |= row
        self.history.append({"step": self.step, "epoch": epoch, **row})
        if self.tracker is not None:
            self.tracker.log_many([(self.step, epoch, row)])
        improved = self.stopper is not None and is_best(self.stopper)
        if improved and self.restore_best:
            self.best = {name: tensor.detach().clone() for name, tensor in pl_module.state_dict().items()}
        if improved or not self.restore_best:
            self.verdict = row
        self.finished = trainer.should_stop or self.step >= self.loader.num_steps
        self._show(force=self.finished)
        if self.finished:
            self.save(trainer, pl_module)
        else:
            self._save_if_due(trainer, pl_module)

    def _require_finite(self, module: pl.LightningModule, row: dict[str, float]) -> None:
        """After the last step of a round there is no training loss that would tell what it did to the weights."""
        finite = all(bool(torch.isfinite(parameter).all()) for parameter in module.parameters())
        if not finite or not math.isfinite(row.get("val/loss", 0.0)):
            raise DivergedError(
                f"weights and validation loss must stay finite, and do not after step {self.step - 1}; "
                "lower optimizer.lr, set trainer.gradient_clip_val, or check the data for extreme values",
                self.step - 1,
            )

    def _save_if_due(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if dist.is_initialized():
            self._agree_on_signal(module.device)
        if self._signal is not None:
            self.save(trainer, module)
            raise StoppedError(f"stopped by {signal.Signals(self._signal).name} at step {self.step}", self._signal)
        by_step = self.every_n_steps is not None and self.step % self.every_n_steps == 0
        by_time = self.every_seconds is not None and time.monotonic() - self._saved_at >= self.every_seconds
        if by_step or (
            by_time and not checkpoint.is_sharded(module)
        ):  # workers' clocks differ, and shards need every worker
            self.save(trainer, module)

    def _agree_on_signal(self, device: torch.device) -> None:
        """Rank 0 looks what the driver was sent, and all workers stop at the same step: shards are saved together."""
        if self.writer and self._signal is None:
            with contextlib.suppress(OSError, ValueError):  # there is no driver, or it is writing
                self._signal = int(self._stop.read_text())
        told = torch.tensor(self._signal or 0, device=device)
        dist.all_reduce(told, dist.ReduceOp.MAX)
        self._signal = int(told) or None

    def _show(self, *, force: bool = False) -> None:
        if self.bar is None:
            return
        began, first = self._started
        per_step = (time.monotonic() - began) / max(self.step - first, 1)
        steps_per_epoch, num_steps = self.loader.steps_per_epoch, self.loader.num_steps
        eta = (num_steps - self.step) * per_step
        epochs = self.step // steps_per_epoch, num_steps // steps_per_epoch
        self.bar.update(Progress(self.step, num_steps, *epochs, eta, dict(self._latest)), force=force)

    # State.

    def save(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Write a checkpoint; where weights are sharded every worker helps, else the writer needs nobody."""
        self._saved_at = time.monotonic()
        if not self.writer and not checkpoint.is_sharded(module):
            return
        tensors = {f"model.{name}": tensor for name, tensor in module.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        tensors |= checkpoint.pack_optimizer(trainer.optimizers[0])
        loader_tensors, loader_state = self.loader.state()
        tensors |= {f"loader.{name}": tensor for name, tensor in loader_tensors.items()}
        tensors = checkpoint.gathered(tensors)
        state = {
            "experiment": self.experiment_digest,
            "step": self.step,
            "finished": self.finished,
            "history": self.history,
            "verdict": self.verdict,
            "round_loss": self._round_loss,
            "loader": loader_state,
            "stopper": None if self.stopper is None else _plain(self.stopper.state_dict()),
        }
        if self.writer:
            self._need_claim()
            checkpoint.save(self.folder, self.step, tensors, state, keep_last=self.keep_last)

    def claim(self) -> None:
        """From now on this process writes the run's checkpoints: one that was cut off from its cluster, and trains on
        while the run goes on elsewhere, is refused."""
        if self.writer:
            checkpoint.write(self._claim, self._name.encode())

    def _need_claim(self) -> None:
        if self._claim.read_text() != self._name:
            raise CheckpointError(
                f"one process at a time writes the checkpoints of a run; {self.folder} has another now"
            )

    def restore(self, module: Family, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Everything but the optimizer's state, which exists only once the fit has begun."""
        if state["experiment"] != self.experiment_digest:
            raise CheckpointError(
                f"{self.folder} holds checkpoints of another experiment; train in a folder of its own"
            )
        weights = module.state_dict()
        checkpoint.fill(weights, _strip(tensors, "model."))
        self.best = {name: checkpoint.like(value, weights[name]) for name, value in _strip(tensors, "best.").items()}
        self.step = self.loader.step = state["step"]
        self.finished = state["finished"]
        self.history = state["history"]
        self.verdict = state["verdict"]
        self._round_loss = tuple(state["round_loss"])
        if "loader" not in state:
            raise CheckpointError(
                f"{self.folder} holds checkpoints of an earlier version, which cannot be gone on from; train afresh"
            )
        self.loader.restore(_strip(tensors, "loader."), state["loader"])
        if self.stopper is not None and state["stopper"] is not None:
            best_score = torch.tensor(state["stopper"]["best_score"], dtype=torch.float64)
            self.stopper.load_state_dict(state["stopper"] | {"best_score": best_score})
        kept = {name: tensor for name, tensor in tensors.items() if name.startswith("optimizer.")}
        self._restored = {name: tensor.clone() for name, tensor in kept.items()}  # not views of the whole file

    # Signals: the first asks for a checkpoint and an orderly end at the next chunk, the second does not wait.

    def __enter__(self) -> Watch:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.getsignal(number)
        return self

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            raise KeyboardInterrupt
        self._signal = number
        if self.writer:
            name = signal.Signals(number).name
            print(f"{name}: saving a checkpoint, then stopping (again to stop at once)", flush=True)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self.bar is not None:
            self.bar.__exit__()


def is_best(stopper: EarlyStopping) -> bool:
    """Whether no validation before was better; what passes the threshold is, but Lightning does not count it so."""
    return stopper.wait_count == 0 or stopper.stopping_reason is EarlyStoppingReason.STOPPING_THRESHOLD


def _strip(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value.item() if isinstance(value, Tensor) else value for name, value in state.items()}
