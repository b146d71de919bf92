"""Animation: one episode, as a GIF and as a contact sheet of some of its frames."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neurofleet.spec import DataSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

SECONDS = 5.0  # that the GIF takes, at most
SLOWEST = 0.1  # seconds that one frame stays
LAST = 1.0  # seconds that the last one does
BAND = 20  # pixels above a frame, for the counter
SHEET = (3, 4)  # rows at most, and columns, of the contact sheet


def animation(path: Path, *, spec: DataSpec, frames: np.ndarray, steps: np.ndarray, rewards: np.ndarray) -> Figure:
    """Write the contact sheet as a PNG and, beside it, all frames as a GIF that loops; returns the figure.

    frames:  uint8 [F,height,width,3]
    steps:   [F], how many steps of the episode came before each frame; the last shows its end
    rewards: [T] of each step
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    returns = np.concatenate([[0.0], np.cumsum(rewards)])
    shared = max(round(min(SECONDS / len(frames), SLOWEST) * 1000), 20)  # browsers slow down what is faster
    pictures = [
        _counted(frame, f"step {step} of {len(rewards)}, return {returns[step]:.4g}")
        for frame, step in zip(frames, steps.tolist(), strict=True)
    ]
    pictures[0].save(
        path.with_suffix(".gif"),
        save_all=True,
        append_images=pictures[1:],
        duration=[shared] * (len(pictures) - 1) + [round(LAST * 1000)],
        loop=0,
    )
    most, columns = SHEET
    places = np.linspace(0, len(frames) - 1, min(most * columns, len(frames))).round().astype(int)
    rows = -(-len(places) // columns)
    height, width = frames.shape[1:3]
    figure = Figure(figsize=(2.2 * columns, (2.2 * height / width + 0.3) * rows + 0.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{spec.name}: a greedy test episode of {len(rewards)} steps, return {rewards.sum():.4g}")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels:
        axes.axis("off")
    for place, axes in zip(places.tolist(), panels, strict=False):
        axes.imshow(frames[place])
        axes.set_title(f"step {steps[place]}", fontsize="small")
    figure.savefig(path)
    return figure


def _counted(frame: np.ndarray, words: str) -> Image:
    """A frame below a band with words, in the 64 colours that a GIF gets."""
    from PIL import Image, ImageDraw

    height, width, _ = frame.shape
    picture = Image.new("RGB", (width, height + BAND), "white")
    picture.paste(Image.fromarray(frame), (0, BAND))
    ImageDraw.Draw(picture).text((6, 3), words, fill="black", font_size=12)
    return picture.quantize(64)
