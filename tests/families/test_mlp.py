"""The multi-layer perceptron against matrices by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from neurofleet import counter
from neurofleet.errors import ConfigError
from neurofleet.families.mlp import MLP
from neurofleet.spec import DataSpec
from neurofleet.steps import Context

MakeSpec = Callable[..., DataSpec]
BY_HAND: dict[str, Callable[[Any], Any]] = {
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "gelu": lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
}


def make(spec: DataSpec, **settings: Any) -> MLP:
    chosen = {"hidden": [5, 7], "activation": "relu", "dropout": 0.0, "embedding": 3, "label_smoothing": 0.0}
    still = {"augmentation": {"degrees": 0.0, "scale": 0.0, "translation": 0.0}}
    return MLP(spec=spec, **chosen | still | settings).double()


def layers(family: MLP) -> list[tuple[Any, Any]]:
    linears = [*family.layers, family.readout]
    return [(one.weight.detach().numpy(), one.bias.detach().numpy()) for one in linears]  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("activation", BY_HAND)
@pytest.mark.parametrize("hidden", [[], [5], [5, 7, 3]], ids=str)
def test_forward_is_matrices_and_activations(activation: str, hidden: list[int], make_spec: MakeSpec) -> None:
    family = make(make_spec(), hidden=hidden, activation=activation)
    inputs = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = inputs.numpy()
    *inner, (weight, bias) = layers(family)
    for inner_weight, inner_bias in inner:
        expected = BY_HAND[activation](expected @ inner_weight.T + inner_bias)
    expected = expected @ weight.T + bias
    outputs = family(inputs).detach().numpy()
    assert outputs.shape == (6, 3)
    np.testing.assert_allclose(outputs, expected, rtol=1e-12, atol=1e-14)


def test_dropout_zeroes_and_scales_by_the_counter(make_spec: MakeSpec, make_context: Callable[..., Context]) -> None:
    family = make(make_spec(), hidden=[50], dropout=0.4)
    inputs = torch.randn(6, 4, dtype=torch.float64)
    context = make_context(6, seed=3, step=9, first_row=2)
    keep = counter.bernoulli(counter.fold(3, 9, 0), context.rows, (50,), 0.6).double().numpy()
    assert 0.4 < keep.mean() < 0.8
    (first, first_bias), (second, second_bias) = layers(family)
    hidden = np.maximum(inputs.numpy() @ first.T + first_bias, 0) * keep / 0.6
    outputs = family(inputs, context).detach().numpy()
    np.testing.assert_allclose(outputs, hidden @ second.T + second_bias, rtol=1e-12, atol=1e-14)
    assert torch.equal(family(inputs), family(inputs, make_context(6, training=False))), "serving is without dropout"
    # Rows of a batch that two workers share are dropped as they would be in one.
    parts = [
        family(inputs[:2], make_context(2, seed=3, step=9, first_row=2)),
        family(inputs[2:], make_context(4, seed=3, step=9, first_row=4)),
    ]
    torch.testing.assert_close(torch.cat(parts), family(inputs, context), rtol=1e-14, atol=1e-14)


def test_two_layers_drop_apart(make_spec: MakeSpec, make_context: Callable[..., Context]) -> None:
    family = make(make_spec(), hidden=[30, 30], dropout=0.5)
    context, ones = make_context(40), torch.ones(40, 30, dtype=torch.float64)
    masks = [dropout(ones, context) for dropout in family.dropouts]
    assert not torch.equal(masks[0], masks[1])


def test_an_image_is_flattened(make_spec: MakeSpec) -> None:
    family = make(make_spec(shape=(2, 3, 4)))
    images = torch.randn(5, 2, 3, 4, dtype=torch.float64)
    assert family.layers[0].weight.shape == (5, 24)  # type: ignore[union-attr]
    torch.testing.assert_close(family(images), family(images.contiguous(memory_format=torch.channels_last)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden": [5, 0]}, r"family\.hidden needs layers of at least one unit, got \[5, 0\]"),
        ({"hidden": [-1]}, r"family\.hidden needs layers of at least one unit"),
        ({"activation": "tan"}, r"family\.activation needs a known activation, got 'tan'; did you mean tanh"),
        ({"dropout": 1.0}, r"family\.dropout needs 0 <= dropout < 1, got 1\.0"),
        ({"dropout": -0.1}, r"family\.dropout needs 0 <= dropout < 1"),
        ({"dropout": math.nan}, r"family\.dropout needs 0 <= dropout < 1"),
        ({"label_smoothing": 1.0}, r"family\.label_smoothing needs 0 <= label_smoothing < 1"),
        (
            {"augmentation": {"degrees": 20.0, "scale": 0.0, "translation": 0.0}},
            r"family\.augmentation needs images, got made, which is tabular; set its numbers to 0\.0",
        ),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str, make_spec: MakeSpec) -> None:
    with pytest.raises(ConfigError, match=message):
        make(make_spec(), **settings)


def test_dropout_is_checked_where_there_is_no_layer_to_drop(make_spec: MakeSpec) -> None:
    with pytest.raises(ConfigError, match=r"family\.dropout"):
        make(make_spec(), hidden=[], dropout=7.0)


def test_indices_are_embedded(make_spec: MakeSpec) -> None:
    family = make(make_spec(kind="categorical", shape=(2,), cardinalities=(4, 9)), hidden=[])
    inputs = torch.tensor([[3, 8], [0, 1]])
    tables = [embed.weight.detach().numpy() for embed in family.embeddings]  # type: ignore[union-attr]
    ((weight, bias),) = layers(family)
    hidden = np.concatenate([tables[0][[3, 0]], tables[1][[8, 1]]], axis=1)
    np.testing.assert_allclose(family(inputs).detach().numpy(), hidden @ weight.T + bias, rtol=1e-12)


def test_after_the_end_of_a_sequence_is_the_mean(make_spec: MakeSpec) -> None:
    family = make(make_spec(shape=(3, 2)))
    short = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [math.nan, math.nan]]], dtype=torch.float64)
    assert torch.equal(family(short), family(short.nan_to_num()))


def test_images_are_distorted_in_training_alone(make_spec: MakeSpec, make_context: Callable[..., Context]) -> None:
    family = make(make_spec(shape=(1, 6, 6)), augmentation={"degrees": 20.0, "scale": 0.1, "translation": 0.1})
    images = torch.rand(3, 1, 6, 6, dtype=torch.float64)
    assert torch.equal(family.augment(images, make_context(3, training=False)), images)
    assert not torch.equal(family.augment(images, make_context(3)), images)
