from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from neurofleet.data import decode, encode, encode_targets
from neurofleet.errors import DataError
from neurofleet.spec import DataSpec

Specs = dict[str, DataSpec]


def table_of(datasets: Path, name: str) -> pa.Table:
    return pyarrow.parquet.read_table(datasets / name / "train.parquet")


def image_frame(table: pa.Table) -> pd.DataFrame:
    return pd.DataFrame({"image": [np.asarray(row) for row in table.column("image").to_pylist()]})


def test_a_table_is_standardised_by_the_statistics_of_its_train_rows(datasets: Path, specs: Specs) -> None:
    table, spec = table_of(datasets, "yes_no"), specs["yes_no"]
    inputs = encode(table, spec)
    assert inputs.dtype == torch.float32
    assert inputs.shape == (70, 3)
    raw = table.select(["wide", "narrow"]).to_pandas().to_numpy()
    expected = (raw - raw.mean(axis=0)) / raw.std(axis=0)
    np.testing.assert_allclose(inputs[:, :2].numpy(), expected, atol=1e-5)
    assert inputs[:, 2].tolist() == [0.0] * 70  # the constant column


def test_an_image_is_standardised_per_channel(datasets: Path, specs: Specs) -> None:
    table, spec = table_of(datasets, "pictures"), specs["pictures"]
    inputs = encode(table, spec)
    assert inputs.shape == (70, 3, 4, 5)
    np.testing.assert_allclose(inputs.mean(dim=(0, 2, 3)), [0, 0, 0], atol=1e-5)
    np.testing.assert_allclose(inputs.std(dim=(0, 2, 3), correction=0), [1, 1, 1], atol=1e-5)
    raw = np.array(table.column("image")[8].as_py()).reshape(3, 4, 5)
    restored = inputs[8].numpy() * np.reshape(spec.input_std, (3, 1, 1)) + np.reshape(spec.input_mean, (3, 1, 1))
    np.testing.assert_allclose(restored, raw, atol=1e-3)


def test_every_form_of_a_table_encodes_alike(datasets: Path, specs: Specs) -> None:
    table, spec = table_of(datasets, "amounts"), specs["amounts"]
    inputs = encode(table, spec)
    frame = table.to_pandas()[["constant", "sum", "narrow", "wide"]].assign(more="text")
    assert torch.equal(encode(frame, spec), inputs)
    assert torch.equal(encode(frame[list(spec.inputs)].to_numpy(), spec), inputs)
    assert torch.equal(encode(table.slice(10, 5), spec), inputs[10:15])
    assert encode(table.slice(0, 0), spec).shape == (0, 3)
    assert encode(frame.iloc[:0], spec).shape == (0, 3)
    objects = frame.astype({"wide": object})
    assert torch.equal(encode(objects, spec), inputs)


def test_every_form_of_images_encodes_alike(datasets: Path, specs: Specs) -> None:
    table, spec = table_of(datasets, "pictures"), specs["pictures"]
    inputs = encode(table, spec)
    flat = image_frame(table)
    assert torch.equal(encode(flat.assign(more=1), spec), inputs)
    assert torch.equal(encode(pd.DataFrame({"image": table.column("image").to_pylist()}), spec), inputs)
    shaped = np.stack([row.reshape(spec.shape) for row in flat["image"]])
    nested = pd.DataFrame({"image": [image.tolist() for image in shaped]})
    assert torch.equal(encode(nested, spec), inputs)
    assert torch.equal(encode(shaped, spec), inputs)
    assert torch.equal(encode(shaped.astype(np.uint8), spec), inputs)
    assert torch.equal(encode(shaped.astype(np.float64), spec), inputs)
    assert torch.equal(encode(table.slice(10, 5), spec), inputs[10:15])
    assert encode(flat.iloc[:0], spec).shape == (0, 3, 4, 5)


def test_targets_of_each_task(datasets: Path, specs: Specs) -> None:
    table = table_of(datasets, "pictures")
    targets = encode_targets(table, specs["pictures"])
    assert targets.dtype == torch.int64
    assert targets.tolist() == table.column("class").to_pylist()
    table = table_of(datasets, "yes_no")
    targets = encode_targets(table, specs["yes_no"])
    assert (targets.dtype, targets.shape) == (torch.float32, (70, 1))
    assert targets[:, 0].tolist() == table.column("answer").to_pylist()
    table = table_of(datasets, "tags")
    targets = encode_targets(table, specs["tags"])
    assert (targets.dtype, targets.shape) == (torch.float32, (70, 2))
    assert targets[:, 1].tolist() == table.column("high").to_pylist()
    targets = encode_targets(table_of(datasets, "amounts"), specs["amounts"])
    assert (targets.dtype, targets.shape) == (torch.float32, (70, 2))
    np.testing.assert_allclose(targets.mean(dim=0), [0, 0], atol=1e-5)
    np.testing.assert_allclose(targets.std(dim=0, correction=0), [1, 1], atol=1e-5)


