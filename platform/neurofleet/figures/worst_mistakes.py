"""Worst mistakes: the wrong predictions that a classifier was surest of; often the label is what is wrong."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neurofleet.spec import RESERVED_TOKENS, DataSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def worst_mistakes(
    path: Path,
    *,
    spec: DataSpec,
    examined: np.ndarray,
    inputs: np.ndarray,
    rows: np.ndarray,
    targets: np.ndarray,
    predictions: np.ndarray,
    probabilities: np.ndarray,
) -> Figure:
    """Draw mistakes, the surest first, as images, as curves or as lines of a table, and write a PNG.

    examined:                   [1], among how many test rows
    inputs:                     [K, *spec.shape], in the units that `spec.kind` has in a network
    rows, targets, predictions: [K], the place among the test rows, true and predicted class
    probabilities:              [K], of the predicted class
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    says = [
        f"{spec.classes[predicted]} ({probability:.0%})\nis {spec.classes[true]}"
        for predicted, true, probability in zip(predictions, targets, probabilities, strict=True)
    ]
    if spec.kind in ("image", "sequence") and len(rows):
        columns = min(len(rows), 8)
        lines = math.ceil(len(rows) / columns)
        figure = Figure(figsize=(1.25 * columns + 0.4, 1.55 * lines + 0.5), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        for axes in figure.subplots(lines, columns, squeeze=False).flat:
            axes.set_axis_off()
        for axes, image, text in zip(figure.axes, inputs, says, strict=False):
            if spec.kind == "sequence":
                axes.plot(image, linewidth=0.8)
            else:
                picture = image[0] if len(image) != 3 else np.moveaxis(image, 0, -1)
                axes.imshow(picture, cmap="gray", vmin=picture.min(), vmax=picture.max())
            axes.set_title(text, fontsize=7)
    else:
        figure = Figure(figsize=(7.0, 0.32 * len(rows) + 1.0), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        axes.set_axis_off()
        for place, (row, text, values) in enumerate(zip(rows, says, inputs, strict=True)):
            shown = f"row {row}: {text}".replace("\n", ", ") + _excerpt(spec, values)
            axes.text(0, 1 - (place + 0.5) / len(rows), shown, fontsize=7, va="center", family="monospace")
    found = "the surest mistakes" if len(rows) else "no mistakes"
    figure.suptitle(f"{spec.name}: {found} in {examined[0]:,} test rows", fontsize="medium")
    figure.savefig(path)
    return figure


def _excerpt(spec: DataSpec, values: np.ndarray) -> str:
    """The beginning of a text."""
    if spec.kind != "text":
        return ""
    words = [spec.vocabulary[token - RESERVED_TOKENS] if token >= RESERVED_TOKENS else "?" for token in values if token]
    return ": " + spec.joined(words)[:60]
