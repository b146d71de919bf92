"""TrainerConfig: how long and how an experiment trains; its values live in configs/trainer."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection, Mapping
from typing import Any

import torch

from neurofleet.errors import ConfigError

DTYPES = {"32-true": torch.float32, "64-true": torch.float64, "bf16-mixed": torch.float32}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How long and how to train; the names are Lightning's where it has them.

    max_epochs:              passes over the training rows
    check_val_every_n_epoch: epochs between two validations
    log_every_n_steps:       how often a training step is measured and logged
    precision:               32-true, 64-true or bf16-mixed
    accelerator:             auto, cpu or gpu
    gradient_clip_val:       largest norm of the gradient, or None
    num_threads:             of the CPU, or None for torch's own choice
    early_stopping:          None, or monitor, mode (min, max), patience (validations), min_delta, restore_best; and
                             stopping_threshold if there is a value that is good enough
    checkpoint:              every_n_steps, every_n_minutes (None for never: the end always leaves one), keep_last
    register:                whether the model is released in the registry when the run is done; or its name there
    """

    max_epochs: int
    check_val_every_n_epoch: int
    log_every_n_steps: int
    precision: str
    accelerator: str
    gradient_clip_val: float | None
    num_threads: int | None
    early_stopping: Mapping[str, Any] | None
    checkpoint: Mapping[str, Any]
    register: bool | str

    def model_name(self, usual: str) -> str:
        """What the model is called in the registry: what was asked for, or `usual`."""
        return self.register if isinstance(self.register, str) else usual

    def __post_init__(self) -> None:
        for name in ("max_epochs", "check_val_every_n_epoch", "log_every_n_steps"):
            _need_count(f"trainer.{name}", getattr(self, name), at_least=1)
        if self.precision not in DTYPES:
            raise ConfigError(f"trainer.precision needs one of {', '.join(DTYPES)}, got {self.precision!r}")
        if isinstance(self.register, str) and not re.fullmatch(r"[\w.-]+", self.register):
            raise ConfigError(
                "trainer.register needs true, false, or a model's name of letters, digits, '.', '_' and '-', got "
                f"{self.register!r}"
            )
        if self.accelerator not in ("auto", "cpu", "gpu"):
            raise ConfigError(f"trainer.accelerator needs auto, cpu or gpu, got {self.accelerator!r}")
        _need_keys("trainer.checkpoint", self.checkpoint, {"every_n_steps", "every_n_minutes", "keep_last"})
        _need_count("trainer.checkpoint.keep_last", self.checkpoint["keep_last"], at_least=1)
        steps, minutes = self.checkpoint["every_n_steps"], self.checkpoint["every_n_minutes"]
        for name, count in (("num_threads", self.num_threads), ("checkpoint.every_n_steps", steps)):
            _need_count(f"trainer.{name}", 1 if count is None else count, at_least=1)
        for name, size in (("gradient_clip_val", self.gradient_clip_val), ("checkpoint.every_n_minutes", minutes)):
            _need_positive(f"trainer.{name}", 1 if size is None else size)
        if self.early_stopping is not None:
            keys = {"monitor", "mode", "patience", "min_delta", "restore_best"}
            _need_keys("trainer.early_stopping", self.early_stopping, keys, optional={"stopping_threshold"})
            self._check_early_stopping(**self.early_stopping)

    @staticmethod
    def _check_early_stopping(
        *, monitor: Any, mode: Any, patience: Any, min_delta: Any, restore_best: Any, stopping_threshold: Any = None
    ) -> None:
        if not isinstance(monitor, str):
            raise ConfigError(f"trainer.early_stopping.monitor needs the name of a metric, got {monitor!r}")
        if mode not in ("min", "max"):
            raise ConfigError(f"trainer.early_stopping.mode needs min or max, got {mode!r}")
        _need_count("trainer.early_stopping.patience", patience, at_least=0)
        if isinstance(min_delta, bool) or not isinstance(min_delta, int | float) or not 0 <= min_delta < math.inf:
            raise ConfigError(f"trainer.early_stopping.min_delta needs a number of at least 0, got {min_delta!r}")
        if isinstance(stopping_threshold, bool) or not isinstance(stopping_threshold, int | float | None):
            raise ConfigError(
                f"trainer.early_stopping.stopping_threshold needs a number or null, got {stopping_threshold!r}"
            )
        if not isinstance(restore_best, bool):
            raise ConfigError(f"trainer.early_stopping.restore_best needs true or false, got {restore_best!r}")


def _need_count(where: str, value: Any, *, at_least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ConfigError(f"{where} needs a whole number of at least {at_least}, got {value!r}")


def _need_positive(where: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigError(f"{where} needs a number above 0 or null, got {value!r}")


def _need_keys(where: str, values: Any, keys: set[str], optional: Collection[str] = ()) -> None:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} needs the keys {', '.join(sorted(keys))}, got {values!r}")
    if set(values) - set(optional) != keys:
        raise ConfigError(
            f"{where} needs the keys {', '.join(sorted(keys))}, got {', '.join(sorted(values)) or 'none'}"
        )
