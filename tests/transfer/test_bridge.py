"""What an encoder is given is what its own codec would have made of the same rows."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from neurofleet.data import codec
from neurofleet.errors import ConfigError, MismatchError
from neurofleet.spec import DataSpec
from neurofleet.transfer.bridge import LUMINANCE, Bridge

NUM_ROWS = 5


def spec(kind: str, shape: tuple[int, ...], **changes: Any) -> DataSpec:
    channels = {"image": shape[0], "sequence": shape[-1], "tabular": shape[0]}.get(kind, 0)
    fields: dict[str, Any] = {
        "name": "made",
        "kind": kind,
        "task": "regression",
        "shape": shape,
        "inputs": tuple(f"x{index}" for index in range(shape[0])) if kind in ("tabular", "categorical") else ("x",),
        "targets": ("y",),
        "classes": (),
        "vocabulary": (),
        "tokenizer": "",
        "cardinalities": (),
        "input_mean": tuple(30.0 + 7 * index for index in range(channels)),
        "input_std": tuple(4.0 + index for index in range(channels)),
        "target_mean": (0.0,),
        "target_std": (1.0,),
        "split": "hashed",
        "num_rows": {"train": 1, "val": 1, "test": 1},
        "source": "test",
    }
    return DataSpec(**fields | changes)


def moved(one: DataSpec, **changes: Any) -> DataSpec:
    """The same kind of data with statistics of its own."""
    mean, std = tuple(11.0 - value for value in one.input_mean), tuple(value / 3 for value in one.input_std)
    return dataclasses.replace(one, input_mean=mean, input_std=std, name="theirs", **changes)


def crossed(given: DataSpec, wanted: DataSpec, raw: Any, statistics: str = "base") -> torch.Tensor:
    return Bridge(given, wanted, statistics)(codec.encode(raw, given))


def test_the_encoders_columns_are_picked_by_their_names_and_standardised_as_its_own() -> None:
    given = spec("tabular", (4,), inputs=("a", "b", "c", "d"))
    wanted = moved(spec("tabular", (2,)), inputs=("d", "b"))
    raw = pd.DataFrame(np.random.default_rng(0).normal(30, 9, (NUM_ROWS, 4)), columns=list("abcd"))
    expected = codec.encode(raw, wanted)
    torch.testing.assert_close(crossed(given, wanted, raw), expected, rtol=1e-6, atol=1e-6)
    as_it_is = codec.encode(raw, given)
    assert torch.equal(crossed(given, wanted, raw, "data"), as_it_is[:, [3, 1]])
    assert Bridge(given, wanted, "data").steps == ["2 of 4 columns, by name"]
    assert Bridge(given, wanted, "base").steps == ["2 of 4 columns, by name", "standardised as the base's data"]


def test_means_that_are_large_beside_deviations_cost_no_digits() -> None:
    given = spec("tabular", (1,), input_mean=(1e6,), input_std=(0.5,))
    wanted = dataclasses.replace(given, input_mean=(1e6 + 0.25,), input_std=(0.25,))
    raw = pd.DataFrame({"x0": 1e6 + np.linspace(-1, 1, NUM_ROWS)})
    torch.testing.assert_close(crossed(given, wanted, raw), codec.encode(raw, wanted), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("channels", "others"), [(1, 1), (3, 3), (1, 3), (3, 1)])
def test_pixels_arrive_in_the_encoders_channels(channels: int, others: int) -> None:
    given, wanted = spec("image", (channels, 4, 4)), moved(spec("image", (others, 4, 4)))
    raw = np.random.default_rng(0).integers(0, 256, (NUM_ROWS, channels, 4, 4), dtype=np.uint8)
    if channels == others:
        seen: Any = raw.astype(np.float64)
    elif channels == 1:
        seen = np.repeat(raw, 3, axis=1).astype(np.float64)
    else:
        seen = (raw * np.reshape(LUMINANCE, (3, 1, 1))).sum(axis=1, keepdims=True)
    mean, std = (np.reshape(values, (-1, 1, 1)) for values in (wanted.input_mean, wanted.input_std))
    expected = torch.from_numpy((seen - mean) / std).float()
    torch.testing.assert_close(crossed(given, wanted, raw), expected, rtol=1e-5, atol=2e-5)
    told = {(1, 3): ["gray to RGB"], (3, 1): ["RGB to gray"]}.get((channels, others), [])
    assert Bridge(given, wanted, "data").steps == told


def test_images_are_resized_by_hand() -> None:
    given, wanted = spec("image", (1, 2, 2)), spec("image", (1, 4, 4))
    row = torch.tensor([0.0, 0.25, 0.75, 1.0])  # between the middles of two pixels, and beyond them as they are
    left_to_right = torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])
    assert torch.equal(Bridge(given, wanted, "data")(left_to_right), row.expand(1, 1, 4, 4))
    halved = Bridge(wanted, given, "data")(row.expand(1, 1, 4, 4))
    # Twice as wide a triangle over four pixels: (0.0 * 3/8 + 0.25 * 3/8 + 0.75 * 1/8) / (7/8) at the border.
    expected = (0.25 * 3 / 8 + 0.75 * 1 / 8) / (7 / 8)
    torch.testing.assert_close(halved[0, 0, 0], torch.tensor([expected, 1 - expected]), rtol=1e-5, atol=1e-6)
    assert Bridge(wanted, given, "data").steps == ["resized from 4x4 to 2x2"]


@pytest.mark.parametrize(("steps", "others"), [(3, 5), (5, 3), (4, 4)])
def test_sequences_are_cut_or_filled_up(steps: int, others: int) -> None:
    given, wanted = spec("sequence", (steps, 2)), moved(spec("sequence", (others, 2)))
    raw = np.random.default_rng(0).normal(30, 9, (NUM_ROWS, steps, 2))
    there = codec.encode(raw[:, :others], wanted)  # fills up with NaN itself
    torch.testing.assert_close(crossed(given, wanted, raw), there, rtol=1e-5, atol=1e-5, equal_nan=True)
    assert there.shape == (NUM_ROWS, others, 2)


def test_what_fits_is_left_alone() -> None:
    numbers = spec("tabular", (3,))
    inputs = torch.randn(NUM_ROWS, 3)
    bridge = Bridge(numbers, numbers, "data")
    assert bridge(inputs) is inputs
    assert (bridge.steps, bridge.state_dict(), list(bridge.parameters())) == ([], {}, [])
    words = spec("text", (6,), tokenizer="words", vocabulary=("a", "b"))
    tokens = torch.randint(0, 4, (NUM_ROWS, 6))
    assert Bridge(words, words, "base")(tokens) is tokens
    columns = spec("categorical", (2,), cardinalities=(3, 4))
    indices = torch.randint(0, 3, (NUM_ROWS, 2))
    assert Bridge(columns, columns, "base")(indices) is indices


def refusals() -> dict[str, tuple[DataSpec, DataSpec, str]]:
    words = spec("text", (6,), tokenizer="words", vocabulary=("a", "b"))
    return {
        "kind": (spec("image", (1, 4, 4)), spec("tabular", (3,)), "no bridge leads from image to tabular; take a base"),
        "columns": (spec("tabular", (2,)), spec("tabular", (3,)), "needs the columns x2 too; add them"),
        "channels": (spec("image", (2, 4, 4)), spec("image", (3, 4, 4)), "make images of 3 channels"),
        "steps": (spec("sequence", (4, 3)), spec("sequence", (4, 2)), "needs 2 channels a step"),
        "vocabulary": (words, dataclasses.replace(words, vocabulary=("a",)), "by the base's vocabulary"),
        "indices": (
            spec("categorical", (2,), cardinalities=(3, 4)),
            spec("categorical", (2,), cardinalities=(3, 5)),
            "give the data the columns x0, x1 with 3, 5 indices",
        ),
        "environment": (spec("environment", (2,)), spec("environment", (2,)), "are no rows of a dataset"),
    }


@pytest.mark.parametrize("case", refusals())
def test_a_refusal_names_both_specs_and_a_remedy(case: str) -> None:
    given, wanted, remedy = refusals()[case]
    wanted = dataclasses.replace(wanted, name="theirs")
    with pytest.raises(MismatchError) as refused:
        Bridge(given, wanted, "base")
    message = str(refused.value)
    assert message.startswith(f"a base trained on theirs ({wanted.kind} ")
    assert f"cannot take made ({given.kind} " in message
    assert remedy in message


def test_other_statistics_are_refused() -> None:
    with pytest.raises(ConfigError, match="statistics needs one of data, base, got 'mine'"):
        Bridge(spec("tabular", (2,)), spec("tabular", (2,)), "mine")


PAIRS = {
    "columns": (spec("tabular", (4,)), moved(spec("tabular", (2,)), inputs=("x3", "x1"))),
    "larger": (spec("image", (1, 3, 3)), moved(spec("image", (3, 5, 4)))),
    "smaller": (spec("image", (3, 6, 5)), moved(spec("image", (1, 3, 3)))),
    "longer": (spec("sequence", (3, 2)), moved(spec("sequence", (5, 2)))),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_it_runs_in_a_stack_in_float64_and_learns_nothing(pair: str) -> None:
    given, wanted = PAIRS[pair]
    bridge = Bridge(given, wanted, "base")
    inputs = torch.randn(NUM_ROWS, *given.shape, dtype=torch.float64)
    alone = bridge.double()(inputs)
    assert alone.dtype is torch.float64
    assert alone.shape == (NUM_ROWS, *wanted.shape)
    stacked = torch.func.vmap(bridge)(torch.stack([inputs, inputs * 2]))
    torch.testing.assert_close(stacked[0], alone, rtol=1e-12, atol=1e-12, equal_nan=True)
    by_trial = {name: torch.stack([value, value]) for name, value in bridge.named_buffers()}
    over = torch.func.vmap(lambda own: torch.func.functional_call(bridge, own, (inputs,)))(by_trial)
    torch.testing.assert_close(over[1], alone, rtol=1e-12, atol=1e-12, equal_nan=True)
    served = Bridge(given, wanted, "base")(inputs.float())  # by a network that was only built
    assert served.dtype is torch.float32
    torch.testing.assert_close(served, alone.float(), rtol=1e-4, atol=1e-4, equal_nan=True)
