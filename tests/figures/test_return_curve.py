from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neurofleet.figures.return_curve import return_curve, running_mean


def test_it_shows_episodes_their_mean_and_the_best_validation(tmp_path: Path, made_spec: Any) -> None:
    steps, returns = np.arange(50) * 100.0, np.linspace(0, 200, 50)
    greedy = {"greedy_steps": np.array([1000.0, 2000.0, 3000.0]), "greedy_returns": np.array([50.0, 210.0, 190.0])}
    path = tmp_path / "curve.png"
    figure = return_curve(path, spec=made_spec, episode_steps=steps, episode_returns=returns, **greedy)
    assert path.stat().st_size > 5_000
    (axes,) = figure.axes
    assert axes.collections[0].get_offsets().tolist() == np.stack([steps, returns], axis=1).tolist()
    mean, validation, best = axes.lines
    assert np.asarray(mean.get_ydata()).tolist() == running_mean(returns, 20).tolist()
    assert list(validation.get_ydata()) == [50.0, 210.0, 190.0]
    assert (list(best.get_xdata()), list(best.get_ydata())) == ([2000.0], [210.0])


def test_no_episode_need_have_ended(tmp_path: Path, made_spec: Any) -> None:
    none = np.empty(0)
    greedy = {"greedy_steps": np.array([10.0]), "greedy_returns": np.array([1.0])}
    figure = return_curve(tmp_path / "curve.png", spec=made_spec, episode_steps=none, episode_returns=none, **greedy)
    assert len(figure.axes[0].lines) == 2


def test_the_running_mean_by_hand() -> None:
    assert running_mean(np.array([2.0, 4.0, 6.0, 0.0]), 2).tolist() == pytest.approx([2.0, 3.0, 5.0, 3.0])
