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


WORDS = ("good", "bad", "tea", ".", "!")


def _other(name: str) -> Raw:
    """Datasets of sequences, texts, indices and identities."""
    random, rows = np.random.default_rng(8), np.arange(NUM_ROWS)
    if name == "notes":  # 1 to 8 words of 5
        notes = [" ".join(random.choice(WORDS, 1 + row % 8)) for row in rows]
        notes[:2] = ["Good tea. bad! good tea . !", "tea"]
        return Raw(
            kind="text", task="binary", inputs={"note": np.array(notes, dtype=object)}, targets={"likes": rows % 2},
            classes=("no", "yes"), tokenizer="words", length=6, most_tokens=10, source="test",
        )  # fmt: skip
    if name == "tale":
        letters = np.array(["".join(chr(97 + (row * 3 + place) % 26) for place in range(8)) for row in rows])
        stages = {"train": rows[:70], "val": rows[70:80], "test": rows[80:]}
        return Raw(
            kind="text", task="language", inputs={"text": letters.astype(object)}, targets={"given": 1 + 0 * rows},
            tokenizer="characters", length=8, most_tokens=100, stages=stages, source="test",
        )  # fmt: skip
    if name == "tracks":
        tracks = random.normal([5, -200], [1, 30], (NUM_ROWS, 5, 2))
        tracks[np.arange(5) > rows[:, None] % 5] = np.nan
        stages = {"train": rows[:80], "test": rows[80:]}
        return Raw(
            kind="sequence", task="multiclass", inputs={"track": tracks}, targets={"class": rows % 4},
            classes=("a", "b", "c", "d"), stages=stages, source="test",
        )  # fmt: skip
    if name == "places":
        return Raw(
            kind="categorical", task="regression", inputs={"user": rows % 5, "item": rows % 7},
            targets={"stars": rows % 5 + 0.5}, cardinalities=(5, 7), source="test",
        )  # fmt: skip
    faces = random.integers(0, 256, (60, 1, 4, 4)).astype(np.uint8)
    rows = np.arange(60)
    return Raw(
        kind="image", task="verification", inputs={"image": faces}, targets={"person": rows // 10},
        classes=tuple("abcdef"), stages={"train": rows[:30], "val": rows[30:40], "test": rows[40:]}, source="test",
    )  # fmt: skip


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the datasets pictures (multiclass), yes_no (binary), tags (multilabel), amounts (regression), and
    notes (text), tale (language), tracks (sequences), places (indices), faces (verification)."""
    for name in ("notes", "tale", "tracks", "places", "faces"):
        write_dataset(name, _other(name), tmp_path / "data")
    for name in ("pictures", "yes_no", "tags", "amounts"):
        write_dataset(name, _raw(name), tmp_path / "data")
    monkeypatch.setenv("NEUROFLEET_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def specs(datasets: Path) -> dict[str, DataSpec]:
    return {folder.name: DataSpec.load(folder / "spec.json") for folder in datasets.iterdir()}
