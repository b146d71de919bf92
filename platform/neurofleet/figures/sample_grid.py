"""Sample grid: what a generator makes of the same noise, from its first step (above) to its last (below)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neurofleet.spec import DataSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NUM_SEQUENCES = 6  # in a row of the grid


def sample_grid(path: Path, *, spec: DataSpec, samples: np.ndarray, moments: np.ndarray) -> Figure:
    """Draw a row for each moment and write a PNG; returns the figure.

    samples: [moments, N, *spec.shape] in the user's units (images or sequences); column by column one noise
    moments: [moments] of training, from 0 to 1
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    samples = samples if spec.kind == "image" else samples[:, :NUM_SEQUENCES]
    num_rows, num_columns = samples.shape[:2]
    width, height = _size_of_panel(spec)
    close = ConstrainedLayoutEngine(w_pad=0.01, h_pad=0.01, wspace=0.02, hspace=0.02)
    size = width * num_columns + 0.9, height * num_rows + 0.5
    figure = Figure(figsize=size, dpi=150, layout=close)
    FigureCanvasAgg(figure)
    panels = figure.subplots(num_rows, num_columns, squeeze=False)
    limits = float(samples.min()), float(samples.max())
    for row, moment, line in zip(samples, moments, panels, strict=True):
        for sample, axes in zip(row, line, strict=True):
            draw = _image if spec.kind == "image" else _sequence
            draw(axes, sample, limits)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_color("#cccccc")
        label = f"{moment:.0%}" if moment * 100 % 1 == 0 else f"{moment:.1%}"
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
    figure.suptitle(f"{spec.name}: samples of the same noise, by the share of training done", fontsize="medium")
    figure.savefig(path)
    return figure


def _size_of_panel(spec: DataSpec) -> tuple[float, float]:
    if spec.kind != "image":
        return 1.3, 0.8
    height, width = spec.shape[1:]
    return 0.62 * width / max(height, width), 0.62 * height / max(height, width)


def _image(axes: Axes, image: np.ndarray, limits: tuple[float, float]) -> None:
    if len(image) == 3:
        low, high = limits
        axes.imshow(((np.moveaxis(image, 0, -1) - low) / max(high - low, 1e-9)).clip(0, 1))
    else:
        axes.imshow(image[0], cmap="gray", vmin=limits[0], vmax=limits[1])


def _sequence(axes: Axes, sequence: np.ndarray, limits: tuple[float, float]) -> None:
    axes.plot(sequence, linewidth=0.9)
    margin = 0.05 * (limits[1] - limits[0]) or 1.0
    axes.set_ylim(limits[0] - margin, limits[1] + margin)
