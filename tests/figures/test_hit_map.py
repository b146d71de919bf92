from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from neurofleet.figures.hit_map import hit_map

HITS = np.array([[4, 0], [1, 1]])
LABELS = np.array([[0, 0], [2, 1]])


def test_short_names_stand_in_the_discs(tmp_path: Path, made_spec: Any) -> None:
    figure = hit_map(tmp_path / "h.png", spec=made_spec, hits=HITS, hexagonal=np.array(False), labels=LABELS)
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["a", "c", "b"]
    sizes = [line.get_markersize() for line in axes.lines]
    assert sizes[0] == 2 * sizes[1] == 2 * sizes[2], "the area counts"
    assert "25% of the units win none" in axes.get_title()
    assert not figure.legends
    assert (tmp_path / "h.png").stat().st_size > 1000


def test_long_names_have_a_legend(tmp_path: Path, made_spec: Any) -> None:
    spec = dataclasses.replace(made_spec, classes=("malignant", "benign", "unclear"))
    figure = hit_map(tmp_path / "h.png", spec=spec, hits=HITS, hexagonal=np.array(True), labels=LABELS)
    assert [text.get_text() for text in figure.axes[0].texts] == ["4", "1", "1"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["malignant", "benign", "unclear"]


def test_without_classes_hits_are_counted(tmp_path: Path, made_spec: Any) -> None:
    figure = hit_map(tmp_path / "h.png", spec=made_spec, hits=HITS, hexagonal=np.array(False))
    assert [text.get_text() for text in figure.axes[0].texts] == ["4", "1", "1"]
    assert len({line.get_color() for line in figure.axes[0].lines}) == 1
