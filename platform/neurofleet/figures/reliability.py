"""Reliability curve: does a classifier that says 80 % turn out right eight times in ten? (Guo et al. 2017)"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neurofleet.spec import DataSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_BINS = 10


def reliability(path: Path, *, spec: DataSpec, confidences: np.ndarray, correct: np.ndarray) -> Figure:
    """Draw the share of right predictions against the probability that each was given, and write a PNG.

    confidences, correct: [N], the probability of the predicted class, and whether it was the true one.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    counts, means, shares = binned(confidences, correct)
    figure = Figure(figsize=(4.6, 5.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    filled = counts > 0
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle="--", label="as sure as right")
    axes.plot(means[filled], shares[filled], color="#0072B2", alpha=0.4)
    sizes = 8 + 72 * counts[filled] / counts.max()  # a bin of three rows says little
    axes.scatter(means[filled], shares[filled], s=sizes, color="#0072B2", label="this model, by rows")
    error = calibration_error(confidences, correct)
    axes.set(ylim=(-0.02, 1.02), xlim=(-0.02, 1.02), ylabel="share of right predictions")
    title = f"{spec.name}: reliability on {len(correct):,} test rows\nexpected calibration error {error:.3f}"
    axes.set_title(title, fontsize="medium")
    axes.legend(frameon=False, fontsize="small", loc="upper left")
    edges = np.linspace(0, 1, NUM_BINS + 1)
    below.bar(edges[:-1], counts, width=1 / NUM_BINS, align="edge", color="#0072B2", alpha=0.5, edgecolor="white")
    below.set(xlabel="probability of the predicted class", ylabel="rows")
    for one in (axes, below):
        one.grid(alpha=0.3)
        one.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
    return figure


def binned(confidences: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each of ten equal bins: rows, mean confidence, share of right predictions (0 where it is empty)."""
    places = np.minimum((np.asarray(confidences) * NUM_BINS).astype(int), NUM_BINS - 1)
    counts = np.bincount(places, minlength=NUM_BINS)
    sums = (np.bincount(places, weights=np.asarray(one, float), minlength=NUM_BINS) for one in (confidences, correct))
    means, shares = (total / np.maximum(counts, 1) for total in sums)
    return counts, means, shares


def calibration_error(confidences: np.ndarray, correct: np.ndarray) -> float:
    """Mean distance between confidence and accuracy of the bins, weighted by their rows."""
    counts, means, shares = binned(confidences, correct)
    return float((counts * np.abs(means - shares)).sum() / max(counts.sum(), 1))
