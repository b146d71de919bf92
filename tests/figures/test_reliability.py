from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neurofleet.figures.reliability import binned, calibration_error, reliability


def test_bins_hold_rows_means_and_shares() -> None:
    counts, means, shares = binned(np.array([0.55, 0.59, 1.0, 0.91]), np.array([True, False, True, True]))
    assert counts.tolist() == [0, 0, 0, 0, 0, 2, 0, 0, 0, 2]
    assert means[[5, 9]] == pytest.approx([0.57, 0.955])
    assert shares[[5, 9]].tolist() == [0.5, 1.0]


def test_the_error_weighs_bins_by_their_rows() -> None:
    confidences = np.array([0.8] * 10 + [0.6] * 30)
    correct = np.array([True] * 8 + [False] * 2 + [True] * 27 + [False] * 3)
    assert calibration_error(confidences, correct) == pytest.approx(0.75 * 0.3)
    assert calibration_error(np.ones(5), np.ones(5, dtype=bool)) == 0.0


def test_the_curve_leaves_out_empty_bins(tmp_path: Path, made_spec: Any) -> None:
    figure = reliability(
        tmp_path / "r.png", spec=made_spec, confidences=np.array([0.75, 0.75, 0.95]), correct=np.array([1, 0, 1])
    )
    line = figure.axes[0].lines[1]
    assert line.get_xdata() == pytest.approx([0.75, 0.95])
    assert line.get_ydata() == pytest.approx([0.5, 1.0])
    assert "error 0.183" in figure.axes[0].get_title()
    assert (tmp_path / "r.png").stat().st_size > 5000
