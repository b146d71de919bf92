"""Component planes of a self-organizing map: the value that each unit stands for, one plane an input."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neurofleet.figures._cells import centres, draw_cells
from neurofleet.spec import DataSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_PLANES = 20


def component_planes(path: Path, *, spec: DataSpec, planes: np.ndarray, hexagonal: np.ndarray) -> Figure:
    """Draw planes [inputs, rows, columns] in the user's units and write a PNG.

    An image's inputs are pixels, which say little one by one: there every unit is drawn as the image that it stands
    for.  Of many inputs those are shown that differ most between units, measured in their own standard deviation.
    hexagonal: whether the grid is (else it is rectangular)
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if spec.kind == "image":
        return _images(path, spec, planes, bool(hexagonal))
    chosen = most_varied(spec, planes)
    columns = min(len(chosen), 5)
    lines = math.ceil(len(chosen) / columns)
    figure = Figure(figsize=(2.5 * columns + 0.2, 2.3 * lines + 0.4), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    for axes in figure.subplots(lines, columns, squeeze=False).flat:
        axes.set_axis_off()
    for axes, index in zip(figure.axes, chosen, strict=False):
        cells = draw_cells(axes, planes[index], bool(hexagonal), cmap="viridis")
        figure.colorbar(cells, ax=axes, shrink=0.8).ax.tick_params(labelsize=6)
        axes.set_title(name_of(spec, index), fontsize=8)
    title = f"{spec.name}: component planes"
    if len(chosen) < len(planes):
        which = f"the {len(chosen)} of {len(planes)} inputs that differ most between units"
        title += f"\n{which}, each measured in its own standard deviation"
    figure.suptitle(title, fontsize="medium")
    figure.savefig(path)
    return figure


def most_varied(spec: DataSpec, planes: np.ndarray) -> np.ndarray:
    """Indices of the inputs to show, in their own order."""
    per_row = len(planes) // len(spec.input_std)
    std = np.tile(spec.input_std, per_row) if spec.kind == "sequence" else np.asarray(spec.input_std)
    spread = planes.reshape(len(planes), -1).std(axis=1) / std
    return np.sort(np.argsort(-spread, kind="stable")[:MOST_PLANES])


def name_of(spec: DataSpec, index: int) -> str:
    if spec.kind == "sequence":
        step, channel = divmod(index, spec.shape[1])
        return f"step {step}, channel {channel}"
    name = spec.inputs[index]
    return name if len(name) <= 24 else name[:23] + "…"


def _images(path: Path, spec: DataSpec, planes: np.ndarray, hexagonal: bool) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, columns = planes.shape[1:]
    images = np.moveaxis(
        planes.reshape(*spec.shape, rows, columns), (0, 1, 2), (-1, -3, -2)
    )  # [rows, columns, Y, X, C]
    pictures = np.clip(images / 255, 0, 1) if spec.shape[0] == 3 else images.mean(axis=-1)
    figure = Figure(figsize=(0.6 * columns + 0.6, 0.6 * rows + 0.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    places, half = centres(rows, columns, hexagonal), 0.46 if not hexagonal else 0.4
    for row, column in np.ndindex(rows, columns):
        across, down = places[row, column]
        extent = (across - half, across + half, down + half, down - half)
        shade = {} if spec.shape[0] == 3 else {"cmap": "gray", "vmin": pictures.min(), "vmax": pictures.max()}
        axes.imshow(pictures[row, column], extent=extent, interpolation="nearest", **shade)
    axes.set(xlim=(-0.6, places[..., 0].max() + 0.6), ylim=(places[..., 1].max() + 0.6, -0.6), aspect="equal")
    axes.set_axis_off()
    axes.set_title(f"{spec.name}: what each unit of the map stands for", fontsize="medium")
    figure.savefig(path)
    return figure
