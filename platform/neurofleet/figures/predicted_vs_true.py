"""Predicted against true values of a regression, with the line on which both are equal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def predicted_vs_true(
    targets: np.ndarray,
    predictions: np.ndarray,
    path: Path,
    *,
    name: str = "value",
    title: str = "Predicted against true",
) -> Figure:
    """Scatter one regression target [N] against its predictions [N], in original units, and write a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    targets, predictions = np.asarray(targets, dtype=float).ravel(), np.asarray(predictions, dtype=float).ravel()
    if targets.shape != predictions.shape or not len(targets):
        raise ValueError(
            f"the same number of targets and predictions is needed, at least one; got {len(targets)} and "
            f"{len(predictions)}"
        )
    figure = Figure(figsize=(4.6, 4.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    low, high = min(targets.min(), predictions.min()), max(targets.max(), predictions.max())
    margin = 0.04 * (high - low) or 1.0
    limits = (low - margin, high + margin)
    axes.plot(limits, limits, color="#999999", linewidth=1, linestyle="--", label="predicted = true")
    axes.scatter(
        targets,
        predictions,
        s=18,
        color="#0072B2",
        alpha=float(np.clip(200 / len(targets), 0.15, 0.7)),
        edgecolors="none",
        label=f"{len(targets):,} rows",
    )
    axes.set(xlim=limits, ylim=limits, xlabel=f"true {name}", ylabel=f"predicted {name}", aspect="equal")
    axes.set_title(
        f"{title}\nr² = {r2(targets, predictions):.3f}, mean absolute error = "
        f"{np.abs(targets - predictions).mean():.4g}",
        fontsize="medium",
    )
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small", loc="upper left")
    figure.savefig(path)
    return figure


def r2(targets: np.ndarray, predictions: np.ndarray) -> float:
    """The share of the targets' variance that the predictions explain; NaN where the targets have none."""
    variance = float(((targets - targets.mean()) ** 2).sum())
    return 1 - float(((targets - predictions) ** 2).sum()) / variance if variance > 0 else float("nan")
