"""What the figures of a study have in common: what they are of, and how it is laid out."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart by everybody
BLUE, RED, GREY = "#0072B2", "#D55E00", "#999999"


class UndrawableError(Exception):
    """Why a picture cannot be drawn."""


@dataclasses.dataclass(frozen=True)
class Objective:
    """values: [trials that are complete]"""

    label: str
    lowest: bool
    values: np.ndarray

    def upwards(self) -> np.ndarray:
        """Trials from the worst to the best."""
        return np.argsort(-self.values if self.lowest else self.values, kind="stable")

    def fence(self, values: np.ndarray) -> tuple[float, float]:
        """An interval that holds the best value, and leaves out what is far worse than the most."""
        good = np.min(values) if self.lowest else np.max(values)
        usual, bad = np.quantile(np.abs(values - good), [0.75, 1.0])
        reach = min(bad, 3 * usual) or bad or 1.0
        return (good, good + reach) if self.lowest else (good - reach, good)


@dataclasses.dataclass(frozen=True)
class Parameter:
    """places: [trials that are complete] its values, or the indices of its choices; NaN where a trial has none"""

    name: str
    places: np.ndarray
    log: bool
    choices: tuple[str, ...]

    def unit(self, places: np.ndarray) -> np.ndarray:
        """Places along its axis, 0 to 1."""
        scale = np.log10 if self.log else np.asarray
        if self.choices:
            return (np.asarray(places) + 0.5) / len(self.choices)
        low, high = scale(np.nanmin(self.places)), scale(np.nanmax(self.places))
        return (scale(places) - low) / (high - low)

    def ticks(self) -> tuple[list[float], list[str]]:
        """Places along its axis from 0 to 1, and what to write there."""
        from matplotlib.ticker import MaxNLocator

        if self.choices:
            return self.unit(np.arange(len(self.choices))).tolist(), [choice[:12] for choice in self.choices]
        low, high = np.nanmin(self.places), np.nanmax(self.places)
        whole = bool((self.places[np.isfinite(self.places)] % 1 == 0).all())
        values = np.asarray(MaxNLocator(4, integer=whole).tick_values(low, high))
        if self.log:
            first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
            factors = (1,) if math.log10(high / low) > 2 else (1, 2, 5)
            values = np.array([factor * 10.0**power for power in range(first, last + 1) for factor in factors])
            values = values[:: max(1, (last - first) // 4)]
        values = values[(values >= low) & (values <= high)]
        return self.unit(values).tolist(), [f"{value:.4g}" for value in values]


@dataclasses.dataclass(frozen=True)
class Curve:
    """Scores [steps] of one trial as it went on, and its final score, NaN if it has none."""

    steps: np.ndarray
    values: np.ndarray
    state: str
    score: float


def figure(width: float, height: float, title: str) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize="medium")
    return figure


def shades(objective: Objective) -> ScalarMappable:
    """Dark is good, whichever end that is."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    low, high = objective.fence(objective.values)
    if np.ptp(objective.values) == 0:
        raise UndrawableError("all trials scored the same")
    return ScalarMappable(Normalize(low, high), "viridis" if objective.lowest else "viridis_r")


def colour_bar(figure: Figure, shades: ScalarMappable, objective: Objective, axes: Any) -> None:
    low, high = shades.get_clim()
    beyond = "max" if objective.values.max() > high else "min" if objective.values.min() < low else "neither"
    bar = figure.colorbar(shades, ax=axes, label=f"{objective.label} (dark is better)", extend=beyond, pad=0.02)
    bar.ax.tick_params(labelsize=7)


def crop(axes: Axes, objective: Objective, values: np.ndarray) -> None:
    """Leave out what is far worse than the most, and say of how many."""
    low, high = objective.fence(values)
    margin = 0.06 * (high - low)
    low, high = low - margin, high + margin
    axes.set_ylim(low, high)
    beyond = int(((values < low) | (values > high)).sum())
    if beyond:
        place = (0.99, 0.97, "top") if objective.lowest else (0.99, 0.03, "bottom")
        axes.text(*place[:2], f"{beyond} beyond", transform=axes.transAxes, ha="right", va=place[2], fontsize=7)


def ring(axes: Axes, across: float, up: float) -> None:
    """Mark the best."""
    axes.plot(across, up, "o", markersize=9, markerfacecolor="none", markeredgecolor=RED, markeredgewidth=1.5)


def legend(axes: Axes) -> None:
    """Above, where it hides nothing."""
    axes.legend(frameon=False, fontsize="small", ncols=4, loc="lower left", bbox_to_anchor=(0, 1))


def finish(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
