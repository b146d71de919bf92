"""The data module: a prepared dataset as tensors in memory, or through stock DataLoaders.

Split 0 is what lies on disk.  Any other split pools all rows and divides them again by the rule of `splits.py`, with
the same sizes (not where the source's own division has to be kept: `spec.split` "official"); and
`train_splits=[train, val]` refits on both.  Then mean, std and row counts of the spec are those of the rows that are
trained on, so nothing of the test rows leaks into the inputs.  A text keeps split 0: its vocabulary is that of the rows
which are trained on there.

`train_rows` keeps a part of the training rows, as if no others had labels: each class (or tenth of a regression's
targets) in proportion.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import pyarrow as pa
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from neurofleet.data import catalog, codec, inputs, splits, tables
from neurofleet.data.digest import folder_digest, need_locked
from neurofleet.errors import ConfigError, DataError, MismatchError
from neurofleet.spec import DataSpec

TRAINABLE = (["train"], ["train", "val"])


class Rows(NamedTuple):
    """`inputs` [N,*shape] as `codec.encode` says, `targets` as `codec.encode_targets` says."""

    inputs: Tensor
    targets: Tensor


class ParquetDataModule(LightningDataModule):
    """A dataset of `configs/data`, held in memory.

    In: `name` of the dataset; `batch_size` rows per step; `split` 0 for the split on disk, else the number of another;
    `train_splits` [train], or [train, val] to refit on both (then val has no rows); `train_rows` None for all of them,
    or how many to train on.
    Raises ConfigError for an impossible value, DataError for data that is missing or wrong.
    """

    def __init__(
        self, *, name: str, batch_size: int, split: int, train_splits: Sequence[str], train_rows: int | None
    ) -> None:
        super().__init__()
        _check_count("data.batch_size", batch_size, at_least=1)
        _check_count("data.split", split, at_least=0)
        if list(train_splits) not in TRAINABLE:
            raise ConfigError(
                f"data.train_splits needs to be [train] or [train, val], got {list(train_splits)}; "
                "test rows are never trained on"
            )
        if train_rows is not None:
            _check_count("data.train_rows", train_rows, at_least=1)
        self.folder = catalog.locate(name)
        self.name = name
        self.batch_size = batch_size
        self.split = split
        self.train_splits = tuple(train_splits)
        self.train_rows = train_rows
        self._stored = catalog.load_spec(name)
        if split and self._stored.split == "official":
            raise ConfigError(
                f"data.split needs to be 0 for {name!r}, got {split}: its rows are divided as the source divides them "
                "(or by time, or by person), and another division would leak; set data.split=0"
            )
        if split and self._stored.kind == "text":
            raise ConfigError(
                f"data.split needs to be 0 for {name!r}, got {split}: its vocabulary is that of the training rows of "
                "split 0, some of which another division tests on; set data.split=0"
            )
        self._rows: dict[str, Rows] = {}
        self._copies: dict[tuple[str, torch.device, torch.dtype], Rows] = {}
        self.settled: dict[str, Tensor] = {}  # what families made of inputs once for all, by their keys

    @cached_property
    def digest(self) -> str:
        """The dataset's digest, as in `dvc.lock`; it does not depend on `split`.

        Raises:
            DataError: it is one of the project's, and its files are not those of `dvc.lock`.
        """
        digest = folder_digest(self.folder)
        need_locked(self.folder.name, self.folder, digest)
        return digest

    @cached_property
    def spec(self) -> DataSpec:
        if self.split == 0 and self.train_splits == ("train",) and self.train_rows is None:
            return self._stored
        return _measured(self._stored, self._tables)

    def speak(self, spec: DataSpec) -> None:
        """Take over another spec's tokenizer, vocabulary and length, so that texts are encoded for what learnt from it.

        Raises:
            MismatchError: one of the two is no text; or word pieces, which stand between marks, for a task that
                predicts the next token.
        """
        if self._rows:
            raise RuntimeError("rows that were read speak the dataset's own tokens; call speak first")
        if self._stored.kind != "text" or spec.kind != "text":
            raise MismatchError(
                f"a base trained on {spec.name} ({spec.kind}) cannot take {self.name} ({self._stored.kind}): tokens "
                "are of texts alone, and nothing bridges that; take other data or another base"
            )
        if self._stored.task == "language" and spec.tokenizer == "wordpieces":
            raise MismatchError(
                f"{spec.name} reads word pieces, which cannot be predicted one after the other, and {self.name} asks "
                "for the next token; take a base that learnt a language task"
            )
        self._stored = dataclasses.replace(
            self._stored, tokenizer=spec.tokenizer, vocabulary=spec.vocabulary, shape=spec.shape
        )
        self.__dict__.pop("spec", None)

    def rows(self, stage: str) -> Rows:
        """All rows of `train`, `val` or `test`; read, checked and encoded once."""
        if stage not in splits.STAGES:
            raise ConfigError(f"rows of a dataset need a stage out of {', '.join(splits.STAGES)}, got {stage!r}")
        if stage not in self._rows:
            table, where = self._tables[stage], f"{self.folder} ({stage})"
            self._rows[stage] = Rows(
                codec.encode(table, self.spec, where), codec.encode_targets(table, self.spec, where)
            )
        return self._rows[stage]

    def rows_as(self, stage: str, device: torch.device, dtype: torch.dtype) -> Rows:
        """The same on a device, floats in that type: one copy for all who ask."""
        rows = self.rows(stage)
        key = stage, device, dtype
        if key not in self._copies:
            self._copies[key] = Rows(*(one.to(device, dtype if one.is_floating_point() else None) for one in rows))
        return self._copies[key]

    def with_batch_size(self, batch_size: int) -> ParquetDataModule:
        """The same rows, none of them read again, in batches of another size."""
        _check_count("data.batch_size", batch_size, at_least=1)
        other = copy.copy(self)
        other.batch_size = batch_size
        return other

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return self._loader("val", shuffle=False)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return self._loader("test", shuffle=False)

    def _loader(self, stage: str, shuffle: bool) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(TensorDataset(*self.rows(stage)), batch_size=self.batch_size, shuffle=shuffle)

    @cached_property
    def _tables(self) -> dict[str, pa.Table]:
        """The raw rows of each stage, as `split` and `train_splits` divide them."""
        stages = {stage: self._read(stage) for stage in splits.STAGES}
        if self.split:
            pool = pa.concat_tables(stages.values())
            targets = tables.number_columns(pool, self._stored.targets, str(self.folder))
            parts = splits.assign(
                pool.column("row").to_numpy(),
                splits.strata(targets, self._stored.task),
                self._stored.num_rows,
                self.split,
            )
            stages = {stage: pool.take(pa.array(part)) for stage, part in parts.items()}
        if self.train_splits == ("train", "val"):
            stages["train"] = pa.concat_tables([stages["train"], stages["val"]])
            stages["val"] = stages["val"].slice(0, 0)
        if self.train_rows is not None:
            stages["train"] = self._part(stages["train"], self.train_rows)
        return stages

    def _part(self, train: pa.Table, size: int) -> pa.Table:
        if size > train.num_rows:
            raise ConfigError(
                f"data.train_rows needs at most the {train.num_rows} training rows of {self.name!r}, got {size}"
            )
        targets = tables.number_columns(train, self._stored.targets, str(self.folder))
        return train.take(pa.array(splits.part(splits.strata(targets, self._stored.task), size)))

    def _read(self, stage: str) -> pa.Table:
        """One file, checked as a whole, so that an error names its file and row whatever the split."""
        path = self.folder / f"{stage}.parquet"
        table = tables.read_columns(path, ("row", *self._stored.inputs, *self._stored.targets))
        if table.num_rows != self._stored.num_rows[stage]:
            raise DataError(
                f"{path} needs the {self._stored.num_rows[stage]} rows that spec.json says, got "
                f"{table.num_rows}; make it again with: {catalog.remedy(self.folder.name)}"
            )
        inputs.input_array(table, self._stored, str(path))
        codec.encode_targets(table, self._stored, str(path))
        return table


def _check_count(key: str, value: int, at_least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ConfigError(
            f"{key} needs a whole number of at least {at_least}, got {value!r}; set {key}={at_least} or more"
        )


def _measured(stored: DataSpec, stages: dict[str, pa.Table]) -> DataSpec:
    """The stored spec with the statistics and row counts of other stages."""
    train = stages["train"]
    raw = inputs.input_array(train, stored, f"dataset {stored.name!r}")
    targets = tables.number_columns(train, stored.targets, f"dataset {stored.name!r}")
    mean, std = splits.statistics(raw, stored.kind)
    target_mean, target_std = splits.statistics(targets, "tabular") if stored.task == "regression" else ((), ())
    return dataclasses.replace(
        stored,
        input_mean=mean,
        input_std=std,
        target_mean=target_mean,
        target_std=target_std,
        num_rows={stage: table.num_rows for stage, table in stages.items()},
    )
