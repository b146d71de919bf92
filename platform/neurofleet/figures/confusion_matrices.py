"""Confusion matrices side by side: which mistakes one network makes that another does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from neurofleet.figures.confusion_matrix import count, draw_counts, side

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDEST = 22.0  # inches of all panels


def confusion_matrices(
    targets: Sequence[int],
    predictions: Mapping[str, Sequence[int]],
    classes: Sequence[str],
    path: Path,
    *,
    title: str = "Confusion matrices",
) -> Figure:
    """Draw a matrix for each network on the same rows, shaded alike, and write a PNG; returns the figure.

    targets, predictions: class indices, one a row of the data; predictions by the network's name
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not predictions:
        raise ValueError("confusion matrices need the predictions of at least one network")
    size = min(side(len(classes)), WIDEST / len(predictions))
    figure = Figure(figsize=(size * len(predictions) + 0.9, size + 0.7), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(predictions), squeeze=False)[0]
    for axes, (name, predicted) in zip(panels, predictions.items(), strict=True):
        counts = count(targets, predicted, len(classes))
        image = draw_counts(axes, counts, classes, title=name, size=size)
        if axes is not panels[0]:
            axes.set(ylabel="", yticklabels=[])
    figure.colorbar(image, ax=panels, label="share of the true class", shrink=0.85, format="{x:.0%}")
    figure.suptitle(title, fontsize="large")
    figure.savefig(path)
    return figure
