from __future__ import annotations

import dataclasses
from pathlib import Path

import matplotlib.image
import numpy as np

from neurofleet.figures.attention_maps import attention_maps
from neurofleet.spec import DataSpec


def weights(num_rows: int, num_heads: int, length: int) -> np.ndarray:
    random = np.random.default_rng(0).random((num_rows, num_heads, length, length))
    return random / random.sum(axis=-1, keepdims=True)


def test_an_image_stands_beside_what_each_head_looks_at(made_spec: DataSpec, tmp_path: Path) -> None:
    spec = dataclasses.replace(made_spec, kind="image", shape=(1, 8, 12))
    looks = np.zeros((2, 3, 6, 6))
    looks[..., 4] = 1  # all look at the second row's second patch
    images = np.arange(192.0).reshape(2, 1, 8, 12)
    figure = attention_maps(tmp_path / "maps.png", spec=spec, inputs=images, weights=looks, grid=np.array([2, 3]))
    assert len(figure.axes) == 2 * 4
    assert [axes.get_title() for axes in figure.axes[:5]] == ["", "head 0", "head 1", "head 2", ""]
    np.testing.assert_array_equal(figure.axes[4].images[0].get_array(), images[1, 0])
    assert figure.axes[1].images[0].get_array().tolist() == [[0, 0, 0], [0, 6, 0]], "six times its share"
    height, width, _ = matplotlib.image.imread(tmp_path / "maps.png").shape
    assert 300 < height < width < 1000


def test_colours_are_colours(made_spec: DataSpec, tmp_path: Path) -> None:
    spec = dataclasses.replace(made_spec, kind="image", shape=(3, 4, 4))
    images = np.full((1, 3, 4, 4), 300.0)
    figure = attention_maps(
        tmp_path / "m.png", spec=spec, inputs=images, weights=weights(1, 1, 4), grid=np.array([2, 2])
    )
    assert figure.axes[0].images[0].get_array().shape == (4, 4, 3)


def test_a_text_is_named_token_by_token_up_to_its_end(made_spec: DataSpec, tmp_path: Path) -> None:
    spec = dataclasses.replace(
        made_spec, kind="text", task="language", shape=(5,), vocabulary=("a", " ", "\n", "$"), tokenizer="characters"
    )
    looks = weights(1, 2, 5)
    figure = attention_maps(tmp_path / "m.png", spec=spec, inputs=np.array([[2, 3, 4, 5, 0]]), weights=looks)
    assert len(figure.axes) == 2
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "␣", "↵", "$"]
    np.testing.assert_array_equal(figure.axes[1].images[0].get_array(), looks[0, 1, :4, :4])


def test_a_long_text_is_cut(made_spec: DataSpec, tmp_path: Path) -> None:
    spec = dataclasses.replace(made_spec, kind="text", shape=(90,), vocabulary=("word",), tokenizer="words")
    figure = attention_maps(tmp_path / "m.png", spec=spec, inputs=np.full((1, 90), 2), weights=weights(1, 1, 90))
    assert figure.axes[0].images[0].get_array().shape == (40, 40)


def test_a_sequence_ends_where_its_steps_do(made_spec: DataSpec, tmp_path: Path) -> None:
    spec = dataclasses.replace(made_spec, kind="sequence", shape=(6, 2))
    steps = np.ones((5, 6, 2))
    steps[1, 4:] = np.nan
    figure = attention_maps(tmp_path / "m.png", spec=spec, inputs=steps, weights=weights(5, 2, 6))
    assert [axes.images[0].get_array().shape[0] for axes in figure.axes] == [6, 6, 4, 4, 6, 6], "three rows are enough"
