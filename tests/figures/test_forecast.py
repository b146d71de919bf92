from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neurofleet.figures.forecast import forecast


def test_each_row_has_its_past_what_came_and_what_was_said(tmp_path: Path, made_spec: Any) -> None:
    history = np.array([[1.0, 2.0, 3.0, np.nan], [5.0, 6.0, 7.0, 8.0]])
    targets, predictions = np.array([[4.0, 5.0], [9.0, 10.0]]), np.array([[4.5, 5.0], [9.0, 11.5]])
    figure = forecast(tmp_path / "f.png", spec=made_spec, history=history, targets=targets, predictions=predictions)
    for row, axes in enumerate(figure.axes):
        past, true, said = axes.lines[:3]
        assert past.get_ydata().tolist() == history[row][~np.isnan(history[row])].tolist()
        assert past.get_xdata()[-1] == 0, "a shorter past ends where the forecast begins, too"
        assert true.get_xdata().tolist() == said.get_xdata().tolist() == [1, 2]
        assert true.get_ydata().tolist() == targets[row].tolist()
        assert said.get_ydata().tolist() == predictions[row].tolist()
    assert "error of these rows 0.5" in figure.get_suptitle()
    assert (tmp_path / "f.png").stat().st_size > 5000


@pytest.mark.parametrize(("num_rows", "num_steps"), [(1, 0), (4, 50)])
def test_it_draws_any_number_of_rows(num_rows: int, num_steps: int, tmp_path: Path, made_spec: Any) -> None:
    rows = np.ones((num_rows, 3))
    figure = forecast(
        tmp_path / "f.png", spec=made_spec, history=np.ones((num_rows, num_steps)), targets=rows, predictions=rows
    )
    seen = [axes for axes in figure.axes if axes.get_visible()]
    assert len(seen) == num_rows
    assert all(len(axes.lines[0].get_ydata()) == min(num_steps, 9) for axes in seen), "of a long past its end"
