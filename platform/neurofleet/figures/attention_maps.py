"""Attention maps: where each head of a transformer's last block looks, for a few rows of the data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neurofleet.spec import RESERVED_TOKENS, DataSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_HEADS = 8
MOST_SQUARES = 3  # rows of a sequence or text that are shown
MOST_TOKENS = 40  # of a text: as many names as can be read along a map


def attention_maps(
    path: Path, *, spec: DataSpec, inputs: np.ndarray, weights: np.ndarray, grid: np.ndarray | None = None
) -> Figure:
    """Draw a row of maps for each row of the data, a head each, and write a PNG; returns the figure.

    inputs:  [N, *spec.shape], images in their own units, texts as tokens, sequences with NaN after the end
    weights: [N, heads, T, T], who looks (first T) at whom (second); each row sums to one
    grid:    [2], rows and columns of the patches of an image; the map is then the mean over all that look

    Of a text the first 40 tokens are shown.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    num_heads = min(weights.shape[1], MOST_HEADS)
    images = spec.kind == "image"
    num_rows = len(inputs) if images else min(len(inputs), MOST_SQUARES)
    columns, side = (num_heads + 1, 1.25) if images else (num_heads, 4.4 if spec.kind == "text" else 2.6)
    figure = Figure(figsize=(side * columns + 0.9, side * num_rows + 0.7), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for axes_of_row, row, heads in zip(
        figure.subplots(num_rows, columns, squeeze=False), inputs, weights[:, :num_heads], strict=False
    ):
        if images:
            assert grid is not None
            _over_image(axes_of_row, row, heads, int(grid[0]), int(grid[1]))
        else:
            _squares(axes_of_row, spec, row, heads)
    for head, axes in enumerate(figure.axes[columns - num_heads : columns]):
        axes.set_title(f"head {head}", fontsize=8)
    figure.suptitle(f"{spec.name}: where the heads of the last block look", fontsize="medium")
    figure.savefig(path)
    return figure


def _over_image(axes: np.ndarray, image: np.ndarray, heads: np.ndarray, rows: int, columns: int) -> None:
    """The image, then for each head how much each patch is looked at, as times the share that it would have by lot."""
    picture = np.moveaxis(image, 0, -1).clip(0, 255).astype(np.uint8) if len(image) == 3 else image[0]
    axes[0].imshow(picture, cmap="gray", extent=(0, 1, 0, 1))
    for one, weights in zip(axes[1:], heads, strict=True):
        looked_at = weights.mean(axis=0).reshape(rows, columns) * rows * columns
        one.imshow(looked_at, cmap="magma", vmin=0, vmax=max(2.0, float(looked_at.max())), extent=(0, 1, 0, 1))
    for one in axes:
        one.set_axis_off()
        one.set_aspect(image.shape[1] / image.shape[2])


def _squares(axes: np.ndarray, spec: DataSpec, row: np.ndarray, heads: np.ndarray) -> None:
    """Who looks at whom, from the first token or step to the end of the row."""
    from matplotlib.colors import PowerNorm
    from matplotlib.ticker import MaxNLocator

    length = int((row != 0).sum()) if spec.kind == "text" else int((~np.isnan(row).all(axis=1)).sum())
    shown = min(length, MOST_TOKENS) if spec.kind == "text" else length
    for one, weights in zip(axes, heads, strict=True):
        square = weights[:shown, :shown]
        # The first of a causal text can look nowhere else; the square root leaves the others something to be seen.
        one.imshow(square, cmap="magma", norm=PowerNorm(0.5, vmin=0, vmax=max(float(square.max()), 1e-9)))
        if spec.kind == "text":
            _name_tokens(one, spec, row[:shown])
        else:
            one.tick_params(labelsize=7)
            one.xaxis.set_major_locator(MaxNLocator(integer=True))
            one.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set_ylabel("the token that looks" if spec.kind == "text" else "the step that looks", fontsize=8)


def _name_tokens(axes: Axes, spec: DataSpec, tokens: np.ndarray) -> None:
    known = ("<padding>", "<unknown>", *spec.vocabulary)
    assert len(known) == len(spec.vocabulary) + RESERVED_TOKENS
    visible = {" ": "␣", "\n": "↵", "\t": "→"}
    names = [visible.get(known[token], known[token][:12]) for token in tokens]
    upright = spec.tokenizer == "characters"
    axes.set_xticks(range(len(names)), names, rotation=0 if upright else 90, fontsize=5)
    axes.set_yticks(range(len(names)), names, fontsize=5)
    axes.tick_params(length=0, pad=2)
