from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neurofleet.figures.pair_distances import pair_distances


def test_both_kinds_are_drawn(tmp_path: Path, made_spec: Any) -> None:
    generator = np.random.default_rng(0)
    same, different = generator.normal(0.5, 0.1, 4000).clip(0), generator.normal(1.1, 0.2, 4000).clip(0)
    path = tmp_path / "p.png"
    figure = pair_distances(path, spec=made_spec, same=same, different=different, threshold=np.asarray(0.7))
    assert path.stat().st_size > 5000
    (axes,) = figure.axes
    heights = np.array([patch.get_height() for patch in axes.patches]).reshape(2, -1)
    width = axes.patches[0].get_width()
    np.testing.assert_allclose(heights.sum(axis=1) * width, [1, 1], rtol=1e-9)
    centres = (np.arange(heights.shape[1]) + 0.5) * width
    np.testing.assert_allclose((heights * width) @ centres, [same.mean(), different.mean()], atol=width)
    assert [text.get_text() for text in axes.get_legend().get_texts()][-1] == "2.3% of each are mistaken"


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_pairs_that_all_lie_alike(value: float, tmp_path: Path, made_spec: Any) -> None:
    alike = np.full(5, value)
    figure = pair_distances(
        tmp_path / "p.png", spec=made_spec, same=alike, different=alike, threshold=np.asarray(value)
    )
    assert figure.axes[0].get_xlim()[1] > 0
