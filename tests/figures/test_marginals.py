from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neurofleet.figures.marginals import NUM_COLUMNS, gap, marginals


def test_the_columns_that_differ_most_come_first(tmp_path: Path, made_spec: Any) -> None:
    generator = np.random.default_rng(0)
    real = generator.normal(size=(200, 4))
    generated = generator.normal([0.0, 5.0, 0.0, 1.0], size=(300, 4))
    figure = marginals(tmp_path / "m.png", spec=made_spec, real=real, generated=generated)
    names = [axes.get_title().split(":")[0] for axes in figure.axes]
    assert names[:2] == ["x", "z"]
    assert set(names[2:]) == {"w", "y"}
    shares = figure.axes[2].patches[0].get_data().values  # type: ignore[attr-defined]
    assert shares.sum() == pytest.approx(1), "all real rows are within the edges"


def test_a_wide_table_and_a_column_that_never_changes(tmp_path: Path, made_spec: Any) -> None:
    names = tuple(f"column {index}" for index in range(40))
    spec = dataclasses.replace(made_spec, shape=(40,), inputs=names)
    figure = marginals(tmp_path / "m.png", spec=spec, real=np.ones((9, 40)), generated=np.ones((7, 40)))
    assert len(figure.axes) == NUM_COLUMNS
    assert {axes.get_title()[-4:] for axes in figure.axes} == {"0.00"}


def test_gap() -> None:
    assert gap(np.array([0.0, 1.0]), np.array([2.0, 3.0])) == 1
    assert gap(np.array([0.0, 1.0]), np.array([0.0, 1.0])) == 0
    assert gap(np.array([0.0, 1.0]), np.array([0.0, 0.0])) == 0.5
