"""Columns of a table as checked numpy arrays, whatever the table came as.

A table is a pyarrow Table or a pandas DataFrame.  What a user can get wrong about one is found here and in
`inputs.py`: a missing column, text where numbers belong, NaN and infinity, a label outside the spec.  Columns that
nobody asked for are ignored.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from neurofleet.data import catalog
from neurofleet.errors import DataError


def read_columns(path: Path, columns: Iterable[str]) -> pa.Table:
    """These columns of a Parquet file; DataError if it is no Parquet file or lacks one."""
    import pyarrow.parquet

    columns = list(columns)
    again = f"make the dataset again with: {catalog.remedy(path.parent.name)}"
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            require(columns, file.schema_arrow.names, str(path), again)
            return file.read(columns=columns)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} needs to be a readable Parquet file: {error}; {again}") from error


def require(needed: Sequence[str], present: Sequence[str], where: str, remedy: str) -> None:
    lacking = [name for name in needed if name not in present]
    if lacking:
        shown = ", ".join(repr(name) for name in lacking[:5]) + (" ..." if len(lacking) > 5 else "")
        raise DataError(f"{where} needs {len(needed)} columns and lacks {len(lacking)} of them: {shown}; {remedy}")


def number_columns(table: Any, columns: Sequence[str], where: str) -> np.ndarray:
    """Named columns of a table as finite float64 [N,C]."""
    require_columns(table, columns, where)
    return np.stack([_number_column(table, name, where) for name in columns], axis=1)


def check_finite(values: np.ndarray, column: str, where: str) -> None:
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise DataError(
            f"{where}: column {column!r} needs finite numbers, got {len(bad)} that are NaN, infinite or "
            f"missing, the first in row {bad[0]} (counting from 0); fill or drop these rows"
        )


def check_labels(values: np.ndarray, num_labels: int, column: str, where: str, names: str) -> None:
    """Labels [N] must be whole numbers from 0 to num_labels - 1."""
    bad = np.flatnonzero((values != np.floor(values)) | (values < 0) | (values >= num_labels))
    if len(bad):
        raise DataError(
            f"{where}: column {column!r} needs labels 0 to {num_labels - 1} ({names}), got "
            f"{values[bad[0]]:g} in row {bad[0]} (counting from 0), {len(bad)} such rows in all; "
            "correct them, or the classes in spec.json"
        )


def require_columns(table: Any, needed: Sequence[str], where: str) -> None:
    if isinstance(table, pa.Table):
        names = list(table.column_names)
    elif hasattr(table, "columns") and hasattr(table, "iloc"):  # pandas may not be installed
        names = list(table.columns)
    else:
        raise DataError(
            f"{where} needs to be a pyarrow Table, a pandas DataFrame or a numpy array, got "
            f"{type(table).__name__}; name the columns {', '.join(needed[:5])}"
        )
    require(needed, names, where, f"it has {', '.join(str(name) for name in names[:20]) or 'no columns'}")


def _number_column(table: Any, name: str, where: str) -> np.ndarray:
    column = table.column(name) if isinstance(table, pa.Table) else table[name]
    try:
        if isinstance(table, pa.Table):
            values = to_numpy(column.cast(pa.float64()).combine_chunks())
        else:
            values = column.to_numpy(dtype=np.float64, na_value=math.nan)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, TypeError, ValueError) as error:
        kind = column.type if isinstance(table, pa.Table) else column.dtype
        raise DataError(
            f"{where}: column {name!r} needs numbers, got {kind} ({error}); encode text as numbers first"
        ) from error
    check_finite(values, name, where)
    return values


def to_numpy(array: pa.Array) -> np.ndarray:
    """Missing values become NaN.  DLPack, since `pa.Array.to_numpy` imports pandas: half a second of every run."""
    return array.to_numpy(zero_copy_only=False) if array.null_count else np.from_dlpack(array)
