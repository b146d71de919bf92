"""Return curve: the return of every episode of training, their running mean, and the greedy returns beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neurofleet.spec import DataSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart by everybody
BLUE, RED = "#0072B2", "#D55E00"
WINDOW = 20  # episodes in a running mean


def return_curve(
    path: Path,
    *,
    spec: DataSpec,
    episode_steps: np.ndarray,
    episode_returns: np.ndarray,
    greedy_steps: np.ndarray,
    greedy_returns: np.ndarray,
) -> Figure:
    """Draw returns over steps in the environments and write a PNG; returns the figure.

    episode_steps, episode_returns: [N] of each training episode, when it ended and what it scored
    greedy_steps, greedy_returns:   [V] of each validation, the mean of its greedy episodes
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.scatter(
        episode_steps, episode_returns, s=6, color=BLUE, alpha=0.25, linewidths=0, label="training, an episode"
    )
    if len(episode_returns):
        axes.plot(
            episode_steps,
            running_mean(episode_returns, WINDOW),
            color=BLUE,
            linewidth=1.6,
            label=f"training, mean of {WINDOW} episodes",
        )
    if len(greedy_returns):
        best = int(np.argmax(greedy_returns))
        label = f"validation, greedy; best {greedy_returns[best]:.4g}"
        axes.plot(greedy_steps, greedy_returns, color=RED, linewidth=1.6, marker=".", label=label)
        axes.plot(
            greedy_steps[best], greedy_returns[best], "o", markersize=8, markerfacecolor="none", markeredgecolor=RED
        )
    axes.set(xlabel="steps in the environments", ylabel="return", title=f"{spec.name}: return of an episode")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(path)
    return figure


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of each value and up to `window` - 1 before it."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    begins = np.maximum(ends - window, 0)
    return (sums[ends] - sums[begins]) / (ends - begins)
