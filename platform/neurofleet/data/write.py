"""Write a dataset: from its source's arrays to Parquet splits and `spec.json`, the same bytes on every machine.

Rows are divided by a hash and statistics are rounded once (`splits.py`); Parquet is written uncompressed (the bytes of
a compressor depend on its version) and without pandas metadata.  What is left is the version of pyarrow, which a
Parquet file names; `requirements.lock` pins it.

Columns: `row` (the row's number at the source), the inputs (float64 each; an image is one fixed-size list of uint8 in
C order), the targets (int64 class indices or 0/1 labels; float64 values).
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
from neurofleet.spec import DataSpec, Kind, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Raw:
    """A dataset as its source has it, rows in the source's order.

    `inputs`: one array [N] per column of a table, or one uint8 array [N,C,H,W] of images.  `targets`: one array [N]
    per target.  `sizes`: rows per stage where they are not 70/10/20.
    """

    kind: Kind
    task: Task
    inputs: Mapping[str, np.ndarray]
    targets: Mapping[str, np.ndarray]
    classes: tuple[str, ...] = ()
    sizes: Mapping[str, int] | None = None
    source: str

    @property
    def input_values(self) -> np.ndarray:
        """Table [N,F] float64, or images [N,C,H,W] uint8."""
        if self.kind == "image":
            (images,) = self.inputs.values()
            return images
        return np.stack(list(self.inputs.values()), axis=1).astype(np.float64)

    @property
    def target_values(self) -> np.ndarray:
        """[N,T], float64 values of a regression, else int64."""
        return np.stack(list(self.targets.values()), axis=1).astype(
            np.float64 if self.task == "regression" else np.int64
        )


def write_dataset(name: str, raw: Raw, into: Path) -> DataSpec:
    """Write `raw` to the folder `into/name`, whole or not at all; a dataset that was there is replaced."""
    rows = np.arange(len(raw.target_values))
    parts = assign(rows, strata(raw.target_values, raw.task), raw.sizes or default_sizes(len(rows)), split=0)
    spec, table = _spec(name, raw, parts), _table(raw, rows)
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


def _table(raw: Raw, rows: np.ndarray) -> pa.Table:
    if raw.kind == "image":
        images = raw.input_values
        inputs = [pa.FixedSizeListArray.from_arrays(pa.array(images.reshape(-1)), images[0].size)]
    else:
        inputs = [pa.array(column) for column in raw.input_values.T]
    targets = [pa.array(column) for column in raw.target_values.T]
    return pa.table([pa.array(rows), *inputs, *targets], names=["row", *raw.inputs, *raw.targets])


def _spec(name: str, raw: Raw, parts: Mapping[str, np.ndarray]) -> DataSpec:
    train = parts["train"]
    input_mean, input_std = statistics(raw.input_values[train], raw.kind)
    target_mean, target_std = statistics(raw.target_values[train], "tabular") if raw.task == "regression" else ((), ())
    return DataSpec(
        name=name,
        kind=raw.kind,
        task=raw.task,
        shape=raw.input_values.shape[1:],
        inputs=tuple(raw.inputs),
        targets=tuple(raw.targets),
        classes=raw.classes,
        input_mean=input_mean,
        input_std=input_std,
        target_mean=target_mean,
        target_std=target_std,
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
