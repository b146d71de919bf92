"""The target of double estimation by hand, exploration by counting, and a target network that nobody learns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from neurofleet import experiment as experiments
from neurofleet.errors import ConfigError, MismatchError
from neurofleet.families.dqn import DQN
from neurofleet.spec import DataSpec
from neurofleet.steps import Context


@pytest.fixture
def spec(make_spec: Callable[..., DataSpec]) -> DataSpec:
    return make_spec("control", (3,), kind="environment", targets=(), classes=("left", "right"))


def build(spec: DataSpec, *overrides: str) -> DQN:
    agent = experiments.build_family(experiments.compose(["family=dqn", "data=env/cartpole", *overrides]), spec)
    assert isinstance(agent, DQN)
    return agent.double()


def linear(agent: DQN, weight: list[list[float]], target: list[list[float]]) -> DQN:
    """Networks that are one matrix each, so that values can be worked out on paper."""
    with torch.no_grad():
        for network, rows in ((agent.network, weight), (agent.target, target)):
            network.readout.weight.copy_(torch.tensor(rows))
            network.readout.bias.zero_()
    return agent


OBSERVATIONS = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
NEXT = torch.tensor([[0.0, 0.0, 1.0], [1.0, 1.0, 0.0]], dtype=torch.float64)
WEIGHT = [[1.0, 2.0, 3.0], [4.0, 0.0, 5.0]]  # values: the observations' columns of it
TARGET = [[10.0, 20.0, 30.0], [1.0, 2.0, 7.0]]
REWARDS = torch.tensor([0.5, -1.0], dtype=torch.float64)
DISCOUNTS = torch.tensor([0.9, 0.0], dtype=torch.float64)  # the second episode came to its end


@pytest.mark.parametrize(
    ("double", "expected"),
    [
        # At NEXT[0] the network has values (3, 5), its copy (30, 7): double takes action 1, worth what the copy says.
        ("true", [0.5 + 0.9 * 7, -1.0]),
        ("false", [0.5 + 0.9 * 30, -1.0]),
    ],
)
def test_the_target_by_hand(spec: DataSpec, double: str, expected: list[float]) -> None:
    agent = linear(build(spec, "family.network.hidden=[]", f"family.double={double}"), WEIGHT, TARGET)
    goals = agent.goals(REWARDS, DISCOUNTS, NEXT)
    assert goals.tolist() == pytest.approx(expected, rel=1e-12)
    assert not goals.requires_grad


def test_the_loss_and_its_gradient_by_hand(spec: DataSpec, make_context: Callable[..., Context]) -> None:
    """Values of the actions taken are 1 and 0, goals 6.8 and -1: Huber's loss is |error| - 1/2 from 1 on."""
    agent = linear(build(spec, "family.network.hidden=[]"), WEIGHT, TARGET)
    batch = (OBSERVATIONS, torch.tensor([0, 1]), REWARDS, DISCOUNTS, NEXT)
    objective = agent.objective(batch, make_context(2))
    assert objective.loss.item() == pytest.approx(((6.8 - 1 - 0.5) + 0.5) / 2, rel=1e-12)
    objective.loss.backward()
    # The slope is -1 at the first row's value and 1 at the second's, half a row each; no gradient flows through goals.
    expected = [[-0.5, 0.0, 0.0], [0.0, 0.5, 0.0]]
    assert agent.network.readout.weight.grad.tolist() == expected
    assert objective.metrics["value"].tolist() == [1.0, 0.0]
    assert objective.metrics["temporal_difference"].tolist() == pytest.approx([5.8, 1.0])


def test_exploration_falls_in_a_line(spec: DataSpec) -> None:
    agent = build(spec, "family.epsilon={start: 0.9, final: 0.1, fraction: 0.5}")
    rates = [agent.exploration(progress) for progress in (0.0, 0.25, 0.5, 0.75)]
    assert rates == pytest.approx([0.9, 0.5, 0.1, 0.1])
    sudden = build(spec, "family.epsilon={start: 0.9, final: 0.1, fraction: 0.0}")
    assert sudden.exploration(0.0) == 0.1


