"""The cells against torch's modules, both ways through them against each other, and what padding must never change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neurofleet.errors import ConfigError
from neurofleet.families._recurrence import (
    CELLS,
    MaskedConvolution,
    Recurrence,
    StepDropout,
    checked_cell,
    last_of,
    leading,
    mean_of,
    turned,
)
from neurofleet.steps import Context

MODULES: dict[str, Callable[..., nn.RNNBase]] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
cells = pytest.mark.parametrize("cell", CELLS)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def make(cell: str) -> Recurrence:
    recurrence = Recurrence(cell, 3, 5).double()
    with torch.no_grad():  # so that no bias is zero
        for index, weight in enumerate(recurrence.parameters()):
            weight.copy_(numbers(*weight.shape, seed=index) * 0.5)
    return recurrence


def written_out(recurrence: Recurrence, *arguments: Any) -> Any:
    """What a recurrence gives within torch.func."""
    return torch.func.vmap(lambda inputs, *state: recurrence(inputs, state or None))(
        *(tensor.unsqueeze(0) for tensor in arguments)
    )


@cells
@pytest.mark.parametrize("within", [False, True])
def test_a_cell_is_torchs_own(cell: str, within: bool) -> None:
    recurrence, inputs = make(cell), numbers(4, 6, 3)
    module: Any = MODULES[cell](3, 5, batch_first=True).double()
    module.load_state_dict(recurrence.state_dict())
    expected, last = module(inputs)
    outputs, state = written_out(recurrence, inputs) if within else recurrence(inputs)
    torch.testing.assert_close(outputs.view_as(expected), expected, rtol=1e-10, atol=1e-12)
    for ours, theirs in zip(state, last if cell == "lstm" else (last,), strict=True):
        torch.testing.assert_close(ours.reshape(4, 5), theirs[0], rtol=1e-10, atol=1e-12)


@cells
def test_both_ways_have_the_same_gradients(cell: str) -> None:
    recurrence, inputs, weights = make(cell), numbers(4, 6, 3), numbers(4, 6, 5, seed=1)
    parameters = dict(recurrence.named_parameters())

    def loss(values: dict[str, Tensor], inputs: Tensor) -> Tensor:
        outputs, state = torch.func.functional_call(recurrence, values, (inputs,))
        return (outputs * weights).sum() + state[-1].square().sum()

    by_kernel = torch.autograd.grad(loss(parameters, inputs), list(parameters.values()))
    stacked = {name: torch.stack([value, value * 0.5]) for name, value in parameters.items()}
    by_steps = torch.func.vmap(torch.func.grad(loss), in_dims=(0, None))(stacked, inputs)
    for (name, _), gradient in zip(parameters.items(), by_kernel, strict=True):
        torch.testing.assert_close(by_steps[name][0], gradient, rtol=1e-10, atol=1e-12)


@cells
def test_a_sequence_in_two_pieces_is_one_sequence(cell: str) -> None:
    recurrence, inputs = make(cell), numbers(4, 7, 3)
    whole, last = recurrence(inputs)
    first, between = recurrence(inputs[:, :3])
    for rest, state in (recurrence(inputs[:, 3:], between), written_out(recurrence, inputs[:, 3:], *between)):
        torch.testing.assert_close(torch.cat([first, rest.view(4, 4, 5)], dim=1), whole, rtol=1e-10, atol=1e-12)
        for ours, theirs in zip(state, last, strict=True):
            torch.testing.assert_close(ours.view_as(theirs), theirs, rtol=1e-10, atol=1e-12)


@cells
def test_recurrent_weights_start_orthogonal(cell: str) -> None:
    recurrence = Recurrence(cell, 3, 5)
    for gate in recurrence.get_parameter("weight_hh_l0").split(5):
        torch.testing.assert_close(gate @ gate.T, torch.eye(5), rtol=1e-5, atol=1e-5)
    biases = recurrence.get_parameter("bias_ih_l0"), recurrence.get_parameter("bias_hh_l0")
    ones = 5.0 if cell == "lstm" else 0.0
    assert sum(bias.sum() for bias in biases) == ones, "an LSTM forgets nothing at first"
    assert cell != "lstm" or bool((biases[0][5:10] == 1).all())


def test_an_unknown_cell_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"family\.cell needs a known cell, got 'gur'.*gru"):
        checked_cell("gur")


def test_leading_steps_end_at_the_first_that_is_missing() -> None:
    there = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    mask, lengths = leading(there)
    assert mask.tolist() == [[True, True, False, False], [False] * 4, [True] * 4]
    assert lengths.tolist() == [2, 1, 4]


def test_a_sequence_is_reversed_within_its_own_length() -> None:
    values = torch.arange(8.0).view(2, 4, 1)
    lengths = torch.tensor([3, 4])
    assert turned(values, lengths).squeeze(2).tolist() == [[2, 1, 0, 3], [7, 6, 5, 4]]
    assert torch.equal(turned(turned(values, lengths), lengths), values)


def test_without_padding_there_is_nothing_to_leave_out() -> None:
    values, lengths, mask = numbers(3, 4, 2), torch.full((3,), 4), torch.ones(3, 4, 1, dtype=torch.float64)
    assert torch.equal(turned(values, None), turned(values, lengths))
    assert torch.equal(last_of(values, None), last_of(values, lengths))
    torch.testing.assert_close(mean_of(values, None), mean_of(values, mask))
    layer = MaskedConvolution(2, 3, 3).double()
    assert torch.equal(layer(values, None), layer(values, mask))


def test_dropout_takes_the_same_units_from_every_step() -> None:
    dropout, ones = StepDropout(0.25, site=3), torch.ones(64, 5, 40, dtype=torch.float64)
    context = Context(0, 7, 0.0, torch.arange(64, dtype=torch.int32), training=True, measure=False)
    kept = dropout(ones, context)
    assert bool((kept == kept[:, :1]).all())
    assert set(kept.unique().tolist()) == {0.0, 1 / 0.75}
    assert abs((kept > 0).double().mean() - 0.75) < 0.02
    assert torch.equal(dropout(ones, None), ones)


def test_a_convolution_by_hand() -> None:
    layer = MaskedConvolution(3, 4, 5).double()
    with torch.no_grad():
        layer.scale.copy_(numbers(4, seed=1))
        layer.shift.copy_(numbers(4, seed=2))
    inputs = numbers(1, 6, 3)
    padded = torch.cat([torch.zeros(1, 2, 3), inputs, torch.zeros(1, 2, 3)], dim=1)
    by_hand = torch.stack(
        [torch.einsum("tc,oct->o", padded[0, step : step + 5], layer.convolution.weight) for step in range(6)]
    )
    normal = (by_hand - by_hand.mean()) / (by_hand.var(correction=0) + 1e-5).sqrt()
    expected = torch.relu(normal * layer.scale + layer.shift)
    outputs = layer(inputs, torch.ones(1, 6, 1))
    torch.testing.assert_close(outputs[0], expected, rtol=1e-10, atol=1e-12)
    longer = torch.cat([inputs, torch.zeros(1, 5, 3)], dim=1)
    mask = (torch.arange(11) < 6).double().view(1, 11, 1)
    torch.testing.assert_close(layer(longer, mask)[:, :6], outputs, rtol=1e-12, atol=1e-13)
    assert not layer(longer, mask)[:, 6:].any()
