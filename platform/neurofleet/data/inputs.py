"""The inputs of each kind as one checked numpy array, whatever they came as: Parquet, a DataFrame, arrays.

Beside a pyarrow Table or a pandas DataFrame with the spec's columns, a plain numpy array is taken: [N,*shape] numbers,
or [N] strings for text; or the same as lists.  An image or a sequence in a table is one column of lists or arrays, flat
(C order) or nested.  A sequence may be shorter than the spec's: it is filled up with NaN, which stands after the end of
a sequence and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from neurofleet.data import tables, texts
from neurofleet.errors import DataError
from neurofleet.spec import DataSpec


def input_array(table: Any, spec: DataSpec, where: str) -> np.ndarray:
    """Raw inputs [N,*shape]: float64 for tables and sequences; int64 for indices and tokens; for images uint8 as
    stored, or float32 if they came so."""
    if isinstance(table, list):
        table = _array_of(table, spec, where)
    match spec.kind:
        case "text":
            return texts.token_array(texts.text_column(table, spec.inputs[0], where), spec, where)
        case "image":
            return _image_array(table, spec, where)
        case "sequence":
            return _sequence_array(table, spec, where)
    if not isinstance(table, np.ndarray):
        values = tables.number_columns(table, spec.inputs, where)
    else:
        values = _numbers(_expect_shape(table, spec, where), where).astype(np.float64, copy=False)
        for bad in np.flatnonzero(~np.isfinite(values).all(axis=0)):
            tables.check_finite(values[:, bad], spec.inputs[bad], where)
    if spec.kind == "categorical":
        for index, (column, size) in enumerate(zip(spec.inputs, spec.cardinalities, strict=True)):
            tables.check_labels(values[:, index], size, column, where, "the indices seen at the source")
        return values.astype(np.int64)
    return values


def _array_of(rows: list[Any], spec: DataSpec, where: str) -> np.ndarray:
    """Lists of numbers as an array; sequences may be of different lengths."""
    if spec.kind == "sequence":
        return _filled_up(rows, spec, where)
    try:
        return np.asarray(rows)
    except ValueError as error:
        raise DataError(f"{where} needs rows of shape {spec.shape}, got lists of other lengths ({error})") from error


def _image_array(table: Any, spec: DataSpec, where: str) -> np.ndarray:
    if not isinstance(table, np.ndarray):
        tables.require_columns(table, spec.inputs, where)
        table = _image_column(table, spec, where)
    return _checked_pixels(_numbers(_expect_shape(table, spec, where), where), spec.inputs[0], where)


def _image_column(table: Any, spec: DataSpec, where: str) -> np.ndarray:
    """One column of lists to an array [N, ...]; each list is one image, flat or nested."""
    name = spec.inputs[0]
    if isinstance(table, pa.Table):
        return _list_column(table.column(name).combine_chunks(), f"{where}: column {name!r}", "uint8", "image")
    try:
        images = [np.asarray(image) for image in table[name]]
        return np.stack(images) if images else np.empty((0, *spec.shape), dtype=np.uint8)
    except ValueError as error:
        raise DataError(
            f"{where}: column {name!r} needs images of one size, {spec.shape}, in each row; "
            f"got different ones ({error})"
        ) from error


def _list_column(column: pa.Array, where: str, wanted: str, thing: str) -> np.ndarray:
    """A column of fixed-size lists to [N, size]."""
    if not pa.types.is_fixed_size_list(column.type):
        raise DataError(f"{where} needs a fixed-size list of {wanted} for each {thing}, got {column.type}")
    if column.null_count:
        raise DataError(f"{where} needs an {thing} in each row, {column.null_count} are missing; drop these rows")
    return tables.to_numpy(column.flatten()).reshape(len(column), column.type.list_size)


def _sequence_array(table: Any, spec: DataSpec, where: str) -> np.ndarray:
    steps, channels = spec.shape
    if not isinstance(table, np.ndarray):
        tables.require_columns(table, spec.inputs, where)
        table = _sequence_column(table, spec, where)
    short = table.ndim == 3 and table.shape[1] <= steps and table.shape[2] == channels
    flat = table.ndim == 2 and table.shape[1] <= steps * channels and table.shape[1] % channels == 0
    if not short and not flat:
        raise DataError(
            f"{where} needs rows of shape {spec.shape}, or of fewer steps, for {spec.name!r}, "
            f"got an array of shape {table.shape}"
        )
    num_steps = table.shape[1] if short else table.shape[1] // channels
    values = _numbers(table, where).astype(np.float64, copy=False).reshape(len(table), num_steps, channels)
    if num_steps < steps:
        rest = np.full((len(values), steps - num_steps, channels), np.nan)
        values = np.concatenate([values, rest], axis=1)
    check_sequences(values, spec.inputs[0], where)
    return values


def _sequence_column(table: Any, spec: DataSpec, where: str) -> np.ndarray:
    """One column of lists to [N,T,C] or [N,T*C]; each list is one sequence, filled up to the longest with NaN."""
    name = spec.inputs[0]
    column = table.column(name).combine_chunks() if isinstance(table, pa.Table) else table[name]
    if isinstance(column, pa.Array) and pa.types.is_fixed_size_list(column.type):
        return _list_column(column, f"{where}: column {name!r}", "float64", "entry")
    return _filled_up(column.to_pylist() if isinstance(column, pa.Array) else list(column), spec, where)


def _filled_up(rows: Sequence[Any], spec: DataSpec, where: str) -> np.ndarray:
    """Sequences [T,C] or [T*C] of any length to [N,T,C], with NaN after their end."""
    name = spec.inputs[0]
    values = np.full((len(rows), *spec.shape), np.nan)
    for index, row in enumerate(rows):
        try:
            sequence = np.asarray(row, dtype=np.float64)
            if sequence.ndim > 1 and sequence.shape[1:] != spec.shape[1:]:  # [C,T], say
                raise ValueError(f"an array of shape {sequence.shape}")
            sequence = sequence.reshape(-1, spec.shape[1])
            values[index, : len(sequence)] = sequence
        except (TypeError, ValueError) as error:
            raise DataError(
                f"{where}: column {name!r} needs a sequence of at most {spec.shape[0]} steps of {spec.shape[1]} "
                f"numbers in each row, got something else in row {index} (counting from 0): {error}"
            ) from error
    return values


def check_sequences(values: np.ndarray, column: str, where: str) -> None:
    """[N,T,C]: NaN in all channels from one step on to the end, and nowhere else."""
    present = np.isfinite(values)
    steps = present.all(axis=2)
    wrong = (present.any(axis=2) != steps).any(axis=1)  # a step that is there in part
    wrong |= np.isinf(values).any(axis=(1, 2))
    wrong |= (steps[:, 1:] & ~steps[:, :-1]).any(axis=1)  # a step after a missing one
    wrong |= ~steps[:, :1].all(axis=1)  # no step at all
    bad = np.flatnonzero(wrong)
    if len(bad):
        raise DataError(
            f"{where}: column {column!r} needs sequences of at least one step without gaps (NaN stands after the end "
            f"alone), got {len(bad)} others, the first is row {bad[0]} (counting from 0); interpolate or drop them"
        )


def _expect_shape(values: np.ndarray, spec: DataSpec, where: str) -> np.ndarray:
    """Rows of the spec's shape; an image may be flat."""
    flat_image = spec.kind == "image" and values.shape[1:] == (spec.num_inputs,)
    if values.ndim == 0 or (values.shape[1:] != spec.shape and not flat_image):
        raise DataError(
            f"{where} needs rows of shape {spec.shape} for {spec.name!r}, got an array of shape {values.shape}"
        )
    return values.reshape(len(values), *spec.shape)


def _numbers(values: np.ndarray, where: str) -> np.ndarray:
    if values.dtype == object or values.dtype.kind not in "buif":
        raise DataError(f"{where} needs numbers, got {values.dtype}; encode text as numbers first")
    return values


def _checked_pixels(values: np.ndarray, column: str, where: str) -> np.ndarray:
    if values.dtype == np.uint8:
        return values
    rows = values.reshape(len(values), math.prod(values.shape[1:]))
    bad = np.flatnonzero(~((rows >= 0) & (rows <= 255)).all(axis=1))
    if len(bad):
        raise DataError(
            f"{where}: column {column!r} needs pixels from 0 to 255, got {len(bad)} rows with NaN or other "
            f"values, the first is row {bad[0]} (counting from 0)"
        )
    return values.astype(np.float32)
