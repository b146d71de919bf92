from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from neurofleet.figures.animation import BAND, animation


def frames(size: int) -> np.ndarray:
    """A white square on its way from left to right."""
    made = np.zeros((size, 40, 60, 3), np.uint8)
    for index in range(size):
        made[index, 10:20, index : index + 10] = 255
    return made


def test_it_writes_a_sheet_and_a_gif_that_loops(tmp_path: Path, made_spec: Any) -> None:
    path = tmp_path / "animation.png"
    steps = np.array([*range(0, 245, 5), 247])
    figure = animation(path, spec=made_spec, frames=frames(50), steps=steps, rewards=np.full(247, 0.5))
    assert path.stat().st_size > 5_000
    assert figure.get_suptitle() == "made: a greedy test episode of 247 steps, return 123.5"
    shown = [axes for axes in figure.axes if axes.images]
    assert len(shown) == 12
    assert [shown[0].get_title(), shown[-1].get_title()] == ["step 0", "step 247"]
    with Image.open(tmp_path / "animation.gif") as moving:
        assert moving.n_frames == 50
        assert (moving.info["loop"], moving.info["duration"]) == (0, 100)
        assert moving.size == (60, 40 + BAND)
        first = np.asarray(moving.convert("L"))
        moving.seek(40)
        later = np.asarray(moving.convert("L"))
        moving.seek(49)
        assert moving.info["duration"] == 1000, "long enough to see how it ended"
    assert later[BAND + 15, 45] > 200
    assert later[BAND + 15, 5] < 50
    assert (first[:BAND] < 100).any(), "words on white"
    assert (first[:BAND] != later[:BAND]).any(), "which count"


def test_an_episode_may_be_short(tmp_path: Path, made_spec: Any) -> None:
    figure = animation(tmp_path / "a.png", spec=made_spec, frames=frames(3), steps=np.arange(3), rewards=np.ones(2))
    assert len([axes for axes in figure.axes if axes.images]) == 3
