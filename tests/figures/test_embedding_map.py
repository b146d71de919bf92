from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import silhouette_score
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

from neurofleet.figures._points import COLOURS, SHAPES
from neurofleet.figures.embedding_map import embedding_map, separation, silhouette

GENERATOR = np.random.default_rng(0)
TARGETS = np.arange(60) % 3
MIXED = GENERATOR.normal(size=(60, 8))
APART = MIXED + 9 * np.eye(8)[TARGETS]


def regression(spec: Any) -> Any:
    return dataclasses.replace(
        spec, task="regression", classes=(), targets=("height",), target_mean=(10.0,), target_std=(2.0,)
    )


def test_before_and_after_side_by_side(tmp_path: Path, made_spec: Any) -> None:
    figure = embedding_map(tmp_path / "e.png", spec=made_spec, before=MIXED, after=APART[:, :6], targets=TARGETS)
    before, after = figure.axes
    assert (before.get_title(), after.get_title()) == ("before fine-tuning", "after fine-tuning")
    assert after.get_xlabel().endswith("accuracy of the 5 nearest rows: 100.0%, silhouette 0.75")
    assert "accuracy of the 5 nearest rows: " in before.get_xlabel()
    assert [len(np.asarray(one.get_offsets())) for one in after.collections] == [20, 20, 20]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "c"]
    assert figure.get_suptitle() == "made: features of 60 test rows, principal components"


def test_the_numbers_are_scikit_learns(made_spec: Any) -> None:
    spec, halves = dataclasses.replace(made_spec, classes=("a", "b")), TARGETS % 2
    for features in (MIXED, APART):
        members = TARGETS[:, None] == np.arange(4)  # no row is of the fourth class
        distances = np.linalg.norm(features[:, None] - features, axis=-1)
        assert silhouette(distances, members) == pytest.approx(silhouette_score(features, TARGETS))
        said = cross_val_predict(KNeighborsClassifier(5), features, halves, cv=LeaveOneOut())
        assert separation(features, halves, spec) == (
            f"accuracy of the 5 nearest rows: {(said == halves).mean():.1%}, "
            f"silhouette {silhouette_score(features, halves):.2f}"
        )


def test_a_row_alone_and_a_class_alone() -> None:
    distances = np.array([[0.0, 1.0, 4.0], [1.0, 0.0, 4.0], [4.0, 4.0, 0.0]])
    members = np.array([[True, False], [True, False], [False, True]])
    assert silhouette(distances, members) == pytest.approx((0.75 + 0.75 + 0) / 3)
    assert silhouette(distances, np.array([[True, False]] * 3)) == 0


def test_the_nearer_of_two_classes_wins_a_tie(made_spec: Any) -> None:
    """On a line, each row's five nearest are all others: rows 0 and 1 have two neighbours of b, the nearest among them,
    and two of a; the others have more of another class, or its row nearer."""
    features, targets = np.arange(6.0)[:, None], np.array([1, 1, 0, 0, 1, 2])
    assert separation(features, targets, made_spec).startswith("accuracy of the 5 nearest rows: 33.3%")


def test_values_and_counts_have_a_scale(tmp_path: Path, made_spec: Any) -> None:
    values = GENERATOR.normal(size=(50, 1))
    spec = regression(made_spec)
    after = values @ np.ones((1, 3))
    figure = embedding_map(tmp_path / "e.png", spec=spec, before=MIXED[:50], after=after, targets=values)
    assert figure.axes[2].get_ylabel() == "height"
    assert figure.axes[0].collections[0].get_array().tolist() == pytest.approx(values[:, 0] * 2 + 10)
    assert "r² of the 5 nearest rows' mean: 0.9" in figure.axes[1].get_xlabel()
    labels: Any = {"task": "multilabel", "classes": ("p", "q"), "targets": ("p", "q")}
    both = (MIXED[:, :2] > 0).astype(float)
    figure = embedding_map(
        tmp_path / "e.png", spec=dataclasses.replace(made_spec, **labels), before=MIXED, after=both * 9, targets=both
    )
    assert figure.axes[2].get_ylabel() == "labels of a row"
    assert "rows: 100.0%" in figure.axes[1].get_xlabel()


def test_twenty_classes_are_told_apart(tmp_path: Path, made_spec: Any) -> None:
    spec = dataclasses.replace(made_spec, classes=tuple(f"class {index}" for index in range(20)))
    targets = np.arange(60) % 20
    figure = embedding_map(tmp_path / "e.png", spec=spec, before=MIXED, after=MIXED, targets=targets)
    looks = {
        (tuple(one.get_facecolor()[0]), one.get_paths()[0].vertices.tobytes()) for one in figure.axes[0].collections
    }
    assert len(looks) == 20 <= len(COLOURS) * len(SHAPES)
