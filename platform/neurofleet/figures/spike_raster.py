"""Spike raster of a spiking network: when which neuron fires, and what the readout makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neurofleet.spec import DataSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")  # of the layers (Okabe and Ito)
MOST_LINES = 10  # of the readout, those that end highest


def spike_raster(
    path: Path, *, spec: DataSpec, spikes: np.ndarray, layers: np.ndarray, potentials: np.ndarray, num_steps: np.ndarray
) -> Figure:
    """Draw each row of the data as one column, spikes above and potentials of the readout below, and write a PNG.

    spikes:     [N, T, neurons], 1 where a neuron fires
    layers:     [neurons], the layer of each
    potentials: [N, T, O]
    num_steps:  [N], how long each row is
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    num_rows = len(spikes)
    figure = Figure(figsize=(3.6 * num_rows + 0.8, 5.6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, num_rows, squeeze=False, sharex="col", height_ratios=(2, 1))
    for row in range(num_rows):
        steps = int(num_steps[row])
        _dots(panels[0, row], spikes[row, :steps], layers)
        _lines(panels[1, row], spec, potentials[row, :steps])
        panels[1, row].set_xlabel("step of time")
    panels[0, 0].set_ylabel(f"{spikes.shape[2]} neurons, the first layer below")
    panels[1, 0].set_ylabel("potential of the readout")
    rate = spikes.sum() / max(int(num_steps.sum()) * spikes.shape[2], 1)
    title = f"{spec.name}: spikes of {num_rows} test rows, {rate:.1%} of these neurons a step"
    figure.suptitle(title, fontsize="medium")
    figure.savefig(path)
    return figure


def _dots(axes: Axes, spikes: np.ndarray, layers: np.ndarray) -> None:
    from matplotlib.ticker import MaxNLocator

    times, neurons = spikes.nonzero()
    colours = [COLOURS[layer % len(COLOURS)] for layer in layers[neurons]]
    size = min(200 / len(layers), 6.0)  # points, so that neighbours do not run into one another
    axes.scatter(times + 1, neurons, s=size**2, c=colours, marker="s", linewidths=0)
    for border in np.flatnonzero(np.diff(layers)):
        axes.axhline(border + 0.5, color="#999999", linewidth=0.6)
    axes.set(xlim=(0.5, len(spikes) + 0.5), ylim=(-1, len(layers)))
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_yticks([])


def _lines(axes: Axes, spec: DataSpec, potentials: np.ndarray) -> None:
    names = spec.classes if len(spec.classes) == potentials.shape[1] else spec.targets
    highest = set(np.argsort(-potentials.mean(axis=0), kind="stable")[:MOST_LINES].tolist())
    best = int(potentials.mean(axis=0).argmax())
    for output in sorted(highest):
        chosen = output == best and len(highest) > 1
        colour, width = ("#D55E00", 1.8) if chosen else ("#999999", 0.9)
        times = np.arange(len(potentials)) + 1
        axes.plot(times, potentials[:, output], marker=".", color=colour, linewidth=width)
    if len(highest) > 1:
        axes.set_title(f"most: {names[best][:24]}", fontsize=8)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
