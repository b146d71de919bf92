from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neurofleet.figures.capsule_dimensions import capsule_dimensions, tile


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_a_line_for_every_dimension(channels: int, tmp_path: Path, made_spec: Any) -> None:
    spec = dataclasses.replace(made_spec, kind="image", shape=(channels, 6, 4))
    images = np.linspace(0, 255, 2 * channels * 24).reshape(2, channels, 6, 4)
    rebuilt = np.broadcast_to(images[:, None, None], (2, 5, 3, channels, 6, 4)) * 1.1
    moves = np.array([-0.25, 0.0, 0.25])
    figure = capsule_dimensions(tmp_path / "c.png", spec=spec, images=images, reconstructions=rebuilt, moves=moves)
    assert (tmp_path / "c.png").stat().st_size > 5000
    assert len(figure.axes) == 4
    lower = figure.axes[2]
    assert [text.get_text() for text in lower.get_xticklabels()] == ["-0.25", "+0", "+0.25"]
    assert [text.get_text() for text in lower.get_yticklabels()] == ["1", "2", "3", "4", "5"]
    np.testing.assert_allclose(lower.get_yticks(), [2.5 + 7 * line for line in range(5)])


def test_tiles_stand_where_they_belong() -> None:
    images = np.arange(2 * 3 * 4 * 5, dtype=float).reshape(2, 3, 1, 4, 5)
    tiled = tile(images)
    assert tiled.shape == (2 * 5 - 1, 3 * 6 - 1)
    np.testing.assert_array_equal(tiled[5:9, 12:17], images[1, 2, 0])
    assert np.isnan(tiled[4]).all()
    assert np.isnan(tiled[:, 5]).all()
