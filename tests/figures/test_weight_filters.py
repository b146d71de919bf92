from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from neurofleet.figures.weight_filters import weight_filters


def test_the_largest_filters_come_first_each_by_its_own_scale(tmp_path: Path, made_spec: Any) -> None:
    spec = dataclasses.replace(made_spec, kind="image", shape=(1, 3, 3))
    filters = np.zeros((130, 1, 3, 3))
    filters[:, 0, 0, 0] = np.arange(130) * -0.1
    figure = weight_filters(tmp_path / "f.png", spec=spec, filters=filters)
    shown = [axes.images[0] for axes in figure.axes if axes.images]
    assert len(shown) == 100
    assert np.asarray(shown[0].get_array())[0, 0] == -12.9
    assert shown[1].get_clim() == (-12.8, 12.8)
    assert figure.get_suptitle() == "made: 100 of 130 filters of the first layer"


def test_three_channels_are_a_colour_image_around_grey(tmp_path: Path, made_spec: Any) -> None:
    filters = np.zeros((2, 3, 2, 2))
    filters[0, 1, 0, 1] = 4.0
    figure = weight_filters(tmp_path / "f.png", spec=made_spec, filters=filters)
    picture = np.asarray(figure.axes[0].images[0].get_array())
    assert picture[0, 1].tolist() == [0.5, 1.0, 0.5]
    assert np.asarray(figure.axes[1].images[0].get_array()).tolist() == [[[0.5] * 3] * 2] * 2, "a dead unit is grey"
