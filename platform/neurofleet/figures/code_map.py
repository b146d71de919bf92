"""Code map: where the rows lie in a network's code, coloured by what they are; a wide code by its principal axes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neurofleet.spec import DataSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LARGEST_WITH_NAMES = 20
"""more classes than this are no longer told apart by colours, nor would their names find room"""


def code_map(path: Path, *, spec: DataSpec, codes: np.ndarray, targets: np.ndarray) -> Figure:
    """Scatter the codes [N, K] of test rows with their targets (as a network has them) and write a PNG."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.2, 5.0), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    points, names = plane(codes)
    labels, meaning = _labels(spec, targets)
    style: dict[str, Any] = {"s": float(np.clip(9000 / len(points), 6, 30)), "alpha": 0.75, "edgecolors": "none"}
    if meaning is None and len(spec.classes) <= LARGEST_WITH_NAMES:
        colours = colormaps["tab10" if len(spec.classes) <= 10 else "tab20"]
        for index, name in enumerate(spec.classes):
            across, up = points[labels == index].T
            axes.scatter(across, up, color=colours(index), label=name[:20], **style)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize="small", markerscale=1.5)
    else:
        drawn = axes.scatter(points[:, 0], points[:, 1], c=labels, cmap="viridis" if meaning else "hsv", **style)
        figure.colorbar(drawn, ax=axes, label=meaning or f"one of {len(spec.classes)} {spec.targets[0]}s")
    axes.set(xlabel=names[0], ylabel=names[1])
    axes.set_title(f"{spec.name}: codes of {len(points):,} test rows", fontsize="medium")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
    return figure


def plane(codes: np.ndarray) -> tuple[np.ndarray, tuple[str, str]]:
    """Codes [N, K] as points [N, 2], and the names of the axes: the code itself, or its first principal components."""
    if codes.shape[1] == 1:
        return np.column_stack([codes[:, 0], np.zeros(len(codes))]), ("code 0", "")
    if codes.shape[1] == 2:
        return codes, ("code 0", "code 1")
    centred = (codes - codes.mean(axis=0)).astype(np.float64)
    _, scales, axes = np.linalg.svd(centred, full_matrices=False)
    shares = scales**2 / max((scales**2).sum(), 1e-30)
    points = np.zeros((len(codes), 2))
    points[:, : min(len(axes), 2)] = centred @ axes[:2].T
    first, second = (*shares, 0.0)[:2]
    return points, (f"first principal component ({first:.0%})", f"second ({second:.0%})")


def _labels(spec: DataSpec, targets: np.ndarray) -> tuple[np.ndarray, str | None]:
    """[N] what a row is coloured by, and its meaning if that is a number, else a class index."""
    if spec.task == "regression":
        return targets[:, 0] * spec.target_std[0] + spec.target_mean[0], spec.targets[0]
    if spec.task == "multilabel":
        return targets.sum(axis=1), "labels of a row"
    return targets.reshape(len(targets)).astype(int), None