def test_decoding_encoded_targets_gives_the_targets_back(datasets: Path, specs: Specs) -> None:
    table, spec = table_of(datasets, "amounts"), specs["amounts"]
    frame = decode(encode_targets(table, spec), spec)
    assert list(frame.columns) == ["prediction_sum", "prediction_scaled"]
    np.testing.assert_allclose(frame["prediction_scaled"], table.column("scaled").to_numpy(), rtol=1e-5)
    table, spec = table_of(datasets, "pictures"), specs["pictures"]
    logits = 9 * torch.nn.functional.one_hot(encode_targets(table, spec), 4).float()
    assert decode(logits, spec)["prediction"].tolist() == ["abcd"[label] for label in table.column("class").to_pylist()]
    table, spec = table_of(datasets, "yes_no"), specs["yes_no"]
    names = [("no", "yes")[label] for label in table.column("answer").to_pylist()]
    assert decode(encode_targets(table, spec) * 8 - 4, spec)["prediction"].tolist() == names


def test_decode_gives_probabilities(specs: Specs) -> None:
    frame = decode(torch.tensor([[0.0, math.log(3), 0.0, -math.inf]]), specs["pictures"])
    assert list(frame.columns) == ["prediction", *(f"probability_{name}" for name in "abcd")]
    assert frame.iloc[0, 0] == "b"
    np.testing.assert_allclose(frame.iloc[0, 1:].astype(float), [0.2, 0.6, 0.2, 0])
    frame = decode(torch.tensor([[math.log(3)], [-math.log(3)]]), specs["yes_no"])
    assert frame["prediction"].tolist() == ["yes", "no"]
    np.testing.assert_allclose(frame[["probability_no", "probability_yes"]], [[0.25, 0.75], [0.75, 0.25]])
    frame = decode(torch.tensor([[math.log(3), -math.log(3)]]), specs["tags"])
    assert frame.columns.tolist() == ["prediction_odd", "prediction_high", "probability_odd", "probability_high"]
    np.testing.assert_allclose(frame.iloc[0], [1, 0, 0.75, 0.25])


def test_decode_of_one_regression_target_is_named_prediction(specs: Specs) -> None:
    spec = DataSpec(**{**specs["amounts"].to_dict(), "targets": ("sum",), "target_mean": (10.0,), "target_std": (2.0,)})
    assert decode(torch.tensor([[1.5]]), spec).to_dict("list") == {"prediction": [13.0]}


def test_decode_refuses_outputs_of_another_shape(specs: Specs) -> None:
    with pytest.raises(DataError, match=r"outputs of shape \[N, 4\], got \(5, 3\)"):
        decode(torch.zeros(5, 3), specs["pictures"])


