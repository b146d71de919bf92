"""Forecasts: what was seen, what came, and what the network said would come, for a few rows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neurofleet.spec import DataSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LARGEST_HISTORY = 3.0  # as long as this many horizons, so that the forecast can be seen


def forecast(
    path: Path, *, spec: DataSpec, history: np.ndarray, targets: np.ndarray, predictions: np.ndarray
) -> Figure:
    """Draw a panel a row, and write a PNG.

    history:              [rows, steps] in the targets' units, NaN after a shorter one's end; no steps where the inputs
                          are something else than the targets' past
    targets, predictions: [rows, horizon]
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    num_rows, horizon = targets.shape
    num_columns = min(num_rows, 3)
    num_lines = math.ceil(num_rows / num_columns)
    figure = Figure(figsize=(3.6 * num_columns + 0.4, 2.4 * num_lines + 0.9), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    error = np.abs(np.asarray(targets, float) - predictions).mean()
    figure.suptitle(f"{spec.name}: forecasts of {horizon} steps\nmean absolute error of these rows {error:.3g}")
    panels = list(figure.subplots(num_lines, num_columns, squeeze=False, sharex=True, sharey=True).flat)
    ahead = np.arange(1, horizon + 1)
    for axes, past, target, prediction in zip(panels, history, targets, predictions, strict=False):
        past = np.asarray(past)[~np.isnan(past)][-int(LARGEST_HISTORY * horizon) :]
        axes.plot(np.arange(1 - len(past), 1), past, color="#999999", linewidth=1.2, label="seen")
        axes.plot(ahead, target, color="#0072B2", linewidth=1.5, label="true")
        axes.plot(ahead, prediction, color="#D55E00", linewidth=1.5, linestyle="--", label="predicted")
        axes.axvline(0.5, color="#cccccc", linewidth=0.8)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[num_rows:]:
        axes.set_visible(False)
    panels[0].legend(frameon=False, fontsize="small")
    figure.supxlabel("steps from the last that was seen", fontsize="small")
    figure.supylabel(" / ".join(spec.inputs[:1]), fontsize="small")
    figure.savefig(path)
    return figure
