from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import matplotlib.image
import numpy as np
from matplotlib.colors import to_hex

from neurofleet.figures.gain import CONTROL, NEITHER, OURS, gain


def test_scores_and_intervals_of_each_comparison(tmp_path: Path) -> None:
    figure = gain(
        tmp_path / "g.png",
        names=["digits", "textures", "mnist5k"],
        ours=np.array([0.9, 0.8, 0.5]),
        control=np.array([0.7, 0.8, 0.9]),
        low=np.array([0.1, -0.1, -0.5]),
        high=np.array([0.3, 0.1, -0.3]),
        metric="accuracy",
        title="what it was worth",
    )
    scores, differences = figure.axes
    controls, ours = (line.get_xdata() for line in scores.lines)
    assert (list(controls), list(ours)) == ([0.7, 0.8, 0.9], [0.9, 0.8, 0.5])
    assert [label.get_text() for label in scores.get_yticklabels()] == ["digits", "textures", "mnist5k"]
    assert scores.get_ylim()[0] > scores.get_ylim()[1], "the first is on top"
    intervals = [line for line in differences.lines if line.get_marker() == "|"]
    assert [list(line.get_xdata()) for line in intervals] == [[0.1, 0.3], [-0.1, 0.1], [-0.5, -0.3]]
    assert [to_hex(line.get_color()).upper() for line in intervals] == [OURS, NEITHER, CONTROL]
    assert [text.get_text() for text in differences.texts] == [
        "+0.200 [+0.100, +0.300]",
        "+0.000 [-0.100, +0.100]",
        "-0.400 [-0.500, -0.300]",
    ]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["from scratch", "fine-tuned"]
    assert figure.get_suptitle() == "what it was worth"
    height, width, _ = matplotlib.image.imread(tmp_path / "g.png").shape
    assert width > height > 300


def test_a_long_name_leaves_room_for_the_scores(tmp_path: Path) -> None:
    one = np.array([0.5])
    figure = gain(tmp_path / "g.png", names=["n" * 80], ours=one, control=one, low=one, high=one, metric="r2")
    assert figure.axes[0].get_yticklabels()[0].get_text() == "n" * 27 + "…"


def test_scores_that_are_alike_have_an_axis_to_read(tmp_path: Path) -> None:
    ours, control = np.array([1.0]), np.array([0.9999])
    low, high = np.array([-0.0002]), np.array([0.0003])
    figure = gain(tmp_path / "g.png", names=["textures"], ours=ours, control=control, low=low, high=high, metric="r2")
    for axes in figure.axes:
        assert axes.xaxis.get_offset_text().get_text() == ""
        begin, end = axes.get_xlim()
        assert end - begin >= 0.02 - 1e-9
        shown = [one.get_window_extent() for one in axes.get_xticklabels() if begin <= one.get_position()[0] <= end]
        assert all(left.x1 < right.x0 for left, right in pairwise(shown))
