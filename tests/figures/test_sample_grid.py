from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from neurofleet.figures.sample_grid import NUM_SEQUENCES, sample_grid


@pytest.mark.parametrize("channels", [1, 3])
def test_a_row_for_each_moment(channels: int, tmp_path: Path, made_spec: Any) -> None:
    spec = dataclasses.replace(made_spec, kind="image", shape=(channels, 6, 4))
    samples = np.arange(2 * 3 * channels * 24, dtype=float).reshape(2, 3, channels, 6, 4)
    figure = sample_grid(tmp_path / "s.png", spec=spec, samples=samples, moments=np.array([1 / 64, 1.0]))
    assert len(figure.axes) == 6
    assert [axes.get_ylabel() for axes in figure.axes] == ["1.6%", "", "", "100%", "", ""]
    shown = np.asarray(figure.axes[4].images[0].get_array())
    wanted = samples[1, 1, 0] if channels == 1 else np.moveaxis(samples[1, 1], 0, -1) / samples.max()
    np.testing.assert_allclose(shown, wanted, atol=1e-9)
    height, width, _ = matplotlib.image.imread(tmp_path / "s.png").shape
    assert height > 100 < width


def test_sequences_are_lines_on_one_scale(tmp_path: Path, made_spec: Any) -> None:
    spec = dataclasses.replace(made_spec, kind="sequence", shape=(5, 2))
    samples = np.random.default_rng(0).normal(size=(2, 12, 5, 2))
    figure = sample_grid(tmp_path / "s.png", spec=spec, samples=samples, moments=np.array([0.0, 1.0]))
    assert len(figure.axes) == 2 * NUM_SEQUENCES
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    np.testing.assert_array_equal(figure.axes[NUM_SEQUENCES].lines[1].get_ydata(), samples[1, 0, :, 1])
