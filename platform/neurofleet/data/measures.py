"""What lies in a prepared dataset's files: how classes, targets and lengths are distributed, stage by stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from neurofleet.data import inputs, tables, texts
from neurofleet.spec import DataSpec

TO_PREDICT = "tokens to predict"


def balance(path: Path, spec: DataSpec) -> dict[str, Any]:
    """Rows of each class or label; of a regression mean, std, min and max of each target; of a language the tokens to
    be predicted."""
    values = tables.number_columns(tables.read_columns(path, spec.targets), spec.targets, str(path))
    if spec.task == "regression":
        return {
            name: {
                "mean": float(column.mean()),
                "std": float(column.std()),
                "min": float(column.min()),
                "max": float(column.max()),
            }
            for name, column in zip(spec.targets, values.T, strict=True)
        }
    if spec.task == "multilabel":
        return {name: int(column.sum()) for name, column in zip(spec.targets, values.T, strict=True)}
    if spec.task == "language":
        rows = inputs.input_array(tables.read_columns(path, spec.inputs), spec, str(path))
        return {TO_PREDICT: int(np.maximum((rows > 0).sum(axis=1) - values[:, 0], 0).sum())}
    tables.check_labels(values[:, 0], len(spec.classes), spec.targets[0], str(path), ", ".join(spec.classes[:10]))
    counts = np.bincount(values[:, 0].astype(np.int64), minlength=len(spec.classes))
    return {name: int(count) for name, count in zip(spec.classes, counts, strict=True)}


def lengths(path: Path, spec: DataSpec) -> dict[str, float] | None:
    """Of sequences and texts: the fewest, the median and the most steps or tokens; of texts also the share that has
    more than a network reads, and the share of what it reads that the vocabulary lacks.  None for other kinds."""
    if spec.kind not in ("sequence", "text"):
        return None
    table = tables.read_columns(path, spec.inputs)
    rows = inputs.input_array(table, spec, str(path))
    if spec.kind == "sequence":
        steps = np.isfinite(rows[:, :, 0]).sum(axis=1)
        return _spread(steps)
    whole = [len(texts.tokenise(row, spec.tokenizer)) for row in texts.text_column(table, spec.inputs[0], str(path))]
    longer = float((np.array(whole) > spec.shape[0]).mean())
    return {
        **_spread(np.array(whole)),
        "longer": longer,
        "unknown": float((rows == texts.UNKNOWN).sum() / (rows > 0).sum()),
    }


def _spread(counts: np.ndarray) -> dict[str, float]:
    return {"min": int(counts.min()), "median": float(np.median(counts)), "max": int(counts.max())}
