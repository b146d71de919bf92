"""U-matrix of a self-organizing map (Ultsch and Siemon 1990): how far each unit is from its neighbours."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neurofleet.figures._cells import draw_cells
from neurofleet.spec import DataSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def u_matrix(path: Path, *, spec: DataSpec, distances: np.ndarray, hexagonal: np.ndarray) -> Figure:
    """Draw mean distances to the direct neighbours [rows, columns] and write a PNG: dark ridges part the clusters.

    hexagonal: whether the grid is (else it is rectangular)
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4, 4.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    cells = draw_cells(axes, distances, bool(hexagonal), cmap="bone_r")
    figure.colorbar(cells, ax=axes, label="mean distance to the neighbours (standardised)", shrink=0.85)
    axes.set_title(f"{spec.name}: U-matrix", fontsize="medium")
    figure.savefig(path)
    return figure
