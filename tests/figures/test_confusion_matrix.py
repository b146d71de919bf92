from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np

from neurofleet.figures.confusion_matrix import confusion_matrix, count


def test_rows_are_true_classes() -> None:
    assert count([0, 0, 0, 1], [0, 1, 1, 1], 3).tolist() == [[1, 2, 0], [0, 1, 0], [0, 0, 0]]


def test_counts_shades_and_names(tmp_path: Path) -> None:
    figure = confusion_matrix([0, 0, 0, 0, 1], [0, 0, 0, 1, 1], ["no", "yes"], tmp_path / "matrix.png", title="mlp")
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["3", "1", "0", "1"]
    assert axes.images[0].get_array().tolist() == [[0.75, 0.25], [0.0, 1.0]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["no", "yes"]
    assert axes.get_title() == "mlp\naccuracy 80.00% of 5 rows"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")


def test_long_names_are_slanted_and_cut(tmp_path: Path) -> None:
    names = ["a" * 30, *(f"class {index}" for index in range(9))]
    figure = confusion_matrix(range(10), range(10), names, tmp_path / "matrix.png")
    labels = figure.axes[0].get_xticklabels()
    assert labels[0].get_text() == "a" * 19 + "…"
    assert {label.get_rotation() for label in labels} == {40}
    short = confusion_matrix([0, 1], [0, 1], ["malignant", "benign"], tmp_path / "matrix.png")
    assert {label.get_rotation() for label in short.axes[0].get_xticklabels()} == {0}


def test_many_classes_are_shades_alone(tmp_path: Path) -> None:
    everyone = np.arange(40)
    figure = confusion_matrix(everyone, everyone, [str(index) for index in everyone], tmp_path / "matrix.png")
    assert len(figure.axes[0].texts) == 0


def test_a_class_without_rows_has_no_shade(tmp_path: Path) -> None:
    figure = confusion_matrix([0], [0], ["a", "b"], tmp_path / "matrix.png")
    assert figure.axes[0].images[0].get_array().tolist() == [[1.0, 0.0], [0.0, 0.0]]


def test_writes_a_png_of_sensible_size(tmp_path: Path) -> None:
    confusion_matrix(range(10), range(10), [str(index) for index in range(10)], tmp_path / "matrix.png")
    height, width, _ = matplotlib.image.imread(tmp_path / "matrix.png").shape
    assert 800 < height < 1400
    assert 900 < width < 1500
