from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from neurofleet.figures.worst_mistakes import worst_mistakes

MISTAKES: dict[str, Any] = {
    "examined": np.array([2048]),
    "rows": np.array([7, 3]),
    "targets": np.array([0, 2]),
    "predictions": np.array([1, 0]),
    "probabilities": np.array([0.97, 0.61]),
}


def test_images_with_what_was_said_of_them(tmp_path: Path, made_spec: Any) -> None:
    spec = dataclasses.replace(made_spec, kind="image", shape=(1, 4, 4))
    figure = worst_mistakes(tmp_path / "w.png", spec=spec, inputs=np.zeros((2, 1, 4, 4)), **MISTAKES)
    assert [axes.get_title() for axes in figure.axes] == ["b (97%)\nis a", "a (61%)\nis c"]
    assert all(len(axes.images) == 1 for axes in figure.axes)


def test_sequences_are_curves(tmp_path: Path, made_spec: Any) -> None:
    spec = dataclasses.replace(made_spec, kind="sequence", shape=(5, 3))
    figure = worst_mistakes(tmp_path / "w.png", spec=spec, inputs=np.zeros((2, 5, 3)), **MISTAKES)
    assert [len(axes.lines) for axes in figure.axes] == [3, 3], "a curve a channel"


def test_rows_of_a_table(tmp_path: Path, made_spec: Any) -> None:
    figure = worst_mistakes(tmp_path / "w.png", spec=made_spec, inputs=np.zeros((2, 4)), **MISTAKES)
    assert [text.get_text() for text in figure.axes[0].texts] == ["row 7: b (97%), is a", "row 3: a (61%), is c"]


def test_texts_show_their_beginning(tmp_path: Path, made_spec: Any) -> None:
    spec = dataclasses.replace(made_spec, kind="text", shape=(3,), tokenizer="words", vocabulary=("good", "tea"))
    figure = worst_mistakes(tmp_path / "w.png", spec=spec, inputs=np.array([[2, 3, 0], [1, 3, 3]]), **MISTAKES)
    assert [text.get_text().rsplit(": ", 1)[1] for text in figure.axes[0].texts] == ["good tea", "? tea tea"]


def test_no_mistakes_is_said(tmp_path: Path, made_spec: Any) -> None:
    none = {name: values if name == "examined" else values[:0] for name, values in MISTAKES.items()}
    figure = worst_mistakes(tmp_path / "w.png", spec=made_spec, inputs=np.zeros((0, 4)), **none)
    assert figure.get_suptitle() == "made: no mistakes in 2,048 test rows"
    assert (tmp_path / "w.png").exists()
