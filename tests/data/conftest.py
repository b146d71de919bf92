"""Small datasets of every kind and task, written by the package itself into a folder of the test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from neurofleet.data.write import Raw, write_dataset
from neurofleet.spec import DataSpec

NUM_ROWS = 100


def _raw(name: str) -> Raw:
    random = np.random.default_rng(7)
    table = {"wide": random.normal(50, 20, NUM_ROWS), "narrow": random.normal(-3, 0.01, NUM_ROWS)}
    table["constant"] = np.full(NUM_ROWS, 4.0)
    labels = np.arange(NUM_ROWS) % 4
    if name == "pictures":
        pixels = random.integers(0, 256, (NUM_ROWS, 3, 4, 5)).astype(np.uint8)
        pixels[:, 2] //= 8
        return Raw(
            kind="image",
            task="multiclass",
            inputs={"image": pixels},
            targets={"class": labels},
            classes=("a", "b", "c", "d"),
            source="test",
        )
    if name == "yes_no":
        return Raw(
            kind="tabular",
            task="binary",
            inputs=table,
            targets={"answer": (labels == 0).astype(np.int64)},
            classes=("no", "yes"),
            source="test",
        )
    if name == "tags":
        tags = {"odd": labels % 2, "high": labels // 2}
        return Raw(
            kind="tabular", task="multilabel", inputs=table, targets=tags, classes=("odd", "high"), source="test"
        )
    values = {"sum": table["wide"] + table["narrow"], "scaled": 1000 * table["wide"]}
    return Raw(kind="tabular", task="regression", inputs=table, targets=values, source="test")


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the datasets pictures (multiclass), yes_no (binary), tags (multilabel), amounts (regression)."""
    for name in ("pictures", "yes_no", "tags", "amounts"):
        write_dataset(name, _raw(name), tmp_path / "data")
    monkeypatch.setenv("NEUROFLEET_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def specs(datasets: Path) -> dict[str, DataSpec]:
    return {folder.name: DataSpec.load(folder / "spec.json") for folder in datasets.iterdir()}
