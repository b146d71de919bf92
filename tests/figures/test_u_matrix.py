from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neurofleet.figures._cells import centres
from neurofleet.figures.u_matrix import u_matrix


@pytest.mark.parametrize(("hexagonal", "corners"), [(False, 4), (True, 6)])
def test_a_cell_for_each_unit(hexagonal: bool, corners: int, tmp_path: Path, made_spec: Any) -> None:
    distances = np.arange(6.0).reshape(2, 3)
    figure = u_matrix(tmp_path / "u.png", spec=made_spec, distances=distances, hexagonal=np.array(hexagonal))
    (cells,) = figure.axes[0].collections
    assert cells.get_array().tolist() == list(range(6))
    outlines = [path.vertices[:-1] for path in cells.get_paths()]
    assert {len(outline) for outline in outlines} == {corners}
    middles = np.array([outline.mean(axis=0) for outline in outlines])
    np.testing.assert_allclose(middles, centres(2, 3, hexagonal).reshape(-1, 2), atol=1e-12)
    low, high = figure.axes[0].get_ylim()
    assert low > high, "the first row is on top"
    assert (tmp_path / "u.png").stat().st_size > 1000


def test_hexagons_touch() -> None:
    places = centres(2, 2, True)
    assert np.linalg.norm(places[0, 0] - places[1, 0]) == pytest.approx(1.0)
    assert np.linalg.norm(places[0, 1] - places[1, 0]) == pytest.approx(1.0)
