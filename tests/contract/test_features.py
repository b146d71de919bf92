"""What holds of every family that another task may take over: its `features`, and the `heads` that they do without."""

from __future__ import annotations

import copy
import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neurofleet import counter, paths
from neurofleet import experiment as experiments
from neurofleet.errors import ConfigError
from neurofleet.families._base import Family
from neurofleet.families.spiking import Spiking
from neurofleet.spec import DataSpec
from neurofleet.steps import Context

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
AGENTS = ["dqn", "ppo"]  # what they know is how to act in their environment
A_KIND_EACH = ("digits", "wine", "japanese_vowels", "food_reviews", "movielens")  # the sequences differ in length
NUM_ROWS, NUM_TOKENS = 8, 32
# Other architectures, and all that draws at random.
VARIANTS = {
    "autoencoder-convolutional": ["data=digits", "family.architecture=convolutional", "family.variant=denoising"],
    "autoencoder-shallow": ["data=wine", "family.hidden=[]", "family.variant=variational"],
    "autoencoder-variational": ["data=digits", "family.variant=variational"],
    "capsule-labels": ["data=multimnist"],
    "cnn-dropout": ["data=digits", "family.dropout=0.3"],
    "dbn-persistent": ["data=digits", "family.num_chains=6", "family.dropout=0.3"],
    "dbn-unpretrained": ["data=wine", "family.pretraining=0"],
    "mlp-dropout": ["data=digits", "family.dropout=0.3"],
    "mlp-linear": ["data=wine", "family.hidden=[]"],
    "rnn-both": [
        *("data=japanese_vowels", "family.bidirectional=true", "family.num_layers=2", "family.readout=both"),
        *("family.channels=[8]", "family.kernel_sizes=[3]", "family.dropout=0.3"),
    ],
    "rnn-language": ["data=pydoc_topics", "family.dropout=0.3"],
    "rnn-tied": ["data=pydoc_topics", "family.tied=true", "family.embedding=16", "family.hidden=16"],
    "siamese-faces": ["data=orl_faces"],
    "siamese-spiking": ["data=digits", "family@family.encoder=spiking"],
    "spiking-convolutional": ["data=digits", "family.architecture=convolutional", "family.channels=[8]"],
    "spiking-rate": ["data=digits", "family.coding=rate"],
    "spiking-own-time": ["data=japanese_vowels", "family.own_time=true"],
    "transformer-dropout": ["data=digits", "family.dropout=0.3"],
    "transformer-language": ["data=pydoc_topics", "family.dropout=0.3", "family.num_layers=1"],
}


def fitting() -> dict[str, list[str]]:
    found = {}
    for path in sorted((CONFIGS / "family").glob("*.yaml")):
        for data in A_KIND_EACH:
            spec = DataSpec.load(paths.data() / data / "spec.json")
            if path.stem in experiments.fitting_families(spec):
                found[f"{path.stem}-{data}"] = [f"data={data}"]
    return found


CASES = fitting() | VARIANTS


@functools.cache
def prepared(case: str) -> tuple[dict[str, Any], DataSpec, tuple[Tensor, ...]]:
    experiment = experiments.compose([f"family={case.split('-')[0]}", *CASES[case]])
    data = experiments.build_data(experiment)
    spec, batch = data.spec, tuple(tensor[:NUM_ROWS].clone() for tensor in data.rows("train"))
    if spec.kind == "text":
        spec, batch = dataclasses.replace(spec, shape=(NUM_TOKENS,)), (batch[0][:, :NUM_TOKENS], *batch[1:])
    return experiment, spec, tuple(tensor.double() if tensor.is_floating_point() else tensor for tensor in batch)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return request.param


def build(case: str, seed: int = 0) -> tuple[Family, Tensor]:
    """The family at the start of training, and inputs."""
    experiment, spec, batch = prepared(case)
    family = experiments.build_family(copy.deepcopy(experiment) | {"seed": seed}, spec).double()
    family.recipe = experiments.build_recipe(experiment, num_steps=1, log_every_n_steps=1, gradient_clip_val=None)
    family.start(batch)
    return family, batch[0]


def without_heads(family: Family) -> Family:
    for name in family.heads:
        parent, _, attribute = name.rpartition(".")
        delattr(family.get_submodule(parent), attribute)
    return family


