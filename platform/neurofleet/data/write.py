"""Write a dataset: from its source's arrays to Parquet splits and `spec.json`, the same bytes on every machine.

Rows are divided by a hash and statistics are rounded once (`splits.py`); Parquet is written uncompressed (the bytes of
a compressor depend on its version) and without pandas metadata.  What is left is the version of pyarrow, which a
Parquet file names; `requirements.lock` pins it.

Columns: `row` (the row's number at the source), the inputs (float64 each, or int64 indices; an image is one fixed-size
list of uint8, a sequence one of float64, both in C order; a text is a string), the targets (int64 class indices, 0/1
labels or numbers of tokens; float64 values).
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from neurofleet.data.splits import STAGES, assign, default_sizes, statistics, strata
from neurofleet.data.texts import build_vocabulary
from neurofleet.spec import DataSpec, Kind, Task, Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Raw:
    """A dataset as its source has it, rows in the source's order.

    `inputs`: one array [N] per column of numbers or of indices (then `cardinalities` says how many each has); or one
    array of uint8 images [N,C,H,W], of sequences [N,T,C] with NaN after their end, or of texts [N] (then `tokenizer`,
    `length` in tokens, and `most_tokens`, the most that the vocabulary of the training rows may hold).  `targets`: one
    array [N] per target.
    `sizes`: rows per stage where rows are divided by their hash and not as 70/10/20.
    `stages`: the source's own division, row numbers of train, test, and val; without val an eighth of train is set
    aside, by the hash.  A row may stand in none.  Classes are mixed; other rows stay in their order.
    """

    kind: Kind
    task: Task
    inputs: Mapping[str, np.ndarray]
    targets: Mapping[str, np.ndarray]
    classes: tuple[str, ...] = ()
    cardinalities: tuple[int, ...] = ()
    tokenizer: Tokenizer = ""
    length: int = 0
    most_tokens: int = 0
    sizes: Mapping[str, int] | None = None
    stages: Mapping[str, np.ndarray] | None = None
    source: str

    @property
    def input_values(self) -> np.ndarray:
        """Table [N,F] float64, indices [N,K] int64, images [N,C,H,W] uint8, sequences [N,T,C] float64, texts [N]."""
        if self.kind in ("image", "sequence", "text"):
            (values,) = self.inputs.values()
            return values
        numbers = np.int64 if self.kind == "categorical" else np.float64
        return np.stack(list(self.inputs.values()), axis=1).astype(numbers)

    @property
    def target_values(self) -> np.ndarray:
        """[N,T], float64 values of a regression, else int64."""
        return np.stack(list(self.targets.values()), axis=1).astype(
            np.float64 if self.task == "regression" else np.int64
        )


def write_dataset(name: str, raw: Raw, into: Path) -> DataSpec:
    """Write `raw` to the folder `into/name`, whole or not at all; a dataset that was there is replaced."""
    parts = divide(raw)
    spec, table = _spec(name, raw, parts), _table(raw)
    into.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=into))
    try:
        scratch.chmod(0o755)
        for stage in STAGES:
            pyarrow.parquet.write_table(
                table.take(pa.array(parts[stage])).combine_chunks(),
                scratch / f"{stage}.parquet",
                version="2.6",
                compression="none",
                data_page_version="1.0",
                row_group_size=65536,
            )
        spec.save(scratch / "spec.json")
        _replace(into / name, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return spec


def divide(raw: Raw) -> dict[str, np.ndarray]:
    """The row numbers of train, val and test: the source's own, or by the hash.

    Raises:
        ValueError: a row stands in two stages, or identities would.
    """
    targets = raw.target_values
    if raw.stages is None:
        if raw.task == "verification":
            raise ValueError("verification needs `stages`, divided by identity, got none: a hash would mix identities")
        rows = np.arange(len(targets))
        return assign(rows, strata(targets, raw.task), raw.sizes or default_sizes(len(rows)), split=0)
    stages = {stage: np.asarray(rows) for stage, rows in raw.stages.items()}
    counts = np.bincount(np.concatenate(list(stages.values())).astype(np.int64))
    if (counts > 1).any():
        raise ValueError(f"`stages` need to share no row, got row {int(counts.argmax())} {int(counts.max())} times")
    if "val" not in stages:
        train = stages["train"]
        val = round(len(train) / 8)
        sizes = {"train": len(train) - val, "val": val, "test": 0}
        parts = assign(train, strata(targets[train], raw.task), sizes, split=0)
        stages |= {stage: train[parts[stage]] for stage in ("train", "val")}
    if raw.task in ("binary", "multiclass", "multilabel"):
        stages = {stage: _mixed(rows, targets[rows], raw.task) for stage, rows in stages.items()}
    return {stage: stages[stage] for stage in STAGES}


def _mixed(rows: np.ndarray, targets: np.ndarray, task: Task) -> np.ndarray:
    """The same rows in the order of their hash, classes in proportion, so that the first of them stand for all."""
    return rows[assign(rows, strata(targets, task), {"train": len(rows), "val": 0, "test": 0}, split=0)["train"]]


def _table(raw: Raw) -> pa.Table:
    values = raw.input_values
    if raw.kind in ("image", "sequence"):
        inputs = [pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values[0].size)]
    elif raw.kind == "text":
        inputs = [pa.array(values.tolist(), pa.string())]
    else:
        inputs = [pa.array(column) for column in values.T]
    targets = [pa.array(column) for column in raw.target_values.T]
    return pa.table([pa.array(np.arange(len(values))), *inputs, *targets], names=["row", *raw.inputs, *raw.targets])


def _spec(name: str, raw: Raw, parts: Mapping[str, np.ndarray]) -> DataSpec:
    train = parts["train"]
    input_mean, input_std = statistics(raw.input_values[train], raw.kind)
    target_mean, target_std = statistics(raw.target_values[train], "tabular") if raw.task == "regression" else ((), ())
    return DataSpec(
        name=name,
        kind=raw.kind,
        task=raw.task,
        shape=(raw.length,) if raw.kind == "text" else raw.input_values.shape[1:],
        inputs=tuple(raw.inputs),
        targets=tuple(raw.targets),
        classes=raw.classes,
        vocabulary=build_vocabulary(raw.input_values[train], raw.tokenizer, raw.most_tokens) if raw.tokenizer else (),
        tokenizer=raw.tokenizer,
        cardinalities=raw.cardinalities,
        input_mean=input_mean,
        input_std=input_std,
        target_mean=target_mean,
        target_std=target_std,
        split="hashed" if raw.stages is None else "official",
        num_rows={stage: len(parts[stage]) for stage in STAGES},
        source=raw.source,
    )


def _replace(target: Path, scratch: Path) -> None:
    """Put `scratch` in the place of `target`; at no moment does `target` hold half a dataset."""
    if target.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
        os.rename(target, old / target.name)
        os.rename(scratch, target)
        shutil.rmtree(old)
    else:
        os.rename(scratch, target)
