"""Figures of a study's scores: over the trials, over the steps of each, and two of them against each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neurofleet.study import canvas
from neurofleet.study.canvas import BLUE, GREY, RED, Curve, Objective, UndrawableError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STATES = {"PRUNED": ("pruned", GREY), "FAIL": ("failed", RED), "RUNNING": ("going on", GREY)}
"""of trials without a final score"""


def history(
    title: str,
    objectives: Sequence[Objective],
    numbers: np.ndarray,
    others: Mapping[str, Sequence[tuple[int, float]]],
    path: Path,
) -> None:
    """Scores over the trials' numbers; `others` are, by state, (number, last score or NaN) of those without a final
    one."""
    figure = canvas.figure(6.4, 3.4 * len(objectives) + 0.2, f"{title}: optimization history")
    for objective, axes in zip(objectives, figure.subplots(len(objectives), 1, squeeze=False).flat, strict=True):
        best = (np.minimum if objective.lowest else np.maximum).accumulate(objective.values)
        axes.scatter(numbers, objective.values, s=16, color=BLUE, alpha=0.7, linewidths=0, label="complete")
        shown = [objective.values]
        for state, trials in others.items():
            scores = np.array([score for _, score in trials if len(objectives) == 1])
            shown.append(scores[np.isfinite(scores)])
            _unfinished(axes, state, trials, one=len(objectives) == 1)
        axes.step(numbers, best, where="post", color=RED, linewidth=1.5, label=f"best: {best[-1]:.4g}")
        canvas.crop(axes, objective, np.concatenate(shown))
        axes.set(xlabel="trial", ylabel=objective.label)
        canvas.finish(axes)
        canvas.legend(axes)
    figure.savefig(path)


def _unfinished(axes: Axes, state: str, trials: Sequence[tuple[int, float]], *, one: bool) -> None:
    """A cross at the last score, or a tick at the bottom where there is none that the axis can show."""
    name, colour = STATES[state]
    crosses = [(number, score) for number, score in trials if one and math.isfinite(score)]
    ticks = [number for number, score in trials if not (one and math.isfinite(score))]
    if crosses:
        lying, scores = zip(*crosses, strict=True)
        axes.scatter(lying, scores, s=14, marker="x", color=colour, linewidths=0.8, label=name)
    if ticks:
        across = axes.get_xaxis_transform()
        label = None if crosses else name
        axes.scatter(ticks, [0.02] * len(ticks), s=24, marker="|", color=colour, transform=across, label=label)


def learning_curves(title: str, objective: Objective, curves: Sequence[Curve], path: Path) -> None:
    """The score of every trial as it went on: complete ones by their end, the best thick, all others faint."""
    from matplotlib.collections import LineCollection

    if not any(len(curve.steps) > 1 for curve in curves):
        raise UndrawableError("no trial reported two scores")
    shades = canvas.shades(objective)
    figure = canvas.figure(6.4, 3.8, f"{title}: learning curves of {len(curves)} trials")
    axes = figure.subplots()
    for state in STATES:
        _faint(axes, state, [_line(curve) for curve in curves if curve.state == state])
    complete = sorted((curve for curve in curves if math.isfinite(curve.score)), key=lambda curve: curve.score)
    complete = complete[::-1] if objective.lowest else complete  # the best on top
    if complete:
        colours = shades.to_rgba(np.array([curve.score for curve in complete]))
        axes.add_collection(LineCollection([_line(each) for each in complete], colors=colours, alpha=0.8, linewidths=1))
        axes.plot(*_line(complete[-1]).T, color=RED, linewidth=2, label=f"best: {complete[-1].score:.4g}")
    canvas.colour_bar(figure, shades, objective, axes)
    axes.autoscale_view()
    every = np.concatenate([curve.values for curve in curves])
    canvas.crop(axes, objective, every[np.isfinite(every)])
    axes.set(xlabel="step", ylabel=objective.label)
    canvas.finish(axes)
    canvas.legend(axes)
    figure.savefig(path)


def _line(curve: Curve) -> np.ndarray:
    return np.stack([curve.steps, curve.values], axis=1)


def _faint(axes: Axes, state: str, lines: Sequence[np.ndarray]) -> None:
    from matplotlib.collections import LineCollection

    if not lines:
        return
    name, colour = STATES[state]
    label = f"{name}: {len(lines)}"
    axes.add_collection(LineCollection(lines, colors=colour, alpha=0.5, linewidths=0.8, label=label))
    ends = np.stack([line[-1] for line in lines])
    axes.plot(*ends.T, ".", color=colour, alpha=0.7, markersize=4)


def pareto_front(title: str, objectives: Sequence[Objective], best: np.ndarray, path: Path) -> None:
    """Two scores against each other, with those trials `best` [trials] that none beats in both."""
    across, up = objectives
    figure = canvas.figure(5.2, 4.4, f"{title}: Pareto front")
    axes = figure.subplots()
    axes.scatter(across.values[~best], up.values[~best], s=16, color=GREY, alpha=0.6, linewidths=0, label="dominated")
    order = np.argsort(across.values[best], kind="stable")
    front = (across.values[best][order], up.values[best][order])
    # what lies between two trials of the front is known to be reached by the worse of both alone
    axes.step(*front, where="post" if across.lowest else "pre", color=RED, linewidth=1, alpha=0.6)
    axes.scatter(*front, s=28, color=RED, linewidths=0, zorder=3, label=f"front: {best.sum()} of {len(best)}")
    for objective, axis in ((across, axes.xaxis), (up, axes.yaxis)):
        axis.set_label_text(f"{objective.label} ({'lower' if objective.lowest else 'higher'} is better)")
    axes.ticklabel_format(scilimits=(-4, 6))
    canvas.finish(axes)
    canvas.legend(axes)
    figure.savefig(path)


def shared_scores(title: str, objective: Objective, shared: np.ndarray, path: Path) -> None:
    """What candidates scored with the weights that they shared [trials], against what they scored when they trained
    alone, with Spearman's correlation of the ranks."""
    if len(shared) < 3 or np.ptp(shared) == 0 or np.ptp(objective.values) == 0:
        raise UndrawableError("it needs three complete candidates that scored differently")
    figure = canvas.figure(5.2, 4.4, f"{title}: rank correlation {rank_correlation(shared, objective.values):.2f}")
    axes = figure.subplots()
    axes.scatter(shared, objective.values, s=28, color=BLUE, linewidths=0)
    best = objective.upwards()[-1]
    canvas.ring(axes, shared[best], objective.values[best])
    axes.set(xlabel=f"{objective.label} with shared weights", ylabel=f"{objective.label} alone")
    axes.ticklabel_format(scilimits=(-4, 6))
    canvas.finish(axes)
    figure.savefig(path)


def rank_correlation(left: np.ndarray, right: np.ndarray) -> float:
    """Spearman's, where equal values share their mean rank."""
    ranks = [(one[:, None] > one).sum(1) + (one[:, None] == one).sum(1) / 2 for one in (left, right)]
    return float(np.corrcoef(*ranks)[0, 1])
