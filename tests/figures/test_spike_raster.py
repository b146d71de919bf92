from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from neurofleet.figures.spike_raster import COLOURS, spike_raster


def test_a_mark_for_each_spike_of_its_layer(tmp_path: Path, made_spec: Any) -> None:
    spikes = np.zeros((2, 4, 3), dtype=np.uint8)
    spikes[0, 1, 2] = spikes[0, 3, 0] = spikes[1, 0, 1] = 1
    potentials = np.zeros((2, 4, 3))
    potentials[0, :, 2] = 1.0
    figure = spike_raster(
        tmp_path / "s.png", spec=made_spec, spikes=spikes, layers=np.array([0, 0, 1]), potentials=potentials,
        num_steps=np.array([4, 2]),
    )  # fmt: skip
    above, below = figure.axes[0], figure.axes[2]
    assert above.collections[0].get_offsets().tolist() == [[2.0, 2.0], [4.0, 0.0]], "(step, neuron)"
    colours = above.collections[0].get_facecolors()
    assert not np.allclose(colours[0], colours[1]), f"layers have {COLOURS[1]} and {COLOURS[0]}"
    assert below.get_title() == "most: c"
    assert [len(line.get_xdata()) for line in figure.axes[3].lines] == [2, 2, 2], "a shorter row ends earlier"
    assert "16.7% of these neurons" in figure.get_suptitle()
    assert (tmp_path / "s.png").stat().st_size > 1000


def test_one_output_has_no_favourite(tmp_path: Path, made_spec: Any) -> None:
    figure = spike_raster(
        tmp_path / "s.png", spec=made_spec, spikes=np.ones((1, 3, 2), dtype=np.uint8), layers=np.array([0, 0]),
        potentials=np.zeros((1, 3, 1)), num_steps=np.array([3]),
    )  # fmt: skip
    assert figure.axes[1].get_title() == ""
