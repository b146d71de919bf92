"""DataSpec: what a dataset offers and a family needs to know before it is built.

It lies as `spec.json` beside a dataset's Parquet files, rides in every released model, and imports nothing heavy.

One row of inputs has shape `shape`: `(features,)` for a table, `(channels, height, width)` for an image.  In
Parquet a table has one numeric column per feature; an image is one fixed-size-list column of uint8 in C order.
Targets are: class indices (multiclass, binary: one column), one 0/1 column per label (multilabel), or one
floating-point column per value (regression).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from neurofleet.errors import DataError

Kind = Literal["tabular", "image"]
Task = Literal["binary", "multiclass", "multilabel", "regression"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSpec:
    """What one dataset holds.

    `input_mean`/`input_std` standardise the inputs (one number per feature of a table, per channel of an image),
    `target_mean`/`target_std` the targets of a regression (else empty); all were measured on the training rows.
    `num_rows` counts the rows of each of train, val and test; `source` says where the data comes from.
    """

    name: str
    kind: Kind
    task: Task
    shape: tuple[int, ...]
    inputs: tuple[str, ...]
    targets: tuple[str, ...]
    classes: tuple[str, ...]
    input_mean: tuple[float, ...]
    input_std: tuple[float, ...]
    target_mean: tuple[float, ...]
    target_std: tuple[float, ...]
    num_rows: Mapping[str, int]
    source: str

    def __post_init__(self) -> None:
        for field, allowed in (("kind", get_args(Kind)), ("task", get_args(Task))):
            if getattr(self, field) not in allowed:
                raise DataError(f"DataSpec.{field} needs one of {', '.join(allowed)}, got {getattr(self, field)!r}")
        if self.task == "binary" and len(self.classes) != 2:
            raise DataError(f"a binary DataSpec needs two classes, got {len(self.classes)}: {self.classes}")

    @property
    def num_inputs(self) -> int:
        """Numbers in one row of inputs."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def num_outputs(self) -> int:
        """Logits (or values) that a network for this task ends with; a binary task has one logit."""
        return len(self.classes) if self.task == "multiclass" else len(self.targets)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DataSpec:
        known = {field.name for field in dataclasses.fields(cls)}
        lacking, extra = known - set(values), set(values) - known
        if lacking or extra:
            raise DataError(
                f"spec.json needs exactly the fields of DataSpec; lacking {sorted(lacking)}, "
                f"unknown {sorted(extra)}; prepare the dataset again with: dvc repro"
            )
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**fields)

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self.to_dict(), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> DataSpec:
        return cls.from_dict(json.loads(path.read_text()))
