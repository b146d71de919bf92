"""Hit map of a self-organizing map: how many rows each unit wins, and of which class most of them are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neurofleet.figures._cells import centres, draw_cells
from neurofleet.spec import DataSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_COLOURS = 20  # that are told apart; with more classes their names alone tell


def hit_map(
    path: Path, *, spec: DataSpec, hits: np.ndarray, hexagonal: np.ndarray, labels: np.ndarray | None = None
) -> Figure:
    """Draw hits [rows, columns] as discs of that area, coloured by `labels`, and write a PNG.

    labels:    [rows, columns], the index of the class that most of a unit's rows have; units without rows stay empty
    hexagonal: whether the grid is (else it is rectangular)
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, columns = hits.shape
    figure = Figure(figsize=(0.48 * columns + 0.6, 0.48 * rows + 1.0), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    draw_cells(axes, np.zeros(hits.shape), bool(hexagonal), cmap="Greys", clim=(-0.2, 4))
    places = centres(rows, columns, bool(hexagonal))
    palette = colormaps["tab10" if len(spec.classes) <= 10 else "tab20"]
    short = all(len(name) <= 3 for name in spec.classes)  # fits a disc; else a legend tells
    largest = 0.48 * 72 * 0.95  # points across a cell
    for (row, column), number in np.ndenumerate(hits):
        if number:
            colour: str | tuple[float, ...] = "#6baed6"
            text, (across, down) = f"{number}", places[row, column]
            if labels is not None:
                label = int(labels[row, column])
                colour = palette(label % MOST_COLOURS)
                text = spec.classes[label] if short else text
            size = largest * max(np.sqrt(number / hits.max()), 0.12)
            axes.plot(across, down, "o", markersize=size, color=colour, alpha=0.6, markeredgewidth=0)
            axes.text(across, down, text, ha="center", va="center", fontsize=7)
    if labels is not None and not short:
        for label in np.unique(labels[hits > 0])[:MOST_COLOURS].tolist():
            axes.plot([], [], "o", color=palette(label % MOST_COLOURS), alpha=0.6, label=spec.classes[label])
        figure.legend(loc="outside right upper", fontsize=7, frameon=False)
    told = "" if labels is None else f", {'name' if short else 'colour'}: their commonest {spec.targets[0]}"
    empty = float((hits == 0).mean())
    title = f"{spec.name}: hit map\narea: test rows{told}\n{empty:.0%} of the units win none"
    axes.set_title(title, fontsize="small")
    figure.savefig(path)
    return figure
