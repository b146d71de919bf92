"""The units of a self-organizing map as squares or hexagons, which its pictures colour."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PolyCollection


def centres(rows: int, columns: int, hexagonal: bool) -> np.ndarray:
    """[rows, columns, 2]: (across, down) of every unit; every other row of hexagons is shifted by half of one."""
    down, across = np.mgrid[:rows, :columns].astype(float)
    if hexagonal:
        across += 0.5 * (down % 2)
        down *= math.sqrt(0.75)
    return np.stack([across, down], axis=-1)


def draw_cells(axes: Axes, values: np.ndarray, hexagonal: bool, **style: Any) -> PolyCollection:
    """Colour the cells by `values` [rows, columns], the first row on top; returns what a colour bar needs."""
    from matplotlib.collections import PolyCollection

    corners, turn, radius = (6, math.pi / 6, math.sqrt(1 / 3)) if hexagonal else (4, math.pi / 4, math.sqrt(1 / 2))
    angles = turn + np.arange(corners) * 2 * math.pi / corners
    outline = radius * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    rows, columns = values.shape
    places = centres(rows, columns, hexagonal).reshape(-1, 1, 2)
    cells = PolyCollection(list(places + outline), array=values.ravel(), edgecolors="face", linewidths=0.3, **style)
    axes.add_collection(cells)
    axes.set_aspect("equal")
    axes.autoscale_view()
    axes.invert_yaxis()
    axes.set_axis_off()
    return cells
