"""Sequences, indices and texts, as Parquet has them and as a user may give them."""

from __future__ import annotations

import math
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


def raw_tracks(table: pa.Table) -> np.ndarray:
    return np.array(table.column("track").to_pylist()).reshape(-1, 5, 2)


def test_sequences_are_standardised_per_channel_over_the_steps_that_are_there(datasets: Path, specs: Specs) -> None:
    table, spec = table_of(datasets, "tracks"), specs["tracks"]
    inputs, raw = encode(table, spec), raw_tracks(table)
    assert (inputs.dtype, inputs.shape) == (torch.float32, (70, 5, 2))
    np.testing.assert_array_equal(inputs.isnan().numpy(), np.isnan(raw))
    np.testing.assert_allclose(spec.input_mean, np.nanmean(raw, axis=(0, 1)), rtol=1e-12)
    np.testing.assert_allclose(inputs.nanmean(dim=(0, 1)), [0, 0], atol=1e-5)
    np.testing.assert_allclose(np.nanstd(inputs.numpy(), axis=(0, 1)), [1, 1], atol=1e-5)
    np.testing.assert_allclose(inputs.numpy() * np.array(spec.input_std) + np.array(spec.input_mean), raw, rtol=1e-4)


def test_every_form_of_sequences_encodes_alike(datasets: Path, specs: Specs) -> None:
    table, spec = table_of(datasets, "tracks"), specs["tracks"]
    inputs, raw = encode(table, spec), raw_tracks(table)
    short = [track[: int(np.isfinite(track[:, 0]).sum())] for track in raw]  # without the filling
    for given in (
        raw,
        raw.reshape(70, 10),
        pd.DataFrame({"track": list(raw), "more": "text"}),
        raw.astype(np.float64).tolist(),
        short,
        [track.tolist() for track in short],
        pd.DataFrame({"track": short}),
        pd.DataFrame({"track": [track.tolist() for track in short]}),
        pd.DataFrame({"track": [track.reshape(-1) for track in short]}),
        pa.table({"track": [track.reshape(-1).tolist() for track in short]}),
    ):
        torch.testing.assert_close(encode(given, spec), inputs, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(encode(raw[:, :2], spec)[:, :2], inputs[:, :2], rtol=0, atol=0, equal_nan=True)
    assert encode(raw[:, :2], spec)[:, 2:].isnan().all()
    assert encode(table.slice(0, 0), spec).shape == (0, 5, 2)
    assert encode(pd.DataFrame({"track": []}), spec).shape == (0, 5, 2)


def spoilt(change: dict[tuple[int, ...], float]) -> np.ndarray:
    values = np.zeros((4, 5, 2))
    for place, value in change.items():
        values[place] = value
    return values


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (spoilt({(2, 1): math.nan}), r"'track' needs sequences of at least one step without gaps .* is row 2 "),
        (spoilt({(2, 4, 0): math.nan}), "got 1 others, the first is row 2 "),
        (spoilt({(1, 0): math.nan, (3, 0, 1): math.inf}), "got 2 others, the first is row 1 "),
        (spoilt({(1,): math.nan}), "got 1 others, the first is row 1 "),
        (spoilt({(1, 4): math.inf}), "got 1 others, the first is row 1 "),
        (np.zeros((4, 6, 2)), r"rows of shape \(5, 2\), or of fewer steps, for 'tracks', got .* \(4, 6, 2\)"),
        (np.zeros((4, 5, 3)), r"got an array of shape \(4, 5, 3\)"),
        (np.zeros((4, 7)), r"got an array of shape \(4, 7\)"),
        (pd.DataFrame({"track": [[1, 2], [1, 2, 3]]}), "at most 5 steps of 2 numbers in each row, got .* in row 1 "),
        (pd.DataFrame({"track": [[1, 2] * 6]}), "at most 5 steps of 2 numbers in each row, got .* in row 0 "),
        (pd.DataFrame({"track": [np.ones((2, 4))]}), r"in row 0 .*: an array of shape \(2, 4\)"),
        (pd.DataFrame({"track": ["up and down"]}), "at most 5 steps of 2 numbers in each row, got .* in row 0 "),
        (pd.DataFrame({"path": [[1, 2]]}), "lacks 1 of them: 'track'; it has path"),
        (np.full((2, 5, 2), "a"), "needs numbers, got <U1"),
    ],
)
def test_sequences_that_cannot_be_encoded(given: Any, message: str, specs: Specs) -> None:
    with pytest.raises(DataError, match=message):
        encode(given, specs["tracks"])


