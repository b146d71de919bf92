"""Gain: scores of fine-tuned networks and of their controls, and the difference of both with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart by everybody
OURS, CONTROL, NEITHER = "#0072B2", "#D55E00", "#777777"
NARROWEST = 0.02  # axis of scores: what differs in the fifth digit is alike


def gain(
    path: Path,
    *,
    names: Sequence[str],
    ours: np.ndarray,
    control: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    metric: str,
    against: str = "from scratch",
    title: str = "What the start was worth",
) -> Figure:
    """Draw a line for each of K comparisons, the first on top, and write a PNG; returns the figure.

    names:         [K], of what is compared: data, seeds
    ours, control: [K], scores
    low, high:     [K], the 95 % interval of ours - control; one that holds zero is grey
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    ours, control, low, high = (np.asarray(one, dtype=np.float64) for one in (ours, control, low, high))
    figure = Figure(figsize=(9.0, 0.42 * len(names) + 1.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    places = np.arange(len(names))
    left.hlines(places, control, ours, color="#bbbbbb", linewidth=2, zorder=1)
    left.plot(control, places, "s", color=CONTROL, markersize=6, label=against)
    left.plot(ours, places, "o", color=OURS, markersize=7, label="fine-tuned")
    left.set(xlabel=f"test {metric}", ylim=(len(names) - 0.4, -0.6))
    left.set_yticks(places, [name if len(name) <= 28 else name[:27] + "…" for name in names])
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=2, frameon=False, fontsize="small")
    _draw_differences(right, ours - control, low, high)
    right.set(xlabel=f"difference of {metric}, 95 % interval")
    for axes in (left, right):
        axes.margins(x=0.1)
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        axes.ticklabel_format(axis="x", useOffset=False)
        begin, end = axes.get_xlim()
        lacking = max(NARROWEST - (end - begin), 0.0)
        axes.set_xlim(begin - lacking / 2, end + lacking / 2)
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    figure.suptitle(title, fontsize="medium")
    figure.savefig(path)
    return figure


def _draw_differences(axes: Axes, differences: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    axes.axvline(0, color="#333333", linewidth=1, linestyle="--")
    for place, (middle, begin, end) in enumerate(zip(differences, low, high, strict=True)):
        colour = OURS if begin > 0 else CONTROL if end < 0 else NEITHER
        axes.plot([begin, end], [place, place], "|-", color=colour, linewidth=2, markersize=9, markeredgewidth=2)
        axes.plot(middle, place, "D", color=colour, markersize=4.5)
        axes.annotate(
            f"{middle:+.3f} [{begin:+.3f}, {end:+.3f}]",
            (1.02, place), xycoords=("axes fraction", "data"), va="center", fontsize=8, color=colour,
        )  # fmt: skip