def noise_like(tensor: Tensor, seed: int) -> Tensor:
    return counter.normal(seed, torch.arange(tensor.numel(), dtype=torch.int32), (), tensor.dtype).view(tensor.shape)


def training(step: int = 0) -> Context:
    return Context(0, step, 0.9, torch.arange(NUM_ROWS, dtype=torch.int32), training=True, measure=False)


def test_they_are_numbers_of_each_row_by_itself(case: str) -> None:
    family, inputs = build(case)
    tensors = copy.deepcopy(family.state_dict())
    generator = torch.random.get_rng_state()
    features = family.features(inputs)
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert torch.equal(features, family.features(inputs))
    assert features.ndim == 2
    assert len(features) == NUM_ROWS
    assert features.dtype is torch.float64
    assert bool(torch.isfinite(features).all())
    assert bool((features[0] != features[1]).any())
    part = torch.cat([inputs[3:4], inputs[6:]])
    torch.testing.assert_close(family.features(part), features[[3, 6, 7]], rtol=1e-10, atol=1e-12)
    assert all(torch.equal(tensors[name], value) for name, value in family.state_dict().items())


def test_they_do_without_the_heads_and_all_that_is_left_learns_from_them(case: str) -> None:
    family, inputs = build(case)
    assert len(set(family.heads)) == len(family.heads)
    with torch.no_grad():  # a block that begins as nothing has no slope at first
        for number, parameter in enumerate(family.parameters()):
            parameter.add_(noise_like(parameter, number), alpha=0.01)
    expected = family.features(inputs)
    bare = without_heads(family)
    features = bare.features(inputs)
    assert torch.equal(features, expected)
    wanted = noise_like(features, -1)  # a norm's outputs have one length, and their squares would say nothing
    loss = (features - wanted).square().sum()
    if loss.requires_grad:  # the features of a linear model are its inputs
        loss.backward()
    lost = [
        name
        for name, parameter in bare.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not bool(parameter.grad.any()))
    ]
    assert lost == []


def test_the_answer_is_read_from_them(case: str) -> None:
    """So a network's dropout is theirs too."""
    family, inputs = build(case)
    if "readout" not in family.heads or isinstance(family, Spiking):  # which gathers over time beyond the readout
        assert isinstance(family.features(inputs, training()), Tensor)
        return
    readout = family.get_submodule("readout")
    for context in (None, training()):
        assert torch.equal(readout(family.features(inputs, context)), family(inputs, context))
    drops = any(getattr(module, "rate", 0.0) > 0 for module in family.modules())
    first, second = family.features(inputs, training(0)), family.features(inputs, training(1))
    assert torch.equal(first, second) is not drops
    assert torch.equal(first, family.features(inputs, training(0)))


class Features(nn.Module):
    """The features as a forward, for `functional_call`."""

    def __init__(self, family: Family) -> None:
        super().__init__()
        self.family = family

    def forward(self, inputs: Tensor) -> Tensor:
        return self.family.features(inputs)


def test_a_stack_of_networks_says_what_each_says_alone(case: str) -> None:
    built = [build(case, seed) for seed in range(2)]
    networks, inputs = [Features(without_heads(family)) for family, _ in built], built[0][1]
    parameters, buffers = torch.func.stack_module_state(networks)  # type: ignore[arg-type]
    # vmap cannot copy channels-last tensors (torch 2.13).
    parameters = {name: tensor.contiguous() for name, tensor in parameters.items()}
    skeleton = copy.deepcopy(networks[0]).to("meta")

    def features(weights: Any, others: Any) -> Tensor:
        return torch.func.functional_call(skeleton, (weights, others), (inputs,))

    if not parameters and not buffers:  # nothing to stack
        assert torch.equal(networks[0](inputs), networks[1](inputs))
        return
    stacked = torch.func.vmap(features)(parameters, buffers)
    for network, own in zip(networks, stacked, strict=True):
        torch.testing.assert_close(own, network(inputs), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("agent", AGENTS)
def test_an_agent_has_nothing_to_transfer(agent: str) -> None:
    experiment = experiments.compose([f"family={agent}", "data=env/cartpole"])
    spec = experiments.build_data(experiment).spec
    family = experiments.build_family(experiment, spec)
    assert family.heads == ()
    with pytest.raises(ConfigError, match=r"(DQN|PPO) has nothing to transfer.*take a base whose family"):
        family.features(torch.zeros(2, *spec.shape))
