from __future__ import annotations

from pathlib import Path

import matplotlib.image
import pytest

from neurofleet.figures.confusion_matrices import WIDEST, confusion_matrices
from neurofleet.figures.confusion_matrix import side


def test_a_panel_for_each_network_on_the_same_rows(tmp_path: Path) -> None:
    predictions = {"fine-tuned": [0, 0, 1, 1], "from scratch": [0, 1, 1, 0]}
    figure = confusion_matrices([0, 0, 1, 1], predictions, ["no", "yes"], tmp_path / "m.png", title="digits")
    ours, control, scale = figure.axes
    assert ours.get_title() == "fine-tuned\naccuracy 100.00% of 4 rows"
    assert control.get_title() == "from scratch\naccuracy 50.00% of 4 rows"
    assert [text.get_text() for text in control.texts] == ["1", "1", "1", "1"]
    assert ours.images[0].get_array().tolist() == [[1, 0], [0, 1]]
    assert [label.get_text() for label in ours.get_yticklabels()] == ["no", "yes"]
    assert [label.get_text() for label in control.get_yticklabels()] == ["", ""]
    assert scale.get_ylabel() == "share of the true class"
    assert ours.images[0].get_clim() == control.images[0].get_clim() == (0, 1)
    assert figure.get_suptitle() == "digits"
    height, width, _ = matplotlib.image.imread(tmp_path / "m.png").shape
    assert width > 1.5 * height


def test_three_large_ones_stay_within_a_page(tmp_path: Path) -> None:
    everyone = range(12)
    predictions = dict.fromkeys(("a", "b", "c"), everyone)
    assert 3 * side(12) > WIDEST
    figure = confusion_matrices(everyone, predictions, [str(index) for index in everyone], tmp_path / "m.png")
    assert figure.get_size_inches()[0] < WIDEST + 1


def test_no_network_is_no_figure(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one network"):
        confusion_matrices([0], {}, ["a"], tmp_path / "m.png")
