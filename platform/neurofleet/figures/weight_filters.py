"""Weight filters: what the first layer's units look for, as images."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neurofleet.spec import DataSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_FILTERS = 100


def weight_filters(path: Path, *, spec: DataSpec, filters: np.ndarray) -> Figure:
    """Draw filters [units, channels, height, width] in a grid, the largest (by norm) first, and write a PNG.

    One channel is shown by colour, white for 0 and each filter by its own largest weight; three as a colour image.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    order = np.argsort(-np.square(filters).reshape(len(filters), -1).sum(axis=1), kind="stable")[:NUM_FILTERS]
    columns = min(len(order), 8 if len(order) <= 32 else 10)
    lines = math.ceil(len(order) / columns)
    figure = Figure(figsize=(0.62 * columns + 0.3, 0.62 * lines + 0.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    for axes in figure.subplots(lines, columns, squeeze=False).flat:
        axes.set_axis_off()
    for axes, weights in zip(figure.axes, filters[order], strict=False):
        bound = float(np.abs(weights).max()) or 1.0
        if len(weights) == 3:
            axes.imshow(np.moveaxis(weights, 0, -1) / (2 * bound) + 0.5)
        else:
            axes.imshow(weights.mean(axis=0), cmap="RdBu_r", vmin=-bound, vmax=bound)
    figure.suptitle(f"{spec.name}: {len(order)} of {len(filters)} filters of the first layer", fontsize="medium")
    figure.savefig(path)
    return figure
