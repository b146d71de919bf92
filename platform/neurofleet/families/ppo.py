"""Proximal policy optimization (Schulman et al. 2017) with generalised advantage estimation (Schulman et al. 2016).

A policy network says how likely each action is, a value network how much reward is to come.  What went better than the
value network thought becomes likelier, but not by more than the clipped ratio rewards.

Shape suffixes: B rows, T steps, E environments, A actions, or dimensions of one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from neurofleet import counter
from neurofleet.errors import ConfigError
from neurofleet.experience import Rollout, Rollouts, check_discount
from neurofleet.families._agent import ACTION_SITE, Agent
from neurofleet.families._base import Objective
from neurofleet.families._supervised import SupervisedFamily
from neurofleet.spec import DataSpec
from neurofleet.steps import Batch, Context

LOG_SQRT_TAU = math.log(2 * math.pi) / 2


class PPO(Agent):
    """A categorical policy for discrete actions, a normal one with learnt, constant widths for continuous ones.

    In: observations [B, *spec.shape].  Out: logits [B,A], or the mean action [B,A], standardised to the action's range.
    Loss: -min(ratio * advantage, clip(ratio) * advantage) + value_weight * (value - return)^2 / 2
          - entropy_weight * entropy, mean.  Advantages are normalised over the whole rollout.

    network:        another family's config; policy and value have one each
    discount:       what a reward counts a step later
    decay:          lambda of the advantage estimate: 0 trusts the value network, 1 the rewards
    clip:           how far from 1 the ratio of new to old probability is rewarded
    value_weight:   of the value network's loss
    entropy_weight: of the reward for being undecided
    width:          the standard deviation of continuous actions at first; 1 is half of their range
    rollout:        num_steps, num_epochs; see `neurofleet.experience.Rollouts`
    """

    shardable = False
    rollout_keys: ClassVar[frozenset[str]] = frozenset({"num_steps", "num_epochs"})

    def __init__(
        self,
        *,
        spec: DataSpec,
        network: Callable[..., SupervisedFamily],
        discount: float,
        decay: float,
        clip: float,
        value_weight: float,
        entropy_weight: float,
        width: float,
        rollout: Mapping[str, int],
    ) -> None:
        super().__init__(spec=spec)
        if set(rollout) != self.rollout_keys:
            wanted = ", ".join(sorted(self.rollout_keys))
            raise ConfigError(f"family.rollout needs the keys {wanted}, got {', '.join(rollout)}")
        check_discount("discount", discount)
        check_discount("decay", decay)
        if not (clip > 0 and width > 0 and value_weight >= 0 and entropy_weight >= 0):
            raise ConfigError(
                "PPO needs clip and width above 0, value_weight and entropy_weight of at least 0, got "
                f"clip={clip}, width={width}, value_weight={value_weight}, entropy_weight={entropy_weight}"
            )
        self.collection = Rollouts(**rollout)
        self.discount, self.decay, self.clip = discount, decay, clip
        self.value_weight, self.entropy_weight = value_weight, entropy_weight
        self.policy = self.build_network(network, spec.num_outputs)
        self.value = self.build_network(network, 1)
        if not spec.classes:
            self.log_width = nn.Parameter(torch.full((spec.num_outputs,), math.log(width)))

    def forward(self, inputs: Tensor, context: Context | None = None) -> Tensor:
        return self.policy(inputs, context)

    def act(self, observations: Tensor, context: Context) -> Tensor:
        outputs_EA, key = self(observations), context.key(ACTION_SITE)
        if not self.spec.classes:
            noise_EA = counter.normal(key, context.rows, outputs_EA.shape[1:], outputs_EA.dtype)
            return outputs_EA + noise_EA * self.log_width.exp()
        draws_EA = counter.uniform(key, context.rows, outputs_EA.shape[1:], outputs_EA.dtype)
        return (outputs_EA - (-draws_EA.log()).log()).argmax(dim=1)  # Gumbel 1954: the largest is a sample

    def likelihood(self, outputs_BA: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """The log-probability of each action under the policy, and the policy's entropy, [B] each."""
        if self.spec.classes:
            logs_BA = outputs_BA.log_softmax(dim=1)
            return logs_BA.gather(1, actions.unsqueeze(1)).squeeze(1), -(logs_BA.exp() * logs_BA).sum(dim=1)
        scaled_BA = (actions - outputs_BA) / self.log_width.exp()
        logs_B = -(scaled_BA.square() / 2 + self.log_width + LOG_SQRT_TAU).sum(dim=1)
        return logs_B, (self.log_width + 0.5 + LOG_SQRT_TAU).sum().expand(len(logs_B))

    @torch.no_grad()
    def experience(self, rollout: Rollout) -> Batch:
        """(observations, actions, log-probabilities, normalised advantages, returns) of every step, [T * E] rows."""
        observations, next_observations = rollout.observations.flatten(0, 1), rollout.next_observations.flatten(0, 1)
        shape = rollout.rewards.shape
        values_TE = self.value(observations).view(shape)
        next_values_TE = self.value(next_observations).view(shape)
        advantages_TE = generalised_advantages(rollout, values_TE, next_values_TE, self.discount, self.decay)
        returns_TE = advantages_TE + values_TE
        actions = rollout.actions.flatten(0, 1)
        logs, _ = self.likelihood(self.policy(observations), actions)
        normalised_TE = (advantages_TE - advantages_TE.mean()) / (advantages_TE.std(correction=0) + 1e-8)
        return observations, actions, logs, normalised_TE.flatten(), returns_TE.flatten()

    def objective(self, batch: Batch, context: Context) -> Objective:
        observations, actions, old_logs, advantages, returns = batch
        logs, entropies = self.likelihood(self.policy(observations, context), actions)
        ratios = (logs - old_logs).exp()
        gains = torch.minimum(ratios * advantages, ratios.clamp(1 - self.clip, 1 + self.clip) * advantages)
        errors = (self.value(observations, context).squeeze(1) - returns).square() / 2
        loss = (self.value_weight * errors - gains - self.entropy_weight * entropies).mean()
        if not context.measure:
            return Objective(loss)
        ratios = ratios.detach()
        metrics = {
            "policy_gain": gains.detach(),
            "value_loss": errors.detach(),
            "entropy": entropies.detach(),
            "clipped": (ratios - 1).abs() > self.clip,
            "divergence": ratios - 1 - ratios.log(),  # an estimate of KL(old, new) that is never negative
        }
        return Objective(loss, metrics)


def generalised_advantages(
    rollout: Rollout, values_TE: Tensor, next_values_TE: Tensor, discount: float, decay: float
) -> Tensor:
    """How much better than its value each step turned out, [T,E]: errors of prediction, decaying with their distance.

    An episode that came to its end has no value after it.  One that was only cut off (a time limit) has, but what
    follows in the rollout is another episode.
    """
    errors_TE = rollout.rewards + discount * next_values_TE * ~rollout.terminated - values_TE
    goes_on_TE = ~(rollout.terminated | rollout.truncated)
    advantage_E, advantages = torch.zeros_like(values_TE[0]), []
    for error_E, goes_on_E in zip(errors_TE.flip(0), goes_on_TE.flip(0), strict=True):
        advantage_E = error_E + discount * decay * goes_on_E * advantage_E
        advantages.append(advantage_E)
    return torch.stack(advantages[::-1])
