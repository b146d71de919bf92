"""Label efficiency: how good a network gets with how many labels, from a start that knows something and without one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart by everybody
FINE_TUNED, FROM_SCRATCH = "#0072B2", "#D55E00"


def label_efficiency(
    path: Path,
    *,
    num_labels: np.ndarray,
    fine_tuned: np.ndarray,
    from_scratch: np.ndarray,
    metric: str,
    title: str = "Label efficiency",
) -> Figure:
    """Draw scores (the higher the better) over the number of labels, every seed a point, their mean a line and their
    range a band, and write a PNG.

    num_labels:               [K], of the training rows
    fine_tuned, from_scratch: [K, seeds], NaN where a run is lacking
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    order = np.argsort(num_labels)
    labels = np.asarray(num_labels, dtype=np.float64)[order]
    scores = {"fine-tuned": (fine_tuned, FINE_TUNED, "o"), "from scratch": (from_scratch, FROM_SCRATCH, "s")}
    means = {
        name: np.ma.masked_invalid(values).mean(axis=1).filled(np.nan)[order] for name, (values, *_) in scores.items()
    }
    figure = Figure(figsize=(6.0, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, (values, colour, marker) in scores.items():
        runs = np.ma.masked_invalid(values)[order]
        axes.fill_between(labels, runs.min(axis=1), runs.max(axis=1), color=colour, alpha=0.15, linewidth=0)
        axes.plot(labels, means[name], color=colour, linewidth=1.8, label=name)
        across = np.broadcast_to(labels[:, None], runs.shape)
        axes.plot(across.ravel(), runs.ravel(), marker, color=colour, markersize=4.5, alpha=0.7, markeredgewidth=0)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(labels), nbins=8))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set(xlabel="labels to train on", ylabel=f"test {metric}")
    seeds = np.asarray(fine_tuned).shape[1]
    over = f"; lines are means of {seeds} seeds" if seeds > 1 else ""
    axes.set_title(f"{title}{over}\n{worth(labels, *means.values())}", fontsize="medium")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small", loc="lower right")
    figure.savefig(path)
    return figure


def worth(num_labels: np.ndarray, fine_tuned: np.ndarray, from_scratch: np.ndarray) -> str:
    """How many labels from scratch do what the fewest do fine-tuned: mean scores [K] over labels [K], rising; between
    the points along the logarithm of the labels."""
    known = np.isfinite(fine_tuned) & np.isfinite(from_scratch)
    num_labels, fine_tuned, from_scratch = num_labels[known], fine_tuned[known], from_scratch[known]
    if not len(num_labels):
        return "no number of labels has runs of both"
    fewest, reached = num_labels[0], fine_tuned[0]
    above = np.flatnonzero(from_scratch >= reached)
    told = f"{fewest:,.0f} labels fine-tuned do what"
    if not len(above):
        return f"{told} {num_labels[-1]:,.0f} from scratch do not"
    place = int(above[0])
    if place == 0:
        more = "as much as" if from_scratch[0] == reached else "more than"
        return f"{fewest:,.0f} labels from scratch do {more} fine-tuned"
    low, high = from_scratch[place - 1 : place + 1]
    share = (reached - low) / (high - low)
    needed = np.exp(np.interp(share, [0, 1], np.log(num_labels[place - 1 : place + 1])))
    return f"{told} about {needed:,.0f} from scratch do"
