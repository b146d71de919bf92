"""Marginals: how each column of a table is distributed, and how that of the rows that a generator makes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neurofleet.spec import DataSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_COLUMNS = 16  # those that were met worst
NUM_BINS = 24


def marginals(path: Path, *, spec: DataSpec, real: np.ndarray, generated: np.ndarray) -> Figure:
    """Draw histograms of real rows [N, columns] over those of generated ones [M, columns], both in the user's units,
    the columns that differ most first, and write a PNG; returns the figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    gaps = np.array([gap(*columns) for columns in zip(real.T, generated.T, strict=True)])
    chosen = np.argsort(-gaps, kind="stable")[:NUM_COLUMNS]
    num_across = min(len(chosen), 4)
    num_down = math.ceil(len(chosen) / num_across)
    figure = Figure(figsize=(2.5 * num_across + 0.3, 1.9 * num_down + 0.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(num_down, num_across, squeeze=False).flat)
    for column, axes in zip(chosen, panels, strict=False):
        low, high = np.quantile(real[:, column], [0, 1])
        margin = 0.1 * (high - low) or 1.0
        edges = np.linspace(low - margin, high + margin, NUM_BINS + 1)
        for name, rows, colour in (("real", real, "#0072B2"), ("generated", generated, "#D55E00")):
            shares = np.histogram(rows[:, column], edges)[0] / len(rows)  # what lies beyond the edges is left out
            axes.stairs(
                shares, edges, fill=name == "real", color=colour, alpha=0.45 if name == "real" else 1.0, label=name
            )
        axes.set_title(f"{spec.inputs[column][:26]}: {gaps[column]:.2f}", fontsize=8)
        axes.set_yticks([])
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right", "left"]].set_visible(False)
    for axes in panels[len(chosen) :]:
        axes.set_visible(False)
    panels[0].legend(frameon=False, fontsize=7)
    figure.suptitle(f"{spec.name}: columns, with the largest gap between their distributions", fontsize="medium")
    figure.savefig(path)
    return figure


def gap(first: np.ndarray, second: np.ndarray) -> float:
    """The largest difference between two empirical distribution functions (Kolmogorov and Smirnov), 0 to 1."""
    places = np.concatenate([first, second])
    heights = [np.searchsorted(np.sort(values), places, side="right") / len(values) for values in (first, second)]
    return float(np.abs(heights[0] - heights[1]).max())
