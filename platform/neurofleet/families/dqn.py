"""Deep Q-network (Mnih et al. 2015) with double estimation (van Hasselt, Guez and Silver 2016).

A network learns what each action is worth: the rewards that follow, plus the discounted worth of the best next action,
as a slowly following copy of the network, the target network, estimates it.  Shape suffixes: B rows, A actions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neurofleet import counter
from neurofleet.errors import ConfigError, MismatchError
from neurofleet.experience import Replay, check_discount
from neurofleet.families._agent import ACTION_SITE, Agent
from neurofleet.families._base import Objective
from neurofleet.families._supervised import SupervisedFamily
from neurofleet.spec import DataSpec
from neurofleet.steps import Batch, Context


class DQN(Agent):
    """One value an action, learnt from replayed steps; most of the time the best one is taken, else any.

    In: observations [B, *spec.shape].  Out: the value of each action [B,A].
    Loss: Huber's, between the value of the action taken and r + discount * Q_target(s', best action at s'), mean.

    network:      another family's config, from observations to values
    discount:     what a reward counts a step later
    double:       whether the network itself says which action is best at s', and its copy only what that is worth
    num_steps:    rewards that are summed before s'
    epsilon:      the rate of random actions: `start`, falling in a line to `final` in the first `fraction` of training
    target_every: updates between two updates of the target network
    target_rate:  how far that goes: 1 is a copy, less a running average
    replay:       capacity, warmup, steps_per_update; see `neurofleet.experience.Replay`
    """

    shardable = False
    output_names: tuple[str, ...]

    def __init__(
        self,
        *,
        spec: DataSpec,
        network: Callable[..., SupervisedFamily],
        discount: float,
        double: bool,
        num_steps: int,
        epsilon: Mapping[str, float],
        target_every: int,
        target_rate: float,
        replay: Mapping[str, int],
    ) -> None:
        super().__init__(spec=spec)
        self._check(epsilon, target_every, target_rate, replay)
        check_discount("discount", discount)
        self.collection = Replay(**replay, num_steps=num_steps, discount=discount)
        self.double_estimate, self.epsilon = double, dict(epsilon)  # `double` is a method of modules
        self.target_every, self.target_rate = target_every, target_rate
        self.output_names = tuple(f"value_{action}" for action in spec.classes)
        self.network = self.build_network(network, len(spec.classes))
        self.target = _frozen(self.network)

    @classmethod
    def accept(cls, spec: DataSpec) -> None:
        super().accept(spec)
        if not spec.classes:
            raise MismatchError(f"DQN needs an environment with discrete actions, got {spec.name}, which has numbers")

    @staticmethod
    def _check(epsilon: Mapping[str, float], target_every: int, target_rate: float, replay: Mapping[str, int]) -> None:
        for name, values, keys in (
            ("epsilon", epsilon, {"start", "final", "fraction"}),
            ("replay", replay, {"capacity", "warmup", "steps_per_update"}),
        ):
            if set(values) != keys:
                raise ConfigError(f"family.{name} needs the keys {', '.join(sorted(keys))}, got {', '.join(values)}")
        if not (0 <= epsilon["final"] <= epsilon["start"] <= 1 and 0 <= epsilon["fraction"] <= 1):
            raise ConfigError(
                f"family.epsilon needs 0 <= final <= start <= 1 and 0 <= fraction <= 1, got {dict(epsilon)}"
            )
        if target_every < 1 or not 0 < target_rate <= 1:
            raise ConfigError(
                "DQN needs family.target_every of at least 1 and 0 < family.target_rate <= 1, got "
                f"target_every={target_every}, target_rate={target_rate}"
            )

    def exploration(self, progress: float) -> float:
        """The rate of random actions at this progress of training."""
        start, final, fraction = self.epsilon["start"], self.epsilon["final"], self.epsilon["fraction"]
        return final if progress >= fraction else start + (final - start) * progress / fraction

    def act(self, observations: Tensor, context: Context) -> Tensor:
        draws = counter.uniform(context.key(ACTION_SITE), context.rows, (2,), torch.float64)
        anything = (draws[:, 1] * len(self.spec.classes)).long()
        return torch.where(draws[:, 0] < self.exploration(context.progress), anything, self.greedy(observations))

    def forward(self, inputs: Tensor, context: Context | None = None) -> Tensor:
        return self.network(inputs, context)

    def objective(self, batch: Batch, context: Context) -> Objective:
        observations, actions, rewards, discounts, next_observations = batch
        values = self(observations, context).gather(1, actions.unsqueeze(1)).squeeze(1)
        goals = self.goals(rewards, discounts, next_observations)
        loss = F.smooth_l1_loss(values, goals)
        if not context.measure:
            return Objective(loss, buffers=self._followed(context))
        told = values.detach()
        metrics = {"value": told, "temporal_difference": (told - goals).abs()}
        metrics["epsilon"] = told.new_tensor(self.exploration(context.progress))
        return Objective(loss, metrics, self._followed(context))

    @torch.no_grad()
    def goals(self, rewards: Tensor, discounts: Tensor, next_observations: Tensor) -> Tensor:
        """What the action taken should have been said to be worth, [B]."""
        next_values_BA = self.target(next_observations)
        if not self.double_estimate:
            return rewards + discounts * next_values_BA.amax(dim=1)
        best_B1 = self(next_observations).argmax(dim=1, keepdim=True)
        return rewards + discounts * next_values_BA.gather(1, best_B1).squeeze(1)

    def _followed(self, context: Context) -> dict[str, Tensor]:
        """The target network's weights after this step: a function of the weights and the step alone."""
        due = context.step % self.target_every == 0
        if due is False:
            return {}
        followed = {}
        with torch.no_grad():
            for name, weight in self.network.named_parameters():
                before = self.target.get_buffer(name)
                after = weight.clone() if self.target_rate == 1 else before.lerp(weight, self.target_rate)
                followed[f"target.{name}"] = after if due is True else torch.where(due, after, before)
        return followed


def _frozen(network: nn.Module) -> nn.Module:
    """A copy of a network whose parameters are buffers: saved and moved with the others, but learnt by nobody."""
    twin = copy.deepcopy(network)
    for module in twin.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, parameter.detach())
    return twin
