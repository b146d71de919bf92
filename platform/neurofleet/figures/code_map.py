"""Code map: where the rows lie in a network's code, coloured by what they are; a wide code by its principal axes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neurofleet.figures._points import draw_points, principal_plane
from neurofleet.spec import DataSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def code_map(path: Path, *, spec: DataSpec, codes: np.ndarray, targets: np.ndarray) -> Figure:
    """Scatter the codes [N, K] of test rows with their targets (as a network has them) and write a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.2, 5.0), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    points, names = plane(codes)
    drawn, scale = draw_points(axes, points, spec, targets)
    if scale:
        figure.colorbar(drawn, ax=axes, label=scale)
    else:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize="small", markerscale=1.5)
    axes.set(xlabel=names[0], ylabel=names[1])
    axes.set_title(f"{spec.name}: codes of {len(points):,} test rows", fontsize="medium")
    figure.savefig(path)
    return figure


def plane(codes: np.ndarray) -> tuple[np.ndarray, tuple[str, str]]:
    """Codes [N, K] as points [N, 2], and the names of the axes: the code itself, or its first principal components."""
    if codes.shape[1] == 1:
        return np.column_stack([codes[:, 0], np.zeros(len(codes))]), ("code 0", "")
    if codes.shape[1] == 2:
        return codes, ("code 0", "code 1")
    points, (first, second) = principal_plane(codes)
    return points, (f"first principal component ({first:.0%})", f"second ({second:.0%})")
