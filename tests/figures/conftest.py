"""A DataSpec for figures that need its names alone."""

from __future__ import annotations

import pytest

from neurofleet.spec import DataSpec


@pytest.fixture
def made_spec() -> DataSpec:
    return DataSpec(
        name="made",
        kind="tabular",
        task="multiclass",
        shape=(4,),
        inputs=("w", "x", "y", "z"),
        targets=("kind",),
        classes=("a", "b", "c"),
        vocabulary=(),
        tokenizer="",
        cardinalities=(),
        input_mean=(0.0,) * 4,
        input_std=(1.0,) * 4,
        target_mean=(),
        target_std=(),
        split="hashed",
        num_rows={"train": 8, "val": 1, "test": 1},
        source="made for this test",
    )
