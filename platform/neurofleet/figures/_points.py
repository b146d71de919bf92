"""Rows of test data as points of a plane, coloured by what they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from neurofleet.spec import DataSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PathCollection

# Okabe and Ito's palette, told apart by everybody, darkest last; further classes have another shape.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
SHAPES = ("o", "^", "s")
LARGEST_WITH_NAMES = 20
"""more classes than this are no longer told apart, nor would their names find room"""


def principal_plane(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes [N, K] along their first two principal components, [N, 2], and the shares of variance of both."""
    centred = (codes - codes.mean(axis=0)).astype(np.float64)
    wide = centred.shape[1] > len(centred)
    # Of products of the shorter side: several times faster than the singular values of a thousand wide rows.
    values, vectors = np.linalg.eigh(centred @ centred.T if wide else centred.T @ centred)
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1][:, :2]
    points = np.zeros((len(codes), 2))
    points[:, : vectors.shape[1]] = vectors * np.sqrt(values[:2]) if wide else centred @ vectors
    first, second = (*(values / max(values.sum(), 1e-30)), 0.0)[:2]
    return points, np.array([first, second])


def meaning_of(spec: DataSpec, targets: np.ndarray) -> tuple[np.ndarray, str | None]:
    """[N] what a row is coloured by, and its meaning if that is a number, else a class index."""
    if spec.task == "regression":
        return targets[:, 0] * spec.target_std[0] + spec.target_mean[0], spec.targets[0]
    if spec.task == "multilabel":
        return targets.sum(axis=1), "labels of a row"
    return targets.reshape(len(targets)).astype(int), None


def draw_points(axes: Axes, points: np.ndarray, spec: DataSpec, targets: np.ndarray) -> tuple[PathCollection, str]:
    """Scatter points [N, 2] by their targets (as a network has them).

    Returns what a colour bar needs, and its label; the label is empty where the classes have names, for a legend.
    """
    labels, meaning = meaning_of(spec, targets)
    style: dict[str, Any] = {"s": float(np.clip(9000 / len(points), 6, 30)), "alpha": 0.75, "edgecolors": "none"}
    axes.spines[["top", "right"]].set_visible(False)
    if meaning is not None or len(spec.classes) > LARGEST_WITH_NAMES:
        drawn = axes.scatter(points[:, 0], points[:, 1], c=labels, cmap="viridis" if meaning else "hsv", **style)
        return drawn, meaning or f"one of {len(spec.classes)} {spec.targets[0]}s"
    for index, name in enumerate(spec.classes):
        turn, place = divmod(index, len(COLOURS))
        across, up = points[labels == index].T
        drawn = axes.scatter(across, up, color=COLOURS[place], marker=SHAPES[turn], label=name[:20], **style)
    return drawn, ""
