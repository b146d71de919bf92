"""A double deep Q-network by hand: 4-128-128-2, and a target network that is copied every 200 steps."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

OVERRIDES = ["family=dqn", "family.network.hidden=[128,128]", "data=env/cartpole"]
TARGET_EVERY = 200


class Plain(nn.Module):
    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 2))
        self.target = copy.deepcopy(self.layers).requires_grad_(False)
        self.num_steps = 0

    def loss(
        self, observations: Tensor, actions: Tensor, rewards: Tensor, discounts: Tensor, next_observations: Tensor
    ) -> Tensor:
        if self.num_steps % TARGET_EVERY == 0:
            self.target.load_state_dict(self.layers.state_dict())
        self.num_steps += 1
        values = self.layers(observations).gather(1, actions.unsqueeze(1)).squeeze(1)
        with torch.no_grad():
            best = self.layers(next_observations).argmax(dim=1, keepdim=True)
            goals = rewards + discounts * self.target(next_observations).gather(1, best).squeeze(1)
        return F.smooth_l1_loss(values, goals)
