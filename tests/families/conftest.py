"""A DataSpec of every task, without data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from neurofleet.spec import DataSpec
from neurofleet.steps import Context


@pytest.fixture
def make_spec() -> Callable[..., DataSpec]:
    def make(task: str = "multiclass", shape: tuple[int, ...] = (4,), num_outputs: int = 3, **changes: Any) -> DataSpec:
        classes = {"multiclass": num_outputs, "binary": 2}.get(task, num_outputs if task == "multilabel" else 0)
        num_targets = 1 if task in ("multiclass", "binary") else num_outputs
        channels = shape[-1] if len(shape) == 2 else shape[0]
        settings: dict[str, Any] = {
            "name": "made",
            "kind": {1: "tabular", 2: "sequence", 3: "image"}[len(shape)],
            "task": task,
            "shape": shape,
            "inputs": tuple(f"x{i}" for i in range(shape[0])) if len(shape) == 1 else ("x",),
            "targets": tuple(f"y{i}" for i in range(num_targets)),
            "classes": tuple(f"c{i}" for i in range(classes)),
            "vocabulary": (),
            "tokenizer": "",
            "cardinalities": (),
            "input_mean": (0.0,) * channels,
            "input_std": (1.0,) * channels,
            "target_mean": (0.0,) * num_targets if task == "regression" else (),
            "target_std": (2.0,) * num_targets if task == "regression" else (),
            "split": "hashed",
            "num_rows": {"train": 1, "val": 1, "test": 1},
            "source": "test",
        }
        return DataSpec(**settings | changes)

    return make


@pytest.fixture
def make_context() -> Callable[..., Context]:
    def make(num_rows: int, *, training: bool = True, seed: int = 0, step: int = 0, first_row: int = 0) -> Context:
        rows = torch.arange(first_row, first_row + num_rows, dtype=torch.int32)
        return Context(seed, step, 0.5, rows, training, measure=True)

    return make
