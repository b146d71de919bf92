from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from neurofleet.figures.component_planes import MOST_PLANES, component_planes, most_varied, name_of


def test_a_plane_for_each_input(tmp_path: Path, made_spec: Any) -> None:
    planes = np.arange(24.0).reshape(4, 2, 3)
    figure = component_planes(tmp_path / "c.png", spec=made_spec, planes=planes, hexagonal=np.array(True))
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == ["w", "x", "y", "z"]
    assert panels[1].collections[0].get_array().tolist() == [6, 7, 8, 9, 10, 11]
    assert figure.get_suptitle() == "made: component planes"


def test_of_many_inputs_those_that_differ_most(tmp_path: Path, made_spec: Any) -> None:
    spec = dataclasses.replace(made_spec, kind="sequence", shape=(15, 2), input_mean=(0.0,) * 2, input_std=(1.0, 100.0))
    planes = np.zeros((30, 1, 2))
    planes[:, 0, 1] = np.arange(30)
    chosen = most_varied(spec, planes).tolist()
    assert len(chosen) == MOST_PLANES
    assert set(range(0, 30, 2)) - set(chosen) == {0}, "channel 1 varies by less of its standard deviation"
    assert name_of(spec, 5) == "step 2, channel 1"
    figure = component_planes(tmp_path / "c.png", spec=spec, planes=planes, hexagonal=np.array(False))
    assert "the 20 of 30 inputs that differ most between units" in figure.get_suptitle()


def test_units_of_images_are_images(tmp_path: Path, made_spec: Any) -> None:
    spec = dataclasses.replace(made_spec, kind="image", shape=(1, 2, 2))
    planes = np.zeros((4, 2, 3))
    planes[1, 1, 2] = 9.0  # the pixel at the right of the first line, in the last unit
    figure = component_planes(tmp_path / "c.png", spec=spec, planes=planes, hexagonal=np.array(False))
    images = figure.axes[0].images
    assert len(images) == 6
    assert np.asarray(images[-1].get_array()).tolist() == [[0.0, 9.0], [0.0, 0.0]]
    colours = dataclasses.replace(spec, shape=(3, 2, 2))
    figure = component_planes(
        tmp_path / "c.png", spec=colours, planes=np.full((12, 1, 2), 255.0), hexagonal=np.array(True)
    )
    assert np.asarray(figure.axes[0].images[0].get_array()).tolist() == [[[1.0] * 3] * 2] * 2
