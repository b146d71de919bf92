"""Figures of the finders: what they measured, and where their suggestion lies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from neurofleet.study import canvas
from neurofleet.study.canvas import BLUE, GREY, RED


def learning_rates(
    rates: Sequence[float],
    losses: Sequence[Sequence[float]],
    smooth: np.ndarray,
    suggestion: float | None,
    title: str,
    path: Path,
) -> None:
    """Losses over learning rates: of each seed's test, as far as it came, and the smoothed mean.

    smooth:     [steps], of the first of `rates`
    suggestion: one of `rates`, or None
    """
    figure = canvas.figure(6.4, 4.0, title)
    axes = figure.subplots()
    for index, one in enumerate(losses):
        label = f"each of {len(losses)} seeds" if len(losses) > 1 else "each step"
        axes.plot(rates[: len(one)], one, color=GREY, linewidth=0.8, alpha=0.7, label=None if index else label)
    axes.plot(rates[: len(smooth)], smooth, color=BLUE, linewidth=2, label="smoothed mean")
    if suggestion is not None:
        place = list(rates).index(suggestion)
        axes.axvline(suggestion, color=RED, linewidth=0.8, linestyle=":")
        axes.plot(suggestion, smooth[place], "o", color=RED, markersize=7, label=f"steepest: {suggestion:.2g}")
    low, high = float(smooth.min()), float(smooth.max())
    margin = 0.25 * (high - low) or 1.0
    lowest = min((min(one) for one in losses if one), default=low)
    axes.set(xscale="log", xlabel="optimizer.lr", ylabel="train/loss")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.set_ylim(min(low, lowest) - 0.2 * margin, high + margin)  # explosions leave the picture
    canvas.finish(axes)
    canvas.legend(axes)
    figure.savefig(path)


def batch_sizes(
    sizes: Sequence[int],
    rows_per_second: Sequence[float],
    memory_mib: Sequence[float],
    suggestion: int,
    tolerance: float,
    title: str,
    path: Path,
) -> None:
    """Rows a second, and memory beside them, over the global batch."""
    figure = canvas.figure(6.4, 5.2, title)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    best = max(rows_per_second)
    above.axhspan(best * (1 - tolerance), best, color=BLUE, alpha=0.12, linewidth=0, label=f"within {tolerance:.0%}")
    above.plot(sizes, rows_per_second, "o-", color=BLUE, markersize=4)
    chosen = rows_per_second[list(sizes).index(suggestion)]
    above.plot(suggestion, chosen, "o", color=RED, markersize=7, label=f"suggested: {suggestion}")
    above.set(ylabel="rows a second", ylim=(0, best * 1.08))
    below.plot(sizes, memory_mib, "o-", color=GREY, markersize=4)
    below.set(xscale="log", ylim=(0, None), xlabel="data.batch_size", ylabel="MiB a worker")
    shown = [size for size, larger in zip(sizes, [*sizes[1:], math.inf], strict=True) if larger >= 1.5 * size]
    below.set_xticks(shown, [str(size) for size in shown], rotation=45 if len(shown) > 8 else 0)
    below.minorticks_off()
    below.yaxis.set_major_formatter("{x:g}")
    above.yaxis.set_major_formatter("{x:,.0f}")
    for axes in (above, below):
        canvas.finish(axes)
    canvas.legend(above)
    figure.savefig(path)
