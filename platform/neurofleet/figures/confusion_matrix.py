"""Confusion matrix: how many rows of each true class got each predicted class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

LARGEST_WITH_COUNTS = 30
"""with more classes than this a count no longer fits its cell; the shade alone tells"""


def confusion_matrix(
    targets: Sequence[int],
    predictions: Sequence[int],
    classes: Sequence[str],
    path: Path,
    *,
    title: str = "Confusion matrix",
) -> Figure:
    """Draw counts, shaded by the share of their row (of the true class), and write a PNG; returns the figure.

    targets, predictions: class indices, one a row of the data.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    counts = count(targets, predictions, len(classes))
    size = side(len(classes))
    figure = Figure(figsize=(size + 0.9, size), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    image = draw_counts(axes, counts, classes, title=title, size=size)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.85, format="{x:.0%}")
    figure.savefig(path)
    return figure


def side(num_classes: int) -> float:
    """Inches that a matrix needs with its names."""
    return min(max(3.4, 0.52 * num_classes + 1.6), 16.0)


def draw_counts(axes: Axes, counts: np.ndarray, classes: Sequence[str], *, title: str, size: float) -> AxesImage:
    """Draw counts [true class, predicted class] in `size` inches; returns what a colour bar needs."""
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    accuracy = np.trace(counts) / max(counts.sum(), 1)
    axes.set_title(f"{title}\naccuracy {accuracy:.2%} of {counts.sum():,} rows", fontsize="medium")
    _label(axes, classes, room=int((size - 1.3) / len(classes) / 0.085))
    if len(classes) <= LARGEST_WITH_COUNTS:
        _write_counts(axes, counts, shares)
    return image


def count(targets: Sequence[int], predictions: Sequence[int], num_classes: int) -> np.ndarray:
    """[true class, predicted class] -> rows."""
    counts = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(counts, (np.asarray(targets, dtype=np.int64), np.asarray(predictions, dtype=np.int64)), 1)
    return counts


def _label(axes: Axes, classes: Sequence[str], *, room: int) -> None:
    """`room`: characters that fit beside one another in the width of one class."""
    names = [name if len(name) <= 20 else name[:19] + "…" for name in classes]
    places = range(len(names))
    slanted = max(map(len, names)) > room
    axes.set_xticks(
        places,
        names,
        rotation=40 if slanted else 0,
        ha="right" if slanted else "center",
        rotation_mode="anchor" if slanted else "default",
    )
    axes.set_yticks(places, names)
    axes.set(xlabel="predicted", ylabel="true")
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(len(names) - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(len(names) - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0)


def _write_counts(axes: Axes, counts: np.ndarray, shares: np.ndarray) -> None:
    size = 11 if len(counts) <= 4 else 9 if len(counts) <= 15 else 6
    for (row, column), number in np.ndenumerate(counts):
        colour = "white" if shares[row, column] > 0.55 else "#333333" if number else "#bbbbbb"
        axes.text(column, row, f"{number:,}", ha="center", va="center", color=colour, fontsize=size)
