"""Datasets: DVC-tracked folders of Parquet with a `DataSpec`, and what reads them.

    splits.py    which row goes where, and the statistics that standardise it (numpy alone)
    write.py     from a source's arrays to Parquet and spec.json
    sources.py   what several sources need: names of columns, levels, .ts files
    tables.py    columns of a table as checked numbers
    texts.py     texts as tokens
    inputs.py    the inputs of each kind as one checked array
    codec.py     between the user's terms (tables, images, texts, class names) and a network's tensors
    parquet.py   the data module
    environments.py  environments as data; lanes.py: side by side, and back where they were; acting.py: rows made by
                 acting in them; episodes.py: whole ones for validation and test
    digest.py    the digest that `dvc.lock` holds, from the files themselves
    catalog.py   what there is: names, folders, class balance

The names below are looked up when first used: torch and Lightning take seconds to import, and `neurofleet data list`
needs neither.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neurofleet.data.codec import decode, encode, encode_targets
    from neurofleet.data.environments import EnvironmentDataModule
    from neurofleet.data.parquet import ParquetDataModule, Rows

__all__ = ["EnvironmentDataModule", "ParquetDataModule", "Rows", "decode", "encode", "encode_targets"]

_MODULE = {
    "EnvironmentDataModule": "environments",
    "ParquetDataModule": "parquet",
    "Rows": "parquet",
    "decode": "codec",
    "encode": "codec",
    "encode_targets": "codec",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE[name]}"), name)