def test_indices_stay_what_they_are(datasets: Path, specs: Specs) -> None:
    table, spec = table_of(datasets, "places"), specs["places"]
    inputs = encode(table, spec)
    assert (inputs.dtype, inputs.shape, spec.input_mean) == (torch.int64, (70, 2), ())
    assert inputs[:, 1].tolist() == table.column("item").to_pylist()
    frame = table.to_pandas()[["item", "user"]].astype("float64")
    assert torch.equal(encode(frame, spec), inputs)
    assert torch.equal(encode(inputs.numpy(), spec), inputs)
    for change in ({"item": 7}, {"item": -1}, {"item": 1.5}):
        with pytest.raises(DataError, match=r"'item' needs labels 0 to 6 .* in row 0 .*, 70 such rows in all"):
            encode(frame.assign(**change), spec)


def test_words_become_their_places_in_the_vocabulary(datasets: Path, specs: Specs) -> None:
    spec = specs["notes"]
    assert sorted(spec.vocabulary) == ["!", ".", "bad", "good", "tea"]
    assert (spec.shape, spec.num_tokens) == ((6,), 7)
    number = {token: index + 2 for index, token in enumerate(spec.vocabulary)}
    given = ["Good TEA", "tea, tea!", "good bad tea . ! good bad", "Unheard-of"]
    expected = [
        [number["good"], number["tea"], 0, 0, 0, 0],
        [number["tea"], 1, number["tea"], number["!"], 0, 0],
        [number[token] for token in ("good", "bad", "tea", ".", "!", "good")],  # what comes later is not read
        [1, 1, 1, 0, 0, 0],
    ]
    for form in (pd.DataFrame({"note": given}), pa.table({"note": given}), np.array(given), np.array(given)[:, None]):
        assert encode(form, spec).tolist() == expected
    assert encode(pd.DataFrame({"note": given}, dtype=object), spec).dtype == torch.int64
    assert encode(np.array([], dtype=str), spec).shape == (0, 6)


def test_characters_become_their_places_and_a_long_text_keeps_its_end(datasets: Path, specs: Specs) -> None:
    table, spec = table_of(datasets, "tale"), specs["tale"]
    assert "".join(sorted(spec.vocabulary)) == "abcdefghijklmnopqrstuvwxyz"
    inputs = encode(table, spec)
    back = ["".join(spec.vocabulary[token - 2] for token in row) for row in inputs.tolist()]
    assert back == table.column("text").to_pylist()
    beginning = encode(np.array(["abc", "aÄ\U0001f600c", "zzzabcdefgh"]), spec)
    a, b, c = (spec.vocabulary.index(letter) + 2 for letter in "abc")
    assert beginning[:2].tolist() == [[a, b, c, 0, 0, 0, 0, 0], [a, 1, 1, c, 0, 0, 0, 0]]
    assert beginning[2].tolist() == encode(np.array(["abcdefgh"]), spec)[0].tolist()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (pd.DataFrame({"note": ["tea", None]}), "'note' needs a text in each row, got 1 .* row 1 .*(None|nan)"),
        (pd.DataFrame({"note": ["tea", 5]}), "'note' needs a text in each row, got 1 .* row 1 .*5"),
        (np.array([["tea", "tea"]]), r"one text a row, got an array of shape \(1, 2\)"),
        (pd.DataFrame({"note": ["tea", "", " "]}), "at least one token in each row, got 2 empty ones, .* row 1 "),
        (pd.DataFrame({"text": ["tea"]}), "lacks 1 of them: 'note'"),
    ],
)
def test_texts_that_cannot_be_encoded(given: Any, message: str, specs: Specs) -> None:
    with pytest.raises(DataError, match=message):
        encode(given, specs["notes"])


def test_targets_of_identities_and_of_language(datasets: Path, specs: Specs) -> None:
    table = table_of(datasets, "faces")
    targets = encode_targets(table, specs["faces"])
    assert (targets.dtype, targets.tolist()) == (torch.int64, table.column("person").to_pylist())
    table = table_of(datasets, "tale")
    assert encode_targets(table, specs["tale"]).tolist() == [1] * 70
    for given in (0, 8, 1.5):
        with pytest.raises(DataError, match=rf"'given' needs 1 to 7 given tokens of 8, got {given} in row 0 "):
            encode_targets(pd.DataFrame({"given": [given]}), specs["tale"])


def test_language_is_decoded_to_the_next_token(specs: Specs) -> None:
    spec = specs["tale"]
    logits = torch.zeros(3, 28)
    logits[0, spec.vocabulary.index("q") + 2] = math.log(27)
    logits[1, 1] = 50.0
    logits[2, 0] = 50.0
    frame = decode(logits, spec)
    assert frame["prediction"].tolist() == ["q", "<unknown>", "<padding>"]
    np.testing.assert_allclose(frame["probability"], [0.5, 1, 1])


def test_verification_is_decoded_by_the_names_of_the_family(specs: Specs) -> None:
    with pytest.raises(DataError, match="a family that names its outputs"):
        decode(torch.zeros(2, 1), specs["faces"])
    assert decode(torch.ones(2, 3), specs["faces"], names=("a", "b", "c")).columns.tolist() == ["a", "b", "c"]
