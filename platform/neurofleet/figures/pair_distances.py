"""Pair distances: how far apart two embeddings lie that are of one class, and two that are not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neurofleet.spec import DataSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 60
KINDS = {"same": ("of one class", "#0072B2"), "different": ("of two classes", "#D55E00")}  # Okabe and Ito's palette


def pair_distances(
    path: Path, *, spec: DataSpec, same: np.ndarray, different: np.ndarray, threshold: np.ndarray
) -> Figure:
    """Draw both histograms, each of area one, and write a PNG.

    same, different: [P], distances of pairs
    threshold:       a number, the distance at which as many of the one kind are mistaken as of the other
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    largest = max(float(same.max()), float(different.max()))
    bins = np.linspace(0, largest if largest > 0 else 1.0, BINS + 1)
    for (label, colour), values in zip(KINDS.values(), (same, different), strict=True):
        axes.hist(values, bins=bins.tolist(), density=True, alpha=0.6, color=colour, label=label)
    border = float(threshold)
    wrong = (float((same > border).mean()) + float((different <= border).mean())) / 2
    axes.axvline(border, color="#333333", linewidth=1, linestyle="--", label=f"{wrong:.1%} of each are mistaken")
    axes.set(xlabel="distance of two embeddings", ylabel="density", xlim=(0, bins[-1]))
    axes.set_title(f"{spec.name}: pairs of test rows", fontsize="medium")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(path)
    return figure
