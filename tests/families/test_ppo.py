"""Advantages, clipping and likelihoods by hand; sampling by counting."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Normal

from neurofleet import experiment as experiments
from neurofleet.errors import ConfigError
from neurofleet.experience import Rollout
from neurofleet.families.ppo import PPO, generalised_advantages
from neurofleet.spec import DataSpec
from neurofleet.steps import Context


@pytest.fixture
def discrete(make_spec: Callable[..., DataSpec]) -> DataSpec:
    return make_spec("control", (3,), kind="environment", targets=(), classes=("left", "stay", "right"))


@pytest.fixture
def continuous(make_spec: Callable[..., DataSpec]) -> DataSpec:
    return make_spec("control", (3,), kind="environment", targets=("force", "turn"), classes=())


def build(spec: DataSpec, *overrides: str) -> PPO:
    agent = experiments.build_family(experiments.compose(["family=ppo", "data=env/cartpole", *overrides]), spec)
    assert isinstance(agent, PPO)
    return agent.double()


def column(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1)


def rollout(terminated: list[bool], truncated: list[bool]) -> Rollout:
    """Three steps of one environment, rewards 1, 2, 3."""
    nothing = torch.zeros(3, 1, 3, dtype=torch.float64)
    ends = (torch.tensor(one).unsqueeze(1) for one in (terminated, truncated))
    return Rollout(nothing, torch.zeros(3, 1, dtype=torch.long), column([1.0, 2.0, 3.0]), *ends, nothing)


def test_advantages_by_hand() -> None:
    """discount 1/2, decay 1/2: what comes a step later counts a quarter."""
    values, next_values = column([4.0, 5.0, 6.0]), column([5.0, 6.0, 8.0])
    never = [False] * 3
    errors = [1 + 0.5 * 5 - 4, 2 + 0.5 * 6 - 5, 3 + 0.5 * 8 - 6]
    going = generalised_advantages(rollout(never, never), values, next_values, 0.5, 0.5).squeeze(1)
    last = errors[2]
    middle = errors[1] + last / 4
    assert going.tolist() == pytest.approx([errors[0] + middle / 4, middle, last], rel=1e-12)


def test_an_end_has_no_value_and_a_cut_has_but_neither_lets_the_next_episode_through() -> None:
    values, next_values = column([4.0, 5.0, 6.0]), column([5.0, 100.0, 8.0])  # 100: of what the episode was left at
    middle, never = [False, True, False], [False] * 3
    last = 3 + 0.5 * 8 - 6
    ended = generalised_advantages(rollout(middle, never), values, next_values, 0.5, 0.5).squeeze(1)
    assert ended.tolist() == pytest.approx([1 + 0.5 * 5 - 4 + (2 - 5) / 4, 2 - 5, last], rel=1e-12)
    cut = generalised_advantages(rollout(never, middle), values, next_values, 0.5, 0.5).squeeze(1)
    assert cut.tolist() == pytest.approx([1 + 0.5 * 5 - 4 + (2 + 50 - 5) / 4, 2 + 50 - 5, last], rel=1e-12)


def test_without_decay_to_nothing_advantages_are_returns_less_values() -> None:
    """decay 1: the telescoped sum is the discounted return, bootstrapped at the end of the rollout."""
    values, after = column([4.0, 5.0, 6.0]), column([5.0, 6.0, 8.0])
    never = [False] * 3
    found = generalised_advantages(rollout(never, never), values, after, 0.9, 1.0).squeeze(1)
    returns = [1 + 0.9 * (2 + 0.9 * (3 + 0.9 * 8)), 2 + 0.9 * (3 + 0.9 * 8), 3 + 0.9 * 8]
    assert found.tolist() == pytest.approx([one - value for one, value in zip(returns, (4, 5, 6), strict=True)])


def test_clipping_by_hand(discrete: DataSpec, make_context: Callable[..., Context]) -> None:
    """Beyond the clip a gain no longer grows, and no gradient comes of it; a loss that grows is never cut off."""
    agent = build(discrete, "family.clip=0.2", "family.value_weight=0.0", "family.entropy_weight=0.0")
    observations = torch.randn(4, 3, dtype=torch.float64)
    actions = torch.tensor([0, 1, 2, 0])
    logs, _ = agent.likelihood(agent.policy(observations), actions)
    ratios = torch.tensor([1.5, 0.5, 1.5, 0.5], dtype=torch.float64)
    advantages = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)
    batch = (observations, actions, logs.detach() - ratios.log(), advantages, torch.zeros(4, dtype=torch.float64))
    objective = agent.objective(batch, make_context(4))
    gains = [1.2, -0.8, -1.5, 0.5]  # min(1.5, 1.2), min(-0.5, -0.8), min(-1.5, -1.2), min(0.5, 0.8)
    assert objective.metrics["policy_gain"].tolist() == pytest.approx(gains, rel=1e-12)
    assert objective.loss.item() == pytest.approx(-sum(gains) / 4, rel=1e-12)
    assert objective.metrics["clipped"].tolist() == [True] * 4
    objective.loss.backward()
    first_two = tuple(tensor[:2] for tensor in batch)
    found = agent.policy.readout.weight.grad.clone()
    agent.zero_grad()
    agent.objective(first_two, make_context(2)).loss.backward()
    assert not agent.policy.readout.weight.grad.any(), "rows beyond the clip teach nothing"
    assert found.any()


def test_the_parts_of_the_loss(discrete: DataSpec, make_context: Callable[..., Context]) -> None:
    agent = build(discrete, "family.value_weight=0.7", "family.entropy_weight=0.3")
    observations, actions = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    policy = Categorical(logits=agent.policy(observations))
    returns = torch.arange(5, dtype=torch.float64)
    batch = (observations, actions, policy.log_prob(actions).detach(), torch.ones(5, dtype=torch.float64), returns)
    errors = (agent.value(observations).squeeze(1) - returns).square() / 2
    expected = 0.7 * errors.mean() - 1.0 - 0.3 * policy.entropy().mean()
    assert agent.objective(batch, make_context(5)).loss.item() == pytest.approx(expected.item(), rel=1e-12)


def test_likelihoods_are_those_of_torch(discrete: DataSpec, continuous: DataSpec) -> None:
    outputs, actions = torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    logs, entropies = build(discrete).likelihood(outputs, actions)
    torch.testing.assert_close(logs, Categorical(logits=outputs).log_prob(actions))
    torch.testing.assert_close(entropies, Categorical(logits=outputs).entropy())
    agent = build(continuous)
    agent.log_width.data = torch.tensor([0.3, -1.0], dtype=torch.float64)
    means, taken = torch.randn(6, 2, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    normal = Normal(means, agent.log_width.exp())
    logs, entropies = agent.likelihood(means, taken)
    torch.testing.assert_close(logs, normal.log_prob(taken).sum(dim=1))
    torch.testing.assert_close(entropies, normal.entropy().sum(dim=1))


def test_actions_are_drawn_as_likely_as_the_policy_says(discrete: DataSpec, continuous: DataSpec) -> None:
    rows = torch.arange(40_000, dtype=torch.int32)
    context = Context(1, 2, 0.0, rows, training=True, measure=False)
    observations = torch.ones(1, 3, dtype=torch.float64).expand(len(rows), 3)
    agent = build(discrete)
    agent.policy.readout.bias.data = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    actions = agent.act(observations, context)
    shares = torch.bincount(actions, minlength=3).double() / len(rows)
    torch.testing.assert_close(shares, agent(observations[:1]).softmax(dim=1)[0].detach(), atol=0.01, rtol=0)
    part = Context(1, 2, 0.0, rows[7:9], training=True, measure=False)
    assert torch.equal(agent.act(observations[7:9], part), actions[7:9])
    wide = build(continuous, "family.width=2.0")
    drawn = wide.act(observations, context) - wide(observations[:1])
    assert drawn.std(dim=0).tolist() == pytest.approx([2.0, 2.0], rel=0.02)
    assert drawn.mean(dim=0).tolist() == pytest.approx([0.0, 0.0], abs=0.04)


def test_experience_is_normalised_over_the_whole_rollout(discrete: DataSpec) -> None:
    agent = build(discrete)
    torch.manual_seed(0)
    seen = torch.randn(8, 4, 3, dtype=torch.float64)
    ends = torch.zeros(8, 4, dtype=torch.bool)
    actions = torch.randint(3, (8, 4))
    happened = Rollout(seen, actions, torch.randn(8, 4, dtype=torch.float64), ends, ends, seen.roll(-1, 0))
    observations, taken, logs, advantages, returns = agent.experience(happened)
    assert torch.equal(observations, seen.flatten(0, 1))
    assert torch.equal(taken, actions.flatten())
    assert advantages.mean().item() == pytest.approx(0.0, abs=1e-12)
    assert advantages.std(correction=0).item() == pytest.approx(1.0, rel=1e-6)
    values, after = (agent.value(one.flatten(0, 1)).view(8, 4) for one in (seen, seen.roll(-1, 0)))
    raw = generalised_advantages(happened, values, after, agent.discount, agent.decay)
    torch.testing.assert_close(returns, (raw + values).flatten())
    torch.testing.assert_close(logs, Categorical(logits=agent.policy(observations)).log_prob(taken))
    assert not any(tensor.requires_grad for tensor in (logs, advantages, returns))


def test_continuous_actions_start_as_wide_as_asked(continuous: DataSpec) -> None:
    assert build(continuous, "family.width=0.25").log_width.tolist() == pytest.approx([math.log(0.25)] * 2)


@pytest.mark.parametrize("override", ["family.clip=0.0", "family.width=-1.0", "family.entropy_weight=-0.1"])
def test_what_cannot_be_is_refused(discrete: DataSpec, override: str) -> None:
    with pytest.raises(ConfigError, match="PPO needs clip and width above 0"):
        build(discrete, override)
