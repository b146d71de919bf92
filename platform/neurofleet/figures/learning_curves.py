"""Learning curves: one panel a metric, training and validation in it, over optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart by everybody
COLOURS = {"train": "#0072B2", "val": "#D55E00"}
# words of metrics that are the better the lower, and of those that are neither good nor bad by themselves
LOWER = {
    *("bits", "difference", "distance", "divergence", "eer", "elbo", "error", "frechet", "kl", "loss", "mae", "mse"),
    *("nats", "perplexity", "rmse"),
}
NEITHER = {"length", "rate", "score", "spikes", "units", "value"}
NAMES = {"train": "training", "val": "validation"}


def learning_curves(history: Sequence[Mapping[str, float]], path: Path, *, title: str) -> Figure:
    """Draw rows {"step", "epoch", "train/loss", "val/loss", ...} and write a PNG; returns the figure.

    A row need not hold every metric.  The losses come first; the best validation value of each panel is marked.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metrics = _metrics(history)
    if not metrics:
        raise ValueError("learning curves need at least one train/... or val/... metric in the history")
    num_columns = min(len(metrics), 3)
    num_rows = math.ceil(len(metrics) / num_columns)
    figure = Figure(figsize=(4.2 * num_columns + 0.6, 3.1 * num_rows + 0.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    panels = figure.subplots(num_rows, num_columns, squeeze=False).flat
    for metric, axes in zip(metrics, panels, strict=False):
        _panel(axes, history, metric)
    for axes in list(panels):  # those left over
        axes.set_visible(False)
    figure.savefig(path)
    return figure


def _metrics(history: Sequence[Mapping[str, float]]) -> list[str]:
    names = {name.split("/", 1)[1] for row in history for name in row if name.startswith(("train/", "val/"))}
    return sorted(names, key=lambda name: (name != "loss", name))


def _panel(axes: object, history: Sequence[Mapping[str, float]], metric: str) -> None:
    from matplotlib.axes import Axes
    from matplotlib.ticker import MaxNLocator

    assert isinstance(axes, Axes)
    for stage, colour in COLOURS.items():
        points = [(row["step"], row[f"{stage}/{metric}"]) for row in history if f"{stage}/{metric}" in row]
        if not points:
            continue
        steps, values = zip(*points, strict=True)
        marker = "." if len(points) < 40 else ""
        axes.plot(steps, values, color=colour, label=NAMES[stage], linewidth=1.5, marker=marker)
        lowest = lower_is_better(metric)
        if stage == "val" and lowest is not None:
            _mark_best(axes, steps, values, colour, lowest=lowest)
    axes.set(xlabel="optimizer step", title=metric.replace("_", " "))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")


def lower_is_better(metric: str) -> bool | None:
    """Whether the lowest value of a metric is its best one, by the words of its name; None if none is best."""
    words = set(metric.lower().split("_"))
    return True if words & LOWER else None if words & NEITHER else False


def _mark_best(axes: object, steps: Sequence[float], values: Sequence[float], colour: str, *, lowest: bool) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes)
    finite = [index for index, value in enumerate(values) if math.isfinite(value)]
    if not finite:
        return
    best = (min if lowest else max)(finite, key=lambda index: values[index])
    axes.plot(
        steps[best],
        values[best],
        "o",
        markersize=7,
        markerfacecolor="none",
        markeredgecolor=colour,
        label=f"best: {values[best]:.4g}",
    )
