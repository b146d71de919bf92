"""Between the user's terms and a network's tensors, the same way in training and in serving.

Inputs are given in raw units, those of the Parquet files: a table's own units, pixels from 0 to 255, texts.  A network
sees `(raw - spec.input_mean) / spec.input_std`, one mean and std per feature of a table or channel of an image or a
sequence; both lie in raw units too.  Indices stay what they are, and texts become token numbers.  Regression targets
are standardised like inputs, and `decode` turns predictions back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from neurofleet.data import inputs, tables, texts
from neurofleet.errors import DataError
from neurofleet.spec import DataSpec

if TYPE_CHECKING:
    import pandas as pd


def encode(
    table: pa.Table | pd.DataFrame | np.ndarray | list[Any], spec: DataSpec, where: str = "the input"
) -> torch.Tensor:
    """Raw inputs to a network's tensor [N,*shape]: float32, or int64 for indices and tokens.

    In: a pyarrow Table or pandas DataFrame that has the spec's columns (others are ignored; an image or a sequence is
    one column of lists or arrays, flat or nested; text is one column of strings), or a numpy array [N,*shape] (text:
    [N] strings), or the same as lists.  A sequence may have fewer steps than the spec's; NaN stands after its end.
    `where` names them in errors.
    Raises DataError for a missing column, NaN, text, pixels outside 0 to 255, unknown indices, a wrong shape.
    """
    values = inputs.input_array(table, spec, where)
    if spec.kind in ("categorical", "text"):
        return torch.from_numpy(values)
    # Pixels are exact in float32; a table's numbers may be large and close together, so float64 until standardised.
    exact: Any = np.float32 if spec.kind == "image" else np.float64
    each = (-1, 1, 1) if len(spec.shape) == 3 else (-1,)  # channels first in images, last elsewhere
    mean = np.asarray(spec.input_mean, dtype=exact).reshape(each)
    std = np.asarray(spec.input_std, dtype=exact).reshape(each)
    standardised = (values.astype(exact, copy=False) - mean) / std
    return torch.from_numpy(standardised.astype(np.float32, copy=False))


def encode_targets(table: pa.Table | pd.DataFrame, spec: DataSpec, where: str = "the input") -> torch.Tensor:
    """Targets for a loss: long [N] (multiclass: class, verification: identity, language: leading tokens that are given
    and not scored), float [N,1] (binary), float [N,L] (multilabel) or standardised float [N,T] (regression).
    Raises DataError for a missing column, NaN, a label outside the spec."""
    values = tables.number_columns(table, spec.targets, where)
    if spec.task == "regression":
        standardised = (values - np.asarray(spec.target_mean)) / np.asarray(spec.target_std)
        return torch.from_numpy(standardised.astype(np.float32))
    if spec.task == "language":
        return torch.from_numpy(_given(values[:, 0], spec, where))
    one_of_many = spec.task in ("multiclass", "verification")
    num_labels = len(spec.classes) if one_of_many else 2
    names = "absent, present" if spec.task == "multilabel" else ", ".join(spec.classes[:10])
    for index, column in enumerate(spec.targets):
        tables.check_labels(values[:, index], num_labels, column, where, names)
    if one_of_many:
        return torch.from_numpy(values[:, 0].astype(np.int64))
    return torch.from_numpy(values.astype(np.float32))


def _given(values: np.ndarray, spec: DataSpec, where: str) -> np.ndarray:
    """The number of given tokens, int64 [N]: the first is always given, and at least one is left to be predicted."""
    bad = np.flatnonzero((values != np.floor(values)) | (values < 1) | (values >= spec.shape[0]))
    if len(bad):
        raise DataError(
            f"{where}: column {spec.targets[0]!r} needs 1 to {spec.shape[0] - 1} given tokens of {spec.shape[0]}, got "
            f"{values[bad[0]]:g} in row {bad[0]} (counting from 0), {len(bad)} such rows in all"
        )
    return values.astype(np.int64)


def decode(outputs: torch.Tensor, spec: DataSpec, names: Sequence[str] | None = None) -> pd.DataFrame:
    """A network's outputs in the user's terms, one row each: [N,len(names)] as they are, if a family says what its
    outputs are called; else [N,num_outputs] logits, or standardised values.

    multiclass, binary: `prediction` (a class name) and `probability_<class>` for each class;
    multilabel: `prediction_<label>` (0 or 1) and `probability_<label>` for each label;
    regression, and actions that are numbers: `prediction` in original units, or `prediction_<target>` for each if there
    are several targets;
    language: `prediction`, the most probable next token, and its `probability`;
    verification: nothing follows from the task, so the family has to say what its outputs are called.
    """
    import pandas as pd

    if names is not None:
        return pd.DataFrame(outputs.detach().cpu().numpy(), columns=list(names))
    if spec.task == "verification":
        raise DataError(f"{spec.name!r} (verification) needs a family that names its outputs; set Family.output_names")
    if outputs.ndim != 2 or outputs.shape[1] != spec.num_outputs:
        raise DataError(f"{spec.name!r} needs outputs of shape [N, {spec.num_outputs}], got {tuple(outputs.shape)}")
    logits = outputs.detach().to("cpu", torch.float64)
    if spec.task == "regression" or (spec.task == "control" and spec.targets):  # actions are standardised too
        values = logits.numpy() * np.asarray(spec.target_std) + np.asarray(spec.target_mean)
        names = ["prediction"] if len(spec.targets) == 1 else [f"prediction_{name}" for name in spec.targets]
        return pd.DataFrame(values, columns=names)
    if spec.task == "multilabel":
        present = logits.sigmoid().numpy()
        frame = pd.DataFrame((present > 0.5).astype(np.int64), columns=[f"prediction_{name}" for name in spec.targets])
        return frame.assign(**{f"probability_{name}": present[:, i] for i, name in enumerate(spec.targets)})
    if spec.task == "language":
        probability, token = logits.softmax(dim=1).max(dim=1)
        tokens = texts.token_names(spec)
        return pd.DataFrame({"prediction": [tokens[index] for index in token.tolist()], "probability": probability})
    if spec.task == "binary":
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
    probabilities = logits.softmax(dim=1).numpy()
    frame = pd.DataFrame({"prediction": [spec.classes[index] for index in probabilities.argmax(axis=1)]})
    return frame.assign(**{f"probability_{name}": probabilities[:, i] for i, name in enumerate(spec.classes)})