def test_it_explores_at_that_rate(spec: DataSpec) -> None:
    agent = linear(build(spec, "family.network.hidden=[]"), WEIGHT, TARGET)
    agent.epsilon = {"start": 0.4, "final": 0.4, "fraction": 0.0}
    observations = OBSERVATIONS[:1].expand(20_000, 3)  # values 1 and 4: action 1 is best
    context = Context(3, 7, 0.5, torch.arange(20_000, dtype=torch.int32), training=True, measure=False)
    actions = agent.act(observations, context)
    assert float((actions == 0).double().mean()) == pytest.approx(0.2, abs=0.01), "half of what is tried at random"
    assert torch.equal(actions, agent.act(observations, context)), "a function of the context"
    part = Context(3, 7, 0.5, context.rows[100:200], training=True, measure=False)
    assert torch.equal(agent.act(observations[100:200], part), actions[100:200]), "each environment draws by its number"
    assert agent.greedy(OBSERVATIONS).tolist() == [1, 0]


@pytest.mark.parametrize(("rate", "expected"), [(1.0, 5.0), (0.25, 0.75 * 1.0 + 0.25 * 5.0)])
def test_the_target_network_follows(
    spec: DataSpec, rate: float, expected: float, make_context: Callable[..., Context]
) -> None:
    agent = build(spec, "family.target_every=10", f"family.target_rate={rate}")
    assert not any(name.startswith("target.") for name, _ in agent.named_parameters())
    for name, weight in agent.network.named_parameters():
        assert torch.equal(weight, agent.target.get_buffer(name)), "they begin alike"
        weight.detach().fill_(5.0)
        agent.target.get_buffer(name).fill_(1.0)
    batch = (OBSERVATIONS, torch.tensor([0, 1]), REWARDS, DISCOUNTS, NEXT)
    assert agent.objective(batch, make_context(2, step=9)).buffers == {}
    due = agent.objective(batch, make_context(2, step=20)).buffers
    assert set(due) == {f"target.{name}" for name, _ in agent.network.named_parameters()}
    assert all(bool((value == expected).all()) for value in due.values())
    step = torch.tensor(9, dtype=torch.int32)
    kept = agent.objective(batch, Context(0, step, 0.0, torch.arange(2, dtype=torch.int32), True, False)).buffers
    assert all(bool((value == 1.0).all()) for value in kept.values()), "in a stack of trials too"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("family.epsilon={start: 0.1, final: 0.5, fraction: 0.5}", "needs 0 <= final <= start <= 1"),
        ("family.discount=1.5", "family.discount needs a number from 0 to 1"),
        ("family.target_every=0", "family.target_every of at least 1"),
        ("family.replay={capacity: 10, warmup: 20, steps_per_update: 1}", "set family.replay.capacity=20 or more"),
        ("family.replay={capacity: 10, warmup: 20, steps: 1}", "needs the keys capacity, steps_per_update, warmup"),
    ],
)
def test_what_cannot_be_is_refused(spec: DataSpec, override: str, message: str) -> None:
    composed = experiments.compose(["family=dqn", "data=env/cartpole"])
    key, value = override.removeprefix("family.").split("=", 1)
    composed["family"][key] = yaml.safe_load(value)
    with pytest.raises(ConfigError, match=message):
        experiments.build_family(composed, spec)


def test_it_wants_discrete_actions(make_spec: Callable[..., Any]) -> None:
    spec = make_spec("control", (3,), kind="environment", targets=("torque",), classes=())
    with pytest.raises(MismatchError, match=r"DQN needs an environment with discrete actions.*families that fit: ppo"):
        build(spec)


def test_forward_says_what_each_action_is_worth(spec: DataSpec) -> None:
    agent = linear(build(spec, "family.network.hidden=[]"), WEIGHT, TARGET)
    said: Tensor = agent(OBSERVATIONS)
    assert said.tolist() == [[1.0, 4.0], [2.0, 0.0]]
    assert agent.output_names == ("value_left", "value_right")
