from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neurofleet.figures.code_map import code_map, plane

GENERATOR = np.random.default_rng(0)


def test_a_plane_of_two_is_the_code_itself() -> None:
    codes = GENERATOR.normal(size=(9, 2))
    points, names = plane(codes)
    assert points is codes
    assert names == ("code 0", "code 1")
    points, _ = plane(codes[:, :1])
    assert points.tolist() == [[value, 0] for value in codes[:, 0]]


def test_a_wide_code_is_seen_along_its_principal_components() -> None:
    hidden = GENERATOR.normal(size=(400, 2)) * [5, 2]
    turn, _ = np.linalg.qr(GENERATOR.normal(size=(6, 6)))
    points, names = plane(hidden @ turn[:2] + 3)
    correlations = np.abs(np.corrcoef(points.T, hidden.T)[:2, 2:])
    assert correlations.diagonal().min() > 0.99
    shares = hidden.var(axis=0) / hidden.var(axis=0).sum()
    assert names[0] == pytest.approx(f"first principal component ({shares[0]:.0%})")


def test_a_code_wider_than_its_rows_are_many() -> None:
    """The same plane from products of rows as from singular values."""
    codes = GENERATOR.normal(size=(7, 30))
    points, names = plane(codes)
    left, scales, _ = np.linalg.svd(codes - codes.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(np.abs(points), np.abs(left[:, :2] * scales[:2]), atol=1e-9)
    assert names[1] == f"second ({scales[1] ** 2 / (scales**2).sum():.0%})"


def test_classes_have_colours_and_names(tmp_path: Path, made_spec: Any) -> None:
    targets = np.array([0, 0, 1, 1, 1])
    figure = code_map(tmp_path / "m.png", spec=made_spec, codes=np.arange(10.0).reshape(5, 2), targets=targets)
    axes = figure.axes[0]
    assert [len(np.asarray(one.get_offsets())) for one in axes.collections] == [2, 3, 0]
    assert axes.collections[1].get_offsets().tolist() == [[4, 5], [6, 7], [8, 9]]
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b", "c"]


def test_values_and_counts_have_a_scale(tmp_path: Path, made_spec: Any) -> None:
    codes = GENERATOR.normal(size=(4, 5))
    changes: dict[str, Any] = {"task": "regression", "classes": (), "targets": ("height",)}
    spec = dataclasses.replace(made_spec, **changes, target_mean=(10.0,), target_std=(2.0,))
    figure = code_map(tmp_path / "m.png", spec=spec, codes=codes, targets=np.array([[0.0], [1.0], [2.0], [-1.0]]))
    assert figure.axes[0].collections[0].get_array().tolist() == [10, 12, 14, 8]
    assert figure.axes[1].get_ylabel() == "height"
    spec = dataclasses.replace(made_spec, task="multilabel", classes=("a", "b"), targets=("a", "b"))
    figure = code_map(tmp_path / "m.png", spec=spec, codes=codes, targets=np.array([[0, 0], [1, 0], [1, 1], [0, 1]]))
    assert figure.axes[0].collections[0].get_array().tolist() == [0, 1, 2, 1]


def test_many_persons_are_colours_alone(tmp_path: Path, made_spec: Any) -> None:
    spec = dataclasses.replace(made_spec, task="verification", classes=tuple(map(str, range(40))))
    figure = code_map(tmp_path / "m.png", spec=spec, codes=np.ones((40, 2)), targets=np.arange(40))
    assert figure.axes[0].get_legend() is None
    assert figure.axes[1].get_ylabel() == "one of 40 kinds"