def spoil(frame: pd.DataFrame, column: str, row: int, value: object) -> pd.DataFrame:
    frame = frame.copy()
    frame[column] = frame[column].astype(object)
    frame.at[row, column] = value
    return frame


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.drop(columns="narrow"), r"lacks 1 of them: 'narrow'; it has row, wide, constant"),
        (lambda frame: spoil(frame, "wide", 12, math.nan), r"'wide' needs finite numbers, got 1 .* in row 12 "),
        (lambda frame: spoil(frame, "wide", 12, math.inf), r"'wide' needs finite numbers, got 1 .* in row 12 "),
        (lambda frame: spoil(frame, "wide", 12, None), r"'wide' needs finite numbers, got 1 .* in row 12 "),
        (lambda frame: spoil(frame, "wide", 12, "tall"), r"'wide' needs numbers, got .*tall.*encode text as numbers"),
        (lambda frame: frame.to_numpy(), r"rows of shape \(3,\) for 'yes_no', got an array of shape \(70, 5\)"),
        (lambda frame: frame[["wide", "narrow", "constant"]].to_numpy().astype(str), "needs numbers, got <U"),
        (lambda frame: frame.to_dict("list"), "pyarrow Table, a pandas DataFrame or a numpy array, got dict"),
        (lambda frame: frame.rename(columns={"wide": 0}), "lacks 1 of them: 'wide'; it has row, 0"),
    ],
    ids=["missing", "nan", "inf", "none", "text", "shape", "text_array", "not_a_table", "number_names"],
)
def test_a_table_that_cannot_be_encoded(
    change: Callable[[pd.DataFrame], Any], message: str, datasets: Path, specs: Specs
) -> None:
    with pytest.raises(DataError, match=message):
        encode(change(table_of(datasets, "yes_no").to_pandas()), specs["yes_no"])


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([1.0, math.nan, None]), "'wide' needs finite numbers, got 2 that are .* in row 1 "),
        (pa.array(["a", "b", "c"]), "'wide' needs numbers, got string"),
        (pa.array([[1], [2], [3]]), "'wide' needs numbers, got list"),
    ],
    ids=["nan", "text", "list"],
)
def test_a_pyarrow_column_that_cannot_be_encoded(column: pa.Array, message: str, specs: Specs) -> None:
    with pytest.raises(DataError, match=message):
        encode(pa.table({"wide": column, "narrow": [1, 2, 3], "constant": [1, 2, 3]}), specs["yes_no"])


def test_nan_in_an_array_names_its_column(specs: Specs) -> None:
    values = np.zeros((5, 3))
    values[3, 1] = np.nan
    with pytest.raises(DataError, match=r"'narrow' needs finite numbers, got 1 .* in row 3 "):
        encode(values, specs["yes_no"])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 3, 5, 4)), r"rows of shape \(3, 4, 5\) for 'pictures', got an array of shape \(2, 3, 5, 4\)"),
        (np.full((2, 3, 4, 5), 256), "pixels from 0 to 255, got 2 rows"),
        (np.full((2, 3, 4, 5), -1.0), "pixels from 0 to 255, got 2 rows"),
        (np.full((2, 3, 4, 5), math.nan), "pixels from 0 to 255, got 2 rows"),
        (pd.DataFrame({"image": [[1, 2], [1]]}), "needs images of one size"),
        (pd.DataFrame({"image": [[1, 2], [1, 3]]}), r"rows of shape \(3, 4, 5\)"),
        (pd.DataFrame({"picture": [[1, 2]]}), "lacks 1 of them: 'image'; it has picture"),
        (pd.DataFrame({"image": ["a.png"]}), "rows of shape"),
        (pa.table({"image": [[1] * 60]}), "a fixed-size list of uint8 for each image, got list"),
        (
            pa.table({"image": pa.array([[1] * 60, None], pa.list_(pa.uint8(), 60))}),
            "an image in each row, 1 are missing",
        ),
        (pa.table({"image": pa.array([[None] * 60], pa.list_(pa.uint8(), 60))}), "pixels from 0 to 255, got 1 rows"),
    ],
    ids=[
        "shape",
        "large",
        "negative",
        "nan",
        "ragged",
        "short",
        "missing",
        "path",
        "variable_list",
        "missing_image",
        "missing_pixel",
    ],
)
def test_images_that_cannot_be_encoded(images: Any, message: str, specs: Specs) -> None:
    with pytest.raises(DataError, match=message):
        encode(images, specs["pictures"])


@pytest.mark.parametrize(
    ("name", "column", "value", "message"),
    [
        ("pictures", "class", 4, r"needs labels 0 to 3 \(a, b, c, d\), got 4 in row 7 .*, 1 such rows in all"),
        ("pictures", "class", -1, "got -1 in row 7 "),
        ("pictures", "class", 1.5, "got 1.5 in row 7 "),
        ("yes_no", "answer", 2, r"needs labels 0 to 1 \(no, yes\), got 2 in row 7 "),
        ("tags", "high", 3, "'high' needs labels 0 to 1 .*, got 3 in row 7 "),
        ("amounts", "scaled", math.nan, "'scaled' needs finite numbers, got 1 .* in row 7 "),
    ],
    ids=["high", "negative", "fraction", "binary", "multilabel", "regression"],
)
def test_targets_outside_the_spec(
    name: str, column: str, value: float, message: str, datasets: Path, specs: Specs
) -> None:
    frame = table_of(datasets, name).to_pandas()
    with pytest.raises(DataError, match=message):
        encode_targets(spoil(frame, column, 7, value), specs[name])
