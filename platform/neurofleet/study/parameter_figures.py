"""Figures of a study's parameters: what mattered, and where the good trials lie."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neurofleet.study import canvas
from neurofleet.study.canvas import BLUE, GREY, Objective, Parameter, UndrawableError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable

MOST_BARS, MOST_AXES, MOST_PANELS, MOST_IN_CONTOUR = 24, 10, 8, 3
GRID = 40  # points along each side of a contour's surface
MARGIN = 0.05  # beside the outermost trials


def importances(title: str, weights: Mapping[str, float], path: Path) -> None:
    if not weights:
        raise UndrawableError("importances need four complete trials whose scores differ")
    shown = dict(sorted(weights.items(), key=lambda item: item[1])[-MOST_BARS:])
    figure = canvas.figure(6.4, 0.27 * len(shown) + 1.1, f"{title}: what tells the best trials from the others")
    axes = figure.subplots()
    bars = axes.barh(list(shown), list(shown.values()), color=BLUE, height=0.7)
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.set(xlabel="importance (PED-ANOVA)", xlim=(0, 1.12 * max(shown.values())))
    canvas.finish(axes)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", labelsize=8)
    figure.savefig(path)


def parallel(title: str, objective: Objective, parameters: Sequence[Parameter], path: Path) -> None:
    """One line a trial through its parameters, the most important first, to its score."""
    from matplotlib.collections import LineCollection

    shown = [each for each in parameters if np.isfinite(each.places).all()][:MOST_AXES]
    if not shown:
        raise UndrawableError("it needs two complete trials that differ in a parameter which both have")
    shades, order = canvas.shades(objective), objective.upwards()
    low, high = shades.get_clim()
    goal = Parameter(objective.label, np.array([low, high]), log=False, choices=())
    jitter = np.random.default_rng(0).uniform(-0.03, 0.03, len(order))  # else trials of one choice lie in one place
    heights = [each.unit(each.places) + (jitter if each.choices else 0) for each in shown]
    heights.append(goal.unit(np.clip(objective.values, low, high)))
    places = np.broadcast_to(np.arange(len(heights)), (len(order), len(heights)))
    lines = np.stack([places, np.stack(heights, axis=1)], axis=-1)[order]
    figure = canvas.figure(1.25 * len(heights) + 1.6, 4.2, f"{title}: parameters of {len(order)} trials")
    axes = figure.subplots()
    colours = shades.to_rgba(objective.values[order])
    axes.add_collection(LineCollection(list(lines), colors=colours, linewidths=1, alpha=0.85))
    box = {"boxstyle": "square,pad=0.1", "facecolor": "white", "alpha": 0.75, "linewidth": 0}
    for place, each in enumerate((*shown, goal)):
        axes.axvline(place, color="#444444", linewidth=0.8, zorder=3)
        for height, label in zip(*each.ticks(), strict=True):
            axes.text(place + 0.04, height, label, fontsize=7, va="center", bbox=box, zorder=4)
    axes.set(xlim=(-0.1, len(shown) + 0.25), ylim=(-0.04, 1.04), yticks=[])
    names = [each.name for each in (*shown, goal)]
    axes.set_xticks(range(len(names)), names, rotation=20, ha="right", rotation_mode="anchor", fontsize=8)
    axes.spines[:].set_visible(False)
    canvas.colour_bar(figure, shades, objective, axes)
    figure.savefig(path)


def contour(title: str, objective: Objective, parameters: Sequence[Parameter], path: Path) -> None:
    """The score over each pair of the most important numbers: a kernel average (Nadaraya and Watson, 1964), and the
    trials themselves, the best ringed."""
    shown = [each for each in parameters if not each.choices and np.isfinite(each.places).all()][:MOST_IN_CONTOUR]
    if len(shown) < 2 or len(objective.values) < 4:
        raise UndrawableError("it needs four complete trials that differ in two parameters that are numbers")
    size, shades = len(shown) - 1, canvas.shades(objective)
    figure = canvas.figure(2.7 * size + 1.6, 2.4 * size + 0.9, f"{title}: {objective.label} over pairs of parameters")
    panels: Any = figure.subplots(size, size, squeeze=False, sharex="col", sharey="row")
    for row, column in np.ndindex(size, size):
        if column > row:
            panels[row, column].set_visible(False)
        else:
            _panel(panels[row, column], shown[column], shown[row + 1], objective, shades)
    for column in range(size):
        _label(panels[-1, column].xaxis, shown[column])
        _label(panels[column, 0].yaxis, shown[column + 1])
    canvas.colour_bar(figure, shades, objective, panels)
    figure.savefig(path)


def _panel(axes: Axes, across: Parameter, up: Parameter, objective: Objective, shades: ScalarMappable) -> None:
    points = np.stack([across.unit(across.places), up.unit(up.places)], axis=1)
    side = np.linspace(-MARGIN, 1 + MARGIN, GRID)
    grid = np.stack(np.meshgrid(side, side), axis=-1)
    width = 0.35 * len(points) ** (-1 / 6)  # Scott's rule for two dimensions, of points all over a square
    weights = np.exp(-0.5 * ((grid[:, :, None] - points) ** 2).sum(-1) / width**2) + 1e-12
    low, high = shades.get_clim()
    average = (weights * np.clip(objective.values, low, high)).sum(-1) / weights.sum(-1)
    colours: dict[str, Any] = {"cmap": shades.cmap, "norm": shades.norm}
    axes.contourf(side, side, average, levels=np.linspace(low, high, 13), alpha=0.75, **colours)
    order = objective.upwards()
    values = objective.values[order]
    axes.scatter(points[order, 0], points[order, 1], c=values, s=14, edgecolors="white", linewidths=0.4, **colours)
    canvas.ring(axes, *points[order[-1]])


def _label(axis: Any, parameter: Parameter) -> None:
    """For an axis from 0 to 1."""
    axis.set_ticks(*parameter.ticks())
    axis.set_tick_params(labelsize=7)
    axis.set_label_text(parameter.name, fontsize=8)


def slices(title: str, objective: Objective, parameters: Sequence[Parameter], numbers: np.ndarray, path: Path) -> None:
    """The score over each parameter, the most important first; late trials are dark, the best is ringed."""
    shown = parameters[:MOST_PANELS]
    if not shown:
        raise UndrawableError("it needs two complete trials that differ in a parameter")
    num_across = min(len(shown), 4)
    num_down = math.ceil(len(shown) / num_across)
    figure = canvas.figure(2.5 * num_across + 1, 2.3 * num_down + 0.5, f"{title}: {objective.label} by parameter")
    panels = figure.subplots(num_down, num_across, squeeze=False, sharey=True)
    jitter = np.random.default_rng(0).uniform(-0.3, 0.3, len(numbers))
    best = objective.upwards()[-1]
    ends = {"vmin": numbers.min(), "vmax": numbers.max()}
    for each, axes in zip(shown, panels.flat, strict=False):
        places = each.unit(each.places + jitter if each.choices else each.places)
        dots = axes.scatter(places, objective.values, c=numbers, s=14, cmap="Blues", **ends, ec=GREY, lw=0.3)
        canvas.ring(axes, places[best], objective.values[best])
        _label(axes.xaxis, each)
        if sum(len(choice[:12]) for choice in each.choices) > 24:
            axes.tick_params(axis="x", rotation=30)
        axes.tick_params(axis="y", labelsize=7)
        axes.set_xlim(-MARGIN, 1 + MARGIN)
        canvas.finish(axes)
    canvas.crop(panels[0, 0], objective, objective.values)
    for axes in panels[:, 0]:
        axes.set_ylabel(objective.label, fontsize=8)
    for axes in panels.flat[len(shown) :]:
        axes.set_visible(False)
    figure.colorbar(dots, ax=panels, label="trial", pad=0.01).ax.tick_params(labelsize=7)
    figure.savefig(path)
