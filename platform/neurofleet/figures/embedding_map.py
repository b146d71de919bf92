"""Embedding map: where test rows lie in an encoder's features before and after fine-tuning, coloured by what they are.

Both panels are principal components: they are found without the targets, so that what lies apart there does so in the
features; where two dimensions hide a separation, the number below, of all dimensions, has it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neurofleet.figures._points import draw_points, principal_plane
from neurofleet.figures.predicted_vs_true import r2
from neurofleet.spec import DataSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_NEIGHBOURS = 5
MOST_ROWS = 1000  # whose distances to one another are taken


def embedding_map(path: Path, *, spec: DataSpec, before: np.ndarray, after: np.ndarray, targets: np.ndarray) -> Figure:
    """Draw features [N, F] of the same rows before and after, side by side, and write a PNG.

    targets: as a network has them
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    before, after, targets = (np.asarray(one[:MOST_ROWS], dtype=np.float64) for one in (before, after, targets))
    figure = Figure(figsize=(9.4, 4.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2)
    for axes, name, features in zip(panels, ("before", "after"), (before, after), strict=True):
        points, (first, second) = principal_plane(features)
        drawn, scale = draw_points(axes, points, spec, targets)
        axes.set_title(f"{name} fine-tuning", fontsize="medium")
        axes.set_xlabel(f"first principal component ({first:.0%})\n{separation(features, targets, spec)}")
        axes.set_ylabel(f"second ({second:.0%})")
        axes.set(xticks=[], yticks=[])
    if scale:
        figure.colorbar(drawn, ax=panels, label=scale)
    else:
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize="small", markerscale=1.5)
    figure.suptitle(f"{spec.name}: features of {len(targets):,} test rows, principal components", fontsize="medium")
    figure.savefig(path)
    return figure


def separation(features: np.ndarray, targets: np.ndarray, spec: DataSpec) -> str:
    """How well the nearest other rows, in all dimensions of the features [N, F], say what a row is; of classes also the
    silhouette (Rousseeuw 1987)."""
    squares = (features**2).sum(axis=1)
    distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * features @ features.T, 0))
    np.fill_diagonal(distances, np.inf)
    nearest = np.argsort(distances, axis=1, kind="stable")[:, : min(NUM_NEIGHBOURS, len(features) - 1)]
    if spec.task == "regression":
        return (
            f"r² of the {NUM_NEIGHBOURS} nearest rows' mean: {r2(targets[:, 0], targets[nearest, 0].mean(axis=1)):.3f}"
        )
    says = f"accuracy of the {NUM_NEIGHBOURS} nearest rows:"
    if spec.task == "multilabel":
        return f"{says} {((targets[nearest].mean(axis=1) > 0.5) == targets).mean():.1%}"
    labels = targets.reshape(len(targets)).astype(int)
    members = labels[:, None] == np.arange(len(spec.classes))
    nearer = 1 + 1e-3 * 0.5 ** np.arange(nearest.shape[1])  # of two classes with as many votes the nearer row's
    votes = (members[nearest] * nearer[:, None]).sum(axis=1)
    np.fill_diagonal(distances, 0)
    return f"{says} {(votes.argmax(axis=1) == labels).mean():.1%}, silhouette {silhouette(distances, members):.2f}"


def silhouette(distances: np.ndarray, members: np.ndarray) -> float:
    """Mean over rows of (b - a) / max(a, b): a is the mean distance [N, N] to the others of the row's class, b that to
    the nearest other class; 1 is apart, 0 is mixed.  A row alone in its class counts as 0.

    members: bool [N, classes], each row in one
    """
    sizes = members.sum(axis=0)
    sums = distances @ members
    own = sums[members] / np.maximum(sizes[members.argmax(axis=1)] - 1, 1)
    elsewhere = np.divide(sums, sizes, out=np.full(sums.shape, np.inf), where=~members & (sizes > 0)).min(axis=1)
    known = (sizes[members.argmax(axis=1)] > 1) & np.isfinite(elsewhere)
    largest = np.maximum(own, elsewhere)
    return float(np.divide(elsewhere - own, largest, out=np.zeros(len(own)), where=known & (largest > 0)).mean())
