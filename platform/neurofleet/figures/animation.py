"""Animation: one episode, as a GIF and as a contact sheet of some of its frames."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neurofleet.spec import DataSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SECONDS = 5.0  # that the GIF takes, at most
SLOWEST = 0.1  # seconds that one frame stays
SHEET = (3, 4)  # rows at most, and columns, of the contact sheet


def animation(path: Path, *, spec: DataSpec, frames: np.ndarray, rewards: np.ndarray) -> Figure:
    """Write the contact sheet as a PNG and, beside it, all frames as a GIF that loops; returns the figure.

    frames:  uint8 [F,height,width,3], evenly spaced in the episode
    rewards: [T] of each of its steps
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    shared = min(SECONDS / len(frames), SLOWEST)
    pictures = [Image.fromarray(frame).quantize(64) for frame in frames]
    pictures[0].save(
        path.with_suffix(".gif"),
        save_all=True,
        append_images=pictures[1:],
        duration=max(round(shared * 1000), 20),  # browsers slow down what is faster
        loop=0,
    )
    most, columns = SHEET
    places = np.linspace(0, len(frames) - 1, min(most * columns, len(frames))).round().astype(int)
    rows = -(-len(places) // columns)
    height, width = frames.shape[1:3]
    figure = Figure(figsize=(2.2 * columns, (2.2 * height / width + 0.3) * rows + 0.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{spec.name}: a greedy test episode of {len(rewards)} steps, return {rewards.sum():.4g}")
    every = len(rewards) / len(frames)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels:
        axes.axis("off")
    for place, axes in zip(places.tolist(), panels, strict=False):
        axes.imshow(frames[place])
        axes.set_title(f"step {round(place * every)}", fontsize="small")
    figure.savefig(path)
    return figure
