"""Capsule dimensions: what an image looks like, rebuilt from its capsule while one dimension at a time is moved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neurofleet.spec import DataSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GAP = 1  # pixels between images


def capsule_dimensions(
    path: Path, *, spec: DataSpec, images: np.ndarray, reconstructions: np.ndarray, moves: np.ndarray
) -> Figure:
    """Draw one block for each of K images, a line for each of D dimensions in it, and write a PNG.

    images:          [K, C, Y, X], what was seen, in pixels from 0 to 255
    reconstructions: [K, D, S, C, Y, X]
    moves:           [S], what is added to the dimension
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    num_images, num_dimensions, num_steps = reconstructions.shape[:3]
    height = 0.34 * num_dimensions * spec.shape[1] / spec.shape[2] + 1.8
    figure = Figure(figsize=(num_images * (0.34 * num_steps + 0.5) + 0.3, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{spec.name}: rebuilt from the winning capsule,\none dimension moved at a time", fontsize="medium")
    panels = figure.subplots(2, num_images, squeeze=False, height_ratios=[1, num_dimensions])
    low, high = float(images.min()), float(images.max())
    for place in range(num_images):
        _show(panels[0, place], picture(images[place]), low, high)
        panels[0, place].set_title("seen", fontsize="small")
        tiled = tile(reconstructions[place])
        _show(panels[1, place], tiled, low, high)
        _label(panels[1, place], moves, num_dimensions, tiled.shape)
    panels[1, 0].set_ylabel("dimension")
    figure.savefig(path)
    return figure


def picture(image: np.ndarray) -> np.ndarray:
    """[C, Y, X] as it is drawn: colours last, or the first of other channels alone."""
    return np.moveaxis(image, 0, -1) if len(image) == 3 else image[0]


def tile(images: np.ndarray) -> np.ndarray:
    """[D, S, C, Y, X] side by side, D lines of S images with a gap (NaN) between them."""
    padded = np.pad(images.astype(float), [(0, 0)] * 3 + [(0, GAP)] * 2, constant_values=np.nan)
    lines = np.concatenate(list(np.moveaxis(padded, 1, 0)), axis=-1)
    return picture(np.concatenate(list(lines), axis=-2)[..., :-GAP, :-GAP])


def _show(axes: Axes, image: np.ndarray, low: float, high: float) -> None:
    if image.ndim == 3:
        image = np.nan_to_num((image - low) / max(high - low, 1e-12), nan=1.0).clip(0, 1)
    axes.imshow(image, cmap="gray", vmin=low, vmax=high)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _label(axes: Axes, moves: np.ndarray, num_dimensions: int, shape: tuple[int, ...]) -> None:
    shown = sorted({0, len(moves) // 2, len(moves) - 1})
    columns, lines = centres(shape[1], len(moves)), centres(shape[0], num_dimensions)
    axes.set_xticks([columns[index] for index in shown], [f"{moves[index]:+.2g}" for index in shown])
    axes.set_yticks(lines, [str(index + 1) for index in range(num_dimensions)])
    axes.tick_params(length=0, labelsize=7)


def centres(length: int, number: int) -> list[float]:
    """Where the middles of so many images are on an axis of `length` pixels with the gaps between them."""
    side = (length + GAP) / number - GAP
    return [index * (side + GAP) + (side - 1) / 2 for index in range(number)]
