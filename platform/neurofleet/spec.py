"""DataSpec: what a dataset offers and a family needs to know before it is built.

It lies as `spec.json` beside a dataset's Parquet files, rides in every released model, and imports nothing heavy.

| kind        | one row of inputs, `shape` | in Parquet                                  | in a network              |
|-------------|----------------------------|---------------------------------------------|---------------------------|
| tabular     | (features,)                | one numeric column per feature              | standardised floats       |
| categorical | (columns,)                 | one column of indices each, `cardinalities` | int64 indices             |
| image       | (channels, height, width)  | fixed-size list of uint8, C order           | standardised floats       |
| sequence    | (steps, channels)          | fixed-size list of float64, C order         | standardised floats; NaN  |
|             |                            |                                             | after a shorter one's end |
| text        | (tokens,)                  | one column of strings                       | int64 tokens: 0 after the |
|             |                            |                                             | end, 1 unknown, then the  |
|             |                            |                                             | `vocabulary`              |
| environment | of an observation          | none: agents make their own data            | floats                    |

| task         | targets                                                                                              |
|--------------|------------------------------------------------------------------------------------------------------|
| binary       | class index, one column                                                                              |
| multiclass   | class index, one column                                                                              |
| multilabel   | one 0/1 column per label                                                                             |
| regression   | one floating-point column per value                                                                  |
| verification | identity, one column; the identities of val and test do not occur in train                           |
| language     | one column, the number of leading tokens of the text that are given and not scored; a network        |
|              | predicts each other token from those before it                                                       |
| control      | none: `classes` names discrete actions, or `targets` the dimensions of continuous ones               |
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from neurofleet.errors import DataError

Kind = Literal["tabular", "categorical", "image", "sequence", "text", "environment"]
Task = Literal["binary", "multiclass", "multilabel", "regression", "verification", "language", "control"]
Tokenizer = Literal["", "words", "characters", "wordpieces"]

RESERVED_TOKENS = 2  # 0 is padding, 1 an unknown token


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSpec:
    """What one dataset holds.

    `input_mean`/`input_std` standardise the inputs (one number per feature of a table, per channel of an image or a
    sequence; empty for indices and tokens), `target_mean`/`target_std` the targets of a regression (else empty); all
    were measured on the training rows; of an action that is a number they are the middle and half the width of its
    range.  `vocabulary` and `tokenizer` belong to text, `cardinalities` (indices per column) to categorical inputs.
    `split` is "hashed" where rows may be divided anew (`data.split`), "official" where the source's own division (or a
    border in time, or between persons) has to be kept.  `num_rows` counts the rows of each of train, val and test;
    `source` says where the data comes from.
    """

    name: str
    kind: Kind
    task: Task
    shape: tuple[int, ...]
    inputs: tuple[str, ...]
    targets: tuple[str, ...]
    classes: tuple[str, ...]
    vocabulary: tuple[str, ...]
    tokenizer: Tokenizer
    cardinalities: tuple[int, ...]
    input_mean: tuple[float, ...]
    input_std: tuple[float, ...]
    target_mean: tuple[float, ...]
    target_std: tuple[float, ...]
    split: Literal["hashed", "official"]
    num_rows: Mapping[str, int]
    source: str

    def __post_init__(self) -> None:
        allowed = {"kind": get_args(Kind), "task": get_args(Task), "tokenizer": get_args(Tokenizer)}
        allowed["split"] = ("hashed", "official")
        for field, values in allowed.items():
            if getattr(self, field) not in values:
                raise DataError(f"DataSpec.{field} needs one of {', '.join(values)}, got {getattr(self, field)!r}")
        if self.task == "binary" and len(self.classes) != 2:
            raise DataError(f"a binary DataSpec needs two classes, got {len(self.classes)}: {self.classes}")
        if self.kind == "categorical" and len(self.cardinalities) != len(self.inputs):
            raise DataError(
                f"a categorical DataSpec needs a cardinality for each of its {len(self.inputs)} columns, "
                f"got {len(self.cardinalities)}"
            )
        if self.kind == "text" and not (self.tokenizer and self.vocabulary):
            raise DataError("a text DataSpec needs a tokenizer and a vocabulary")

    @property
    def num_inputs(self) -> int:
        """Numbers in one row of inputs."""
        return math.prod(self.shape)

    @property
    def num_tokens(self) -> int:
        """Different tokens of a text, padding and the unknown one among them."""
        return RESERVED_TOKENS + len(self.vocabulary)

    @property
    def num_outputs(self) -> int:
        """Logits (or values) that a network for this task ends with; a binary task has one logit."""
        if self.task == "language":
            return self.num_tokens
        discrete = self.task == "multiclass" or (self.task == "control" and self.classes)
        return len(self.classes) if discrete else len(self.targets)

    def joined(self, tokens: Iterable[str]) -> str:
        """Tokens as a text to look at."""
        text = ("" if self.tokenizer == "characters" else " ").join(tokens)
        return text.replace(" ##", "") if self.tokenizer == "wordpieces" else text

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
