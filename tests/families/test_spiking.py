"""Leaky integrate-and-fire neurons: the membrane's trace by hand, snntorch's `Leaky`, codes, what must not matter."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import snntorch
import torch
from torch import Tensor

from neurofleet.errors import ConfigError, MismatchError
from neurofleet.families._spikes import Spike
from neurofleet.families.spiking import Spiking
from neurofleet.spec import DataSpec
from neurofleet.steps import Context

MakeSpec = Callable[..., DataSpec]
MakeContext = Callable[..., Context]
STILL = {"degrees": 0.0, "scale": 0.0, "translation": 0.0}


def make(spec: DataSpec, **settings: Any) -> Spiking:
    chosen: dict[str, Any] = {
        "architecture": "dense",
        "hidden": [6],
        "channels": [4],
        "kernel_size": 3,
        "norm": "none",
        "num_steps": 7,
        "own_time": False,
        "coding": "direct",
        "leak": 0.9,
        "surrogate": "fast_sigmoid",
        "slope": 5.0,
        "label_smoothing": 0.0,
        "augmentation": STILL,
    }
    return Spiking(spec=spec, **chosen | settings).double()


def rows(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_the_membrane_by_hand(make_spec: MakeSpec) -> None:
    """A current of 0.6 at every step, leak 0.5: 0.6, 0.9, 1.05 fires, 0.125, 0.6625, 0.93125, 1.065625 fires."""
    family = make(make_spec(task="regression", shape=(1,), num_outputs=1), hidden=[1], leak=0.5)
    with torch.no_grad():
        family.layers[0].weight.fill_(0.6)
        family.layers[0].bias.zero_()
        family.readout.weight.fill_(2.0)
        family.readout.bias.zero_()
    course = family.course(torch.ones(1, 1, dtype=torch.float64))
    assert course.spikes[0].flatten().tolist() == [0, 0, 1, 0, 0, 0, 1]
    potentials = [0.0, 0.0, 2.0, 1.0, 0.5, 0.25, 2.125]
    assert course.potentials.flatten().tolist() == pytest.approx(potentials)
    assert course.outputs.item() == pytest.approx(sum(potentials) / 7)
    assert family.features(torch.ones(1, 1, dtype=torch.float64)).item() == pytest.approx(sum(potentials) / 7 / 2)


@pytest.mark.parametrize("own_time", [False, True])
def test_the_answer_is_linear_in_the_features(own_time: bool, make_spec: MakeSpec) -> None:
    """Of rows that last equally long; the rest is what the readout's bias gathers."""
    family = make(make_spec(shape=(6, 2)), own_time=own_time)
    inputs = 2 * rows(5, 6, 2)
    inputs[:, 4:] = math.nan
    rest = family(inputs) - family.features(inputs) @ family.readout.weight.T
    torch.testing.assert_close(rest, rest[:1].expand_as(rest), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("surrogate", ["fast_sigmoid", "arctangent"])
def test_spikes_and_gradients_are_those_of_snntorch(surrogate: str, make_spec: MakeSpec) -> None:
    """Two layers of its `Leaky`, one step after another."""
    family: Any = make(make_spec(shape=(4,)), hidden=[6, 5], surrogate=surrogate, slope=3.0)
    inputs = 3 * rows(8, 4)
    torch.nn.init.constant_(family.layers[1].bias, 0.3)
    course = family.course(inputs)
    course.outputs.square().sum().backward()
    ours = [parameter.grad.clone() for parameter in family.parameters()]
    family.zero_grad()
    gradient = {"fast_sigmoid": snntorch.surrogate.fast_sigmoid, "arctangent": snntorch.surrogate.atan}[surrogate]
    slope = {"slope": 3.0} if surrogate == "fast_sigmoid" else {"alpha": 3.0}
    neurons = [snntorch.Leaky(beta=0.9, spike_grad=gradient(**slope)).double() for _ in range(2)]
    readout = snntorch.Leaky(beta=0.9, reset_mechanism="none", spike_grad=gradient(**slope)).double()
    memories = [neuron.reset_mem() for neuron in (*neurons, readout)]
    potentials, fired = [], [[], []]
    for _ in range(7):
        signal = inputs
        for index, neuron in enumerate(neurons):
            spike, memories[index] = neuron(family.layers[index](signal), memories[index])
            signal = spike.double()  # whatever goes in, its spikes are single
            fired[index].append(signal)
        _, memories[2] = readout(family.readout(signal), memories[2])
        potentials.append(memories[2])
    for layer, theirs in zip(course.spikes, fired, strict=True):
        assert torch.equal(layer, torch.stack(theirs))
        assert 0 < layer.mean() < 0.9
    torch.testing.assert_close(course.potentials, torch.stack(potentials))
    torch.stack(potentials).mean(0).square().sum().backward()
    for mine, parameter in zip(ours, family.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("surrogate", "expected"),
    [("fast_sigmoid", 1 / (1 + 4 * 0.5) ** 2), ("arctangent", 2 / (1 + (math.pi / 2 * 4 * 0.5) ** 2))],
)
def test_the_surrogate_by_hand(surrogate: str, expected: float) -> None:
    distance = torch.tensor([-0.5, 0.5, 0.0], dtype=torch.float64, requires_grad=True)
    spikes = Spike.apply(distance, surrogate, 4.0)
    spikes.sum().backward()
    assert spikes.tolist() == [0.0, 1.0, 0.0]
    assert distance.grad.tolist()[:2] == pytest.approx([expected, expected])


def coded(family: Spiking, inputs: Tensor, context: Context | None = None) -> Tensor:
    return family.encode(inputs, context)[:, 0, 0]


def test_codes(make_spec: MakeSpec, make_context: MakeContext) -> None:
    spec = make_spec(shape=(1,))
    share = torch.tensor([[0.0], [1.0], [2.0], [4.0]], dtype=torch.float64)
    for coding, trains in {
        "rate": {0.0: "00000000", 1.0: "00010001", 2.0: "01010101", 4.0: "11111111"},
        "latency": {0.0: "00000000", 1.0: "00000100", 2.0: "00001000", 4.0: "10000000"},
    }.items():
        family = make(spec, coding=coding, num_steps=8)
        family.start((share, torch.zeros(4)))
        for value, train in trains.items():
            spikes = coded(family, torch.tensor([[value]], dtype=torch.float64))
            assert "".join(str(int(spike)) for spike in spikes) == train, (coding, value)
    family = make(spec, coding="rate", num_steps=4000)
    family.start((share, torch.zeros(4)))
    drawn = family.encode(share, make_context(4)).mean(0).flatten()
    torch.testing.assert_close(drawn, share.flatten() / 4, atol=0.03, rtol=0.0)
    assert drawn[0] == 0.0
    assert drawn[3] == 1.0
    again, other = family.encode(share, make_context(4)), family.encode(share, make_context(4, step=1))
    assert torch.equal(again, family.encode(share, make_context(4)))
    assert not torch.equal(again, other)


def test_padding_after_the_end_changes_nothing(make_spec: MakeSpec, make_context: MakeContext) -> None:
    family = make(make_spec(shape=(9, 2)), own_time=True, hidden=[6, 5], norm="layer")
    short = rows(3, 5, 2)
    padded = torch.cat([short, torch.full((3, 4, 2), torch.nan, dtype=torch.float64)], dim=1)
    outputs, scores = family.answer(padded, make_context(3))
    alone, expected = family.answer(short, make_context(3))
    torch.testing.assert_close(outputs, alone)
    torch.testing.assert_close(scores, expected)


def test_a_sequence_as_a_whole_is_a_table_of_its_numbers(make_spec: MakeSpec) -> None:
    whole, table = make(make_spec(shape=(9, 2))), make(make_spec(shape=(18,)))
    table.load_state_dict({name: value for name, value in whole.state_dict().items() if "." in name}, strict=False)
    inputs = rows(3, 9, 2)
    torch.testing.assert_close(whole(inputs), table(inputs.flatten(1)))


def test_spikes_are_counted(make_spec: MakeSpec, make_context: MakeContext) -> None:
    spec = make_spec(shape=(1, 8, 8))
    family = make(spec, architecture="convolutional", hidden=[5], norm="layer")
    inputs = rows(3, 1, 8, 8)
    layers = family.course(inputs).spikes
    assert [layer.shape for layer in layers] == [(7, 3, 4, 4, 4), (7, 3, 5)]
    spikes = sum(layer.flatten(2).sum((0, 2)) for layer in layers)
    _, scores = family.answer(inputs, make_context(3))
    assert torch.equal(scores["spikes"], spikes)
    torch.testing.assert_close(scores["spike_rate"], spikes / (7 * (64 + 5)))
    assert spikes.min() > 0
    assert {"spikes", "spike_rate"} <= set(family.score_names)
    raster = family.exhibits((inputs, torch.tensor([0, 1, 2])))["spike_raster"]
    assert raster["spikes"].shape == (3, 7, 65)
    assert raster["layers"].tolist() == [0] * 60 + [1] * 5


@pytest.mark.parametrize("task", ["multiclass", "binary", "multilabel", "regression"])
def test_every_task(task: str, make_spec: MakeSpec) -> None:
    spec = make_spec(task=task, shape=(4,), num_outputs=2)
    assert make(spec)(rows(3, 4)).shape == (3, spec.num_outputs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "round"}, r"family\.architecture needs one of dense, convolutional, got 'round'"),
        ({"coding": "morse"}, r"family\.coding needs one of direct, rate, latency, got 'morse'"),
        ({"surrogate": "step"}, r"family\.surrogate needs one of fast_sigmoid, arctangent, got 'step'"),
        ({"norm": "batch"}, r"family\.norm needs one of layer, none, got 'batch'"),
        ({"num_steps": 0}, r"family\.num_steps needs at least one step, got 0"),
        ({"hidden": [0]}, r"layers of at least one neuron, and at least one layer, got hidden=\[0\]"),
        ({"hidden": []}, r"at least one layer, got hidden=\[\], channels=\[\]"),
        ({"leak": 1.5}, r"family\.leak needs 0 <= leak <= 1, got 1\.5"),
        ({"slope": 0.0}, r"family\.slope needs a number above 0, got 0"),
        ({"architecture": "convolutional", "kernel_size": 4}, r"kernel_size needs an odd number, got 4; try 5"),
        (
            {"architecture": "convolutional", "channels": [4] * 4},
            r"images of 8 pixels \(made\) take 1 to 3 stages, got family\.channels=\[4, 4, 4, 4\]",
        ),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str, make_spec: MakeSpec) -> None:
    with pytest.raises(ConfigError, match=message):
        make(make_spec(shape=(1, 8, 8)), **settings)


def test_what_needs_images_or_rows_without_time(make_spec: MakeSpec) -> None:
    with pytest.raises(ConfigError, match=r"convolutional needs images, got made, which is tabular; set dense"):
        make(make_spec(shape=(4,)), architecture="convolutional")
    with pytest.raises(ConfigError, match=r"augmentation needs images, got made, which is tabular"):
        make(make_spec(shape=(4,)), augmentation=STILL | {"degrees": 5.0})
    with pytest.raises(ConfigError, match=r"coding=latency needs rows without time of their own, got made; use rate"):
        make(make_spec(shape=(9, 2)), own_time=True, coding="latency")
    with pytest.raises(MismatchError, match="Spiking needs data of kind image or sequence or tabular, got made"):
        make(make_spec(shape=(4,), kind="categorical", cardinalities=(3,) * 4))
