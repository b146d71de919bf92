from __future__ import annotations

import math
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from neurofleet.figures.predicted_vs_true import predicted_vs_true, r2


def test_points_identity_line_and_figures_of_merit(tmp_path: Path) -> None:
    targets, predictions = np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 4.0])
    figure = predicted_vs_true(targets, predictions, tmp_path / "scatter.png", name="price", title="mlp")
    axes = figure.axes[0]
    assert axes.collections[0].get_offsets().tolist() == [[1, 1], [2, 2], [3, 4]]
    start, end = axes.lines[0].get_xydata().tolist()
    assert start[0] == start[1] < 1
    assert end[0] == end[1] > 4
    assert axes.get_title() == "mlp\nr² = 0.500, mean absolute error = 0.3333"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("true price", "predicted price")


def test_r2() -> None:
    targets = np.array([1.0, 2.0, 3.0])
    assert r2(targets, targets) == 1
    assert r2(targets, np.full(3, 2.0)) == 0
    assert math.isnan(r2(np.ones(3), targets))


def test_writes_a_png_of_sensible_size(tmp_path: Path) -> None:
    predicted_vs_true(np.ones((5, 1)), np.ones((5, 1)), tmp_path / "scatter.png")
    height, width, _ = matplotlib.image.imread(tmp_path / "scatter.png").shape
    assert 600 < height == width < 900


def test_lengths_must_agree(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got 2 and 3"):
        predicted_vs_true(np.ones(2), np.ones(3), tmp_path / "scatter.png")
