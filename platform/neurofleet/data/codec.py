"""Between the user's terms and a network's tensors, the same way in training and in serving.

Inputs are given in raw units, those of the Parquet files: a table's own units, pixels from 0 to 255.  A network sees
`(raw - spec.input_mean) / spec.input_std`, one mean and std per feature of a table or channel of an image; both lie
in raw units too.  Regression targets are standardised likewise, and `decode` turns predictions back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from neurofleet.data import tables
from neurofleet.errors import DataError
from neurofleet.spec import DataSpec

if TYPE_CHECKING:
    import pandas as pd


def encode(table: pa.Table | pd.DataFrame | np.ndarray, spec: DataSpec, where: str = "the input") -> torch.Tensor:
    """Raw inputs to a network's float32 [N,*shape].

    In: a pyarrow Table or pandas DataFrame that has the spec's columns (others are ignored; an image is one column of
    lists or arrays, flat or nested), or a numpy array [N,*shape].  `where` names them in errors.
    Raises DataError for a missing column, NaN, text, pixels outside 0 to 255, a wrong shape.
    """
    values = tables.input_array(table, spec, where)
    # Pixels are exact in float32; a table's numbers may be large and close together, so float64 until standardised.
    exact: Any = np.float32 if spec.kind == "image" else np.float64
    each = (1, -1) + (1,) * (len(spec.shape) - 1)
    mean = np.asarray(spec.input_mean, dtype=exact).reshape(each)
    std = np.asarray(spec.input_std, dtype=exact).reshape(each)
    standardised = (values.astype(exact, copy=False) - mean) / std
    return torch.from_numpy(standardised.astype(np.float32, copy=False))


def encode_targets(table: pa.Table | pd.DataFrame, spec: DataSpec, where: str = "the input") -> torch.Tensor:
    """Targets for a loss: long [N] (multiclass), float [N,1] (binary), float [N,L] (multilabel) or standardised
    float [N,T] (regression).  Raises DataError for a missing column, NaN, a label outside the spec."""
    values = tables.number_columns(table, spec.targets, where)
    if spec.task == "regression":
        standardised = (values - np.asarray(spec.target_mean)) / np.asarray(spec.target_std)
        return torch.from_numpy(standardised.astype(np.float32))
    num_labels = len(spec.classes) if spec.task == "multiclass" else 2
    names = "absent, present" if spec.task == "multilabel" else ", ".join(spec.classes[:10])
    for index, column in enumerate(spec.targets):
        tables.check_labels(values[:, index], num_labels, column, where, names)
    if spec.task == "multiclass":
        return torch.from_numpy(values[:, 0].astype(np.int64))
    return torch.from_numpy(values.astype(np.float32))


def decode(outputs: torch.Tensor, spec: DataSpec) -> pd.DataFrame:
    """A network's outputs [N,num_outputs] (logits, or standardised values) in the user's terms, one row each.

    multiclass, binary: `prediction` (a class name) and `probability_<class>` for each class;
    multilabel: `prediction_<label>` (0 or 1) and `probability_<label>` for each label;
    regression: `prediction` in original units, or `prediction_<target>` for each if there are several targets.
    """
    import pandas as pd

    if outputs.ndim != 2 or outputs.shape[1] != spec.num_outputs:
        raise DataError(f"{spec.name!r} needs outputs of shape [N, {spec.num_outputs}], got {tuple(outputs.shape)}")
    logits = outputs.detach().to("cpu", torch.float64)
    if spec.task == "regression":
        values = logits.numpy() * np.asarray(spec.target_std) + np.asarray(spec.target_mean)
        names = ["prediction"] if len(spec.targets) == 1 else [f"prediction_{name}" for name in spec.targets]
        return pd.DataFrame(values, columns=names)
    if spec.task == "multilabel":
        present = logits.sigmoid().numpy()
        frame = pd.DataFrame((present > 0.5).astype(np.int64), columns=[f"prediction_{name}" for name in spec.targets])
        return frame.assign(**{f"probability_{name}": present[:, i] for i, name in enumerate(spec.targets)})
    if spec.task == "binary":
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
    probabilities = logits.softmax(dim=1).numpy()
    frame = pd.DataFrame({"prediction": [spec.classes[index] for index in probabilities.argmax(axis=1)]})
    return frame.assign(**{f"probability_{name}": probabilities[:, i] for i, name in enumerate(spec.classes)})
