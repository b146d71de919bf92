from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from neurofleet.figures.animation import animation


def frames(size: int) -> np.ndarray:
    """A white square on its way from left to right."""
    made = np.zeros((size, 40, 60, 3), np.uint8)
    for index in range(size):
        made[index, 10:20, index : index + 10] = 255
    return made


def test_it_writes_a_sheet_and_a_gif_that_loops(tmp_path: Path, made_spec: Any) -> None:
    path = tmp_path / "animation.png"
    figure = animation(path, spec=made_spec, frames=frames(50), rewards=np.full(250, 0.5))
    assert path.stat().st_size > 5_000
    assert figure.get_suptitle() == "made: a greedy test episode of 250 steps, return 125"
    shown = [axes for axes in figure.axes if axes.images]
    assert len(shown) == 12
    assert [shown[0].get_title(), shown[-1].get_title()] == ["step 0", "step 245"]
    with Image.open(tmp_path / "animation.gif") as moving:
        assert moving.n_frames == 50
        assert (moving.info["loop"], moving.info["duration"]) == (0, 100)
        moving.seek(40)
        last = np.asarray(moving.convert("L"))
    assert last[15, 45] > 200
    assert last[15, 5] < 50


def test_an_episode_may_be_short(tmp_path: Path, made_spec: Any) -> None:
    figure = animation(tmp_path / "a.png", spec=made_spec, frames=frames(3), rewards=np.ones(3))
    assert len([axes for axes in figure.axes if axes.images]) == 3
