"""Reconstructions: inputs over what a network makes of them; for a table, how much of each column it can say again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neurofleet.spec import DataSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_IMAGES = 16
NUM_SEQUENCES = 4
NUM_COLUMNS = 30  # of a table: the ones said worst


def reconstructions(
    path: Path, *, spec: DataSpec, inputs: np.ndarray, outputs: np.ndarray, seen: np.ndarray | None = None
) -> Figure:
    """Draw rows of inputs beside their outputs and write a PNG.

    inputs, outputs: [N, *spec.shape] in the user's units
    seen:            what the network was given in place of the inputs, if they were disturbed
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    lines = {"input": inputs} | ({} if seen is None else {"disturbed": seen}) | {"output": outputs}
    if spec.kind == "image":
        _images(figure, lines)
    elif spec.kind == "sequence":
        _sequences(figure, lines, spec)
    else:
        _columns(figure, inputs, outputs, spec)
    figure.suptitle(f"{spec.name}: reconstructions of test rows", fontsize="medium")
    figure.savefig(path)
    return figure


def _images(figure: Figure, lines: dict[str, np.ndarray]) -> None:
    count = min(len(next(iter(lines.values()))), NUM_IMAGES)
    figure.set_size_inches(0.62 * count + 0.8, 0.75 * len(lines) + 0.5)
    grid = figure.subplots(len(lines), count, squeeze=False)
    for row, (name, images) in zip(grid, lines.items(), strict=True):
        for axes, image in zip(row, images, strict=False):
            picture = (np.moveaxis(image, 0, -1) / 255).clip(0, 1) if len(image) == 3 else image[0]
            axes.imshow(picture, cmap="gray", vmin=0, vmax=255)
            axes.set(xticks=[], yticks=[])
        row[0].set_ylabel(name, fontsize=8)


def _sequences(figure: Figure, lines: dict[str, np.ndarray], spec: DataSpec) -> None:
    """The first channel of a few rows."""
    count = min(len(next(iter(lines.values()))), NUM_SEQUENCES)
    figure.set_size_inches(2.6 * count + 0.6, 2.8)
    styles = {"input": ("#333333", "-"), "disturbed": ("#bbbbbb", "-"), "output": ("#D55E00", "--")}
    grid = figure.subplots(1, count, squeeze=False, sharey=True)[0]
    for index, axes in enumerate(grid):
        known = ~np.isnan(lines["input"][index, :, 0])
        for name, sequences in lines.items():
            colour, style = styles[name]
            axes.plot(np.where(known, sequences[index, :, 0], np.nan), style, color=colour, label=name, linewidth=1.3)
        axes.set_xlabel("step")
        axes.spines[["top", "right"]].set_visible(False)
    grid[0].set_ylabel("first of the channels" if spec.shape[-1] > 1 else "value")
    grid[0].legend(frameon=False, fontsize="x-small")


def _columns(figure: Figure, inputs: np.ndarray, outputs: np.ndarray, spec: DataSpec) -> None:
    shares = explained(inputs, outputs)
    order = np.argsort(shares)[:NUM_COLUMNS][::-1]
    figure.set_size_inches(6.0, 0.2 * len(order) + 1.3)
    axes = figure.subplots()
    axes.barh(range(len(order)), shares[order].clip(0, 1), color="#0072B2")
    axes.set_yticks(range(len(order)), [spec.inputs[index][:32] for index in order], fontsize=7)
    axes.set(xlim=(0, 1), xlabel="share of the column's variance that is said again")
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.spines[["top", "right"]].set_visible(False)


def explained(inputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """[columns] the share of each column's variance that the outputs explain; 1 for a column that never changes."""
    variance = inputs.var(axis=0)
    error = ((inputs - outputs) ** 2).mean(axis=0)
    return 1 - np.divide(error, variance, out=np.zeros_like(error), where=variance > 0)
