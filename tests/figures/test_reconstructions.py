from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neurofleet.figures.reconstructions import explained, reconstructions


@pytest.mark.parametrize("channels", [1, 3])
def test_images_stand_over_their_outputs(channels: int, tmp_path: Path, made_spec: Any) -> None:
    spec = dataclasses.replace(made_spec, kind="image", shape=(channels, 4, 5))
    inputs = np.linspace(-9, 270, 20 * channels * 20).reshape(20, channels, 4, 5)
    figure = reconstructions(tmp_path / "r.png", spec=spec, inputs=inputs, outputs=inputs[::-1], seen=inputs * 0)
    assert len(figure.axes) == 3 * 16
    assert [axes.get_ylabel() for axes in figure.axes[::16]] == ["input", "disturbed", "output"]
    shown = np.asarray(figure.axes[0].images[0].get_array())
    wanted = inputs[0, 0] if channels == 1 else (np.moveaxis(inputs[0], 0, -1) / 255).clip(0, 1)
    np.testing.assert_allclose(shown, wanted, atol=1e-6)


def test_sequences_end_where_they_end(tmp_path: Path, made_spec: Any) -> None:
    spec = dataclasses.replace(made_spec, kind="sequence", shape=(6, 2))
    inputs = np.arange(24.0).reshape(2, 6, 2)
    inputs[0, 4:] = np.nan
    figure = reconstructions(tmp_path / "r.png", spec=spec, inputs=inputs, outputs=inputs * 0 + 1)
    assert len(figure.axes) == 2
    for line in figure.axes[0].lines:
        assert np.isnan(np.asarray(line.get_ydata())).tolist() == [False] * 4 + [True] * 2


def test_a_table_shows_the_columns_said_worst_last(tmp_path: Path, made_spec: Any) -> None:
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(500, 4)) * [1, 10, 100, 1]
    outputs = inputs + generator.normal(size=(500, 4)) * [0.5, 1, 60, 0]
    figure = reconstructions(tmp_path / "r.png", spec=made_spec, inputs=inputs, outputs=outputs)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["z", "x", "w", "y"]
    np.testing.assert_allclose([bar.get_width() for bar in axes.patches], [1, 0.99, 0.75, 0.64], atol=0.06)


def test_a_column_that_never_changes_is_explained() -> None:
    assert explained(np.ones((5, 1)), np.ones((5, 1))).tolist() == [1.0]
