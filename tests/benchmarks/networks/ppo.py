"""Policy and value network 4-64-64 by hand, clipped ratios: one step of the optimizer on a batch of a rollout."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Categorical

OVERRIDES = [
    "family=ppo",
    "family.network.hidden=[64,64]",
    "family.network.activation=tanh",
    "family.entropy_weight=0.01",
    "data=env/cartpole",
]


def perceptron(num_outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, num_outputs))


class Plain(nn.Module):
    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.policy, self.value = perceptron(2), perceptron(1)

    def loss(
        self, observations: Tensor, actions: Tensor, old_logs: Tensor, advantages: Tensor, returns: Tensor
    ) -> Tensor:
        policy = Categorical(logits=self.policy(observations), validate_args=False)
        ratios = (policy.log_prob(actions) - old_logs).exp()
        gains = torch.min(ratios * advantages, ratios.clamp(0.8, 1.2) * advantages)
        errors = (self.value(observations).squeeze(1) - returns).square()
        return -gains.mean() + 0.25 * errors.mean() - 0.01 * policy.entropy().mean()
