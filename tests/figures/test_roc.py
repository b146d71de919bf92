from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from neurofleet.figures.roc import roc


def test_the_curve_and_its_numbers(tmp_path: Path, made_spec: Any) -> None:
    false, true = np.array([0, 0.1, 0.3, 1.0]), np.array([0, 0.6, 0.9, 1.0])
    path = tmp_path / "r.png"
    figure = roc(
        path,
        spec=made_spec,
        false_positive_rate=false,
        true_positive_rate=true,
        auc=np.asarray(0.845),
        eer=np.asarray(0.22),
    )
    assert path.stat().st_size > 5000
    (axes,) = figure.axes
    _, curve, point = axes.lines
    np.testing.assert_array_equal(curve.get_xydata(), np.stack([false, true], axis=1))
    np.testing.assert_allclose(point.get_xydata(), [[0.22, 0.78]])
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts == ["chance", "area 0.8450", "equal errors 22.00%"]
