"""The convolutional network against convolutions by hand, and what it must not depend on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from neurofleet.errors import ConfigError, MismatchError
from neurofleet.families._layers import ACTIVATIONS
from neurofleet.families.cnn import CNN
from neurofleet.spec import DataSpec
from neurofleet.steps import Context

MakeSpec = Callable[..., DataSpec]
MakeContext = Callable[..., Context]
STILL = {"degrees": 0.0, "scale": 0.0, "translation": 0.0}
MOVING = {"degrees": 15.0, "scale": 0.1, "translation": 0.1}


def make(spec: DataSpec, **settings: Any) -> CNN:
    chosen: dict[str, Any] = {
        "channels": [8, 4],
        "convolutions_per_stage": 1,
        "kernel_size": 3,
        "norm": "layer",
        "hidden": 6,
        "activation": "relu",
        "dropout": 0.0,
        "label_smoothing": 0.0,
        "augmentation": STILL,
    }
    return CNN(spec=spec, **chosen | settings).double()


def images(num_rows: int, shape: tuple[int, ...] = (2, 9, 8)) -> Tensor:
    return torch.randn(num_rows, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def convolve(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Every output pixel is the kernel's inner product with the patch around it (zeros outside the image)."""
    size, (height, width) = weight.shape[-1], inputs.shape[2:]
    patches = F.unfold(inputs, size, padding=size // 2)
    outputs = (weight.flatten(1) @ patches).view(len(inputs), len(weight), height, width)
    return outputs if bias is None else outputs + bias.view(1, -1, 1, 1)


def normalise(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    flat = inputs.flatten(1)
    mean, variance = flat.mean(1, keepdim=True), flat.var(1, keepdim=True, correction=0)
    normal = ((flat - mean) / (variance + 1e-5).sqrt()).view_as(inputs)
    return normal * weight.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)


def pool(inputs: Tensor) -> Tensor:
    """The largest of each 2x2 square; an odd last row or column is left out."""
    height, width = inputs.shape[2] // 2, inputs.shape[3] // 2
    even = inputs[:, :, : 2 * height, : 2 * width]
    return even.reshape(*inputs.shape[:2], height, 2, width, 2).amax(dim=(3, 5))


@pytest.mark.parametrize("norm", ["layer", "none"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("convolutions_per_stage", [1, 2])
def test_forward_by_hand(norm: str, activation: str, convolutions_per_stage: int, make_spec: MakeSpec) -> None:
    spec = make_spec(shape=(2, 9, 8))
    settings = {"norm": norm, "activation": activation, "convolutions_per_stage": convolutions_per_stage}
    family: Any = make(spec, channels=[16, 4], kernel_size=5, **settings)
    hidden, act = images(3), ACTIVATIONS[activation]
    for index, (convolution, norm_layer) in enumerate(zip(family.convolutions, family.norms, strict=True), start=1):
        hidden = convolve(hidden, convolution.weight, convolution.bias)
        if index % convolutions_per_stage == 0:
            hidden = pool(hidden)
        if norm == "layer":
            assert convolution.bias is None
            hidden = normalise(hidden, norm_layer.weight, norm_layer.bias)
        hidden = act(hidden)
    assert hidden.shape == (3, 4, 2, 2)
    expected = family.readout(act(family.dense(hidden.flatten(1))))
    torch.testing.assert_close(family(images(3)), expected, rtol=1e-10, atol=1e-12)


def test_a_row_does_not_depend_on_its_batch_mates(make_spec: MakeSpec, make_context: MakeContext) -> None:
    family = make(make_spec(shape=(2, 9, 8)), dropout=0.5, augmentation=MOVING)
    batch = images(5)
    others = batch.clone()
    others[1:] = 100.0
    for context in (None, make_context(5, training=False), make_context(5)):
        seen = family.augment(batch, context) if context else batch
        changed = family.augment(others, context) if context else others
        torch.testing.assert_close(family(seen, context)[0], family(changed, context)[0], rtol=1e-13, atol=1e-14)
    alone = family(family.augment(batch[3:4], make_context(1, first_row=3)), make_context(1, first_row=3))
    whole = family(family.augment(batch, make_context(5)), make_context(5))
    torch.testing.assert_close(alone[0], whole[3], rtol=1e-13, atol=1e-14)


def test_the_layout_of_the_input_does_not_matter(make_spec: MakeSpec) -> None:
    family = make(make_spec(shape=(2, 9, 8)))
    batch = images(3)
    torch.testing.assert_close(
        family(batch), family(batch.contiguous(memory_format=torch.channels_last)), rtol=1e-13, atol=1e-14
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": []}, r"at least one stage.*channels=\[\]"),
        ({"channels": [8, 0]}, r"positive channels.*channels=\[8, 0\]"),
        ({"hidden": 0}, r"positive.*hidden=0"),
        ({"convolutions_per_stage": 0}, r"positive.*convolutions_per_stage=0"),
        ({"kernel_size": 4}, r"kernel_size needs an odd number, got 4; try 5"),
        ({"kernel_size": 0}, r"kernel_size needs an odd number, got 0; try 1"),
        ({"kernel_size": -3}, r"kernel_size needs an odd number, got -3; try 1"),
        ({"norm": "batch"}, r"family\.norm needs layer or none, got 'batch'"),
        (
            {"channels": [4] * 4},
            r"4 stages need images of at least 16 pixels a side, got 8 \(made\); .* at most 3 entries",
        ),
        ({"activation": "swish"}, r"needs a known activation, got 'swish'"),
        ({"dropout": 1.5}, r"family\.dropout needs 0 <= dropout < 1"),
        ({"augmentation": STILL | {"degrees": -1.0}}, r"family\.augmentation\.degrees needs a number >= 0, got -1"),
        ({"augmentation": STILL | {"scale": 1.0}}, r"family\.augmentation\.scale needs a number .*below 1, got 1"),
        (
            {"augmentation": STILL | {"shear": 1.0}},
            r"family\.augmentation needs the keys degrees, scale, translation, got",
        ),
        ({"augmentation": {}}, r"family\.augmentation needs the keys degrees, scale, translation, got none"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str, make_spec: MakeSpec) -> None:
    with pytest.raises(ConfigError, match=message):
        make(make_spec(shape=(2, 9, 8)), **settings)


def test_as_many_stages_as_the_error_allows_do_work(make_spec: MakeSpec) -> None:
    family = make(make_spec(shape=(2, 9, 8)), channels=[4] * 3)
    assert family(images(2)).shape == (2, 3)


def test_tables_are_refused(make_spec: MakeSpec) -> None:
    with pytest.raises(MismatchError, match="CNN needs data of kind image, got made, which is tabular"):
        make(make_spec(shape=(4,)))


def test_it_exhibits_its_first_filters(make_spec: MakeSpec) -> None:
    family = make(make_spec(shape=(2, 9, 8)))
    shown = family.exhibits((images(3), torch.zeros(3, dtype=torch.int64)))
    assert torch.equal(shown["weight_filters"]["filters"], family.convolutions[0].weight)
    assert "worst_mistakes" in shown
