"""Generator and critic by hand, the usual way: the critic learns on detached samples, then stands still for the
generator; with R1 on an eighth of the rows and a moving average of the generator."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STILL = "family.augmentation={degrees: 0.0, scale: 0.0, translation: 0.0}"
OVERRIDES = ["family=gan", STILL, "family.penalty_every=8", "family.gradient_penalty=1.0", "data=mnist5k"]


class Plain(nn.Module):
    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.generator = nn.Sequential(
            nn.Linear(64, 64 * 7 * 7),
            nn.Unflatten(1, (64, 7, 7)),
            nn.GroupNorm(1, 64),
            nn.ReLU(),
            nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1),
            nn.GroupNorm(1, 32),
            nn.ReLU(),
            nn.Conv2d(32, 4, 3, padding=1),
            nn.PixelShuffle(2),
            nn.Sigmoid(),
        )
        self.critic = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(4, 32, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(32, 64, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Linear(64 * 7 * 7, 1),
        )
        self.to(memory_format=torch.channels_last)
        self.averages = [one.detach().clone() for one in self.generator.parameters()]

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        fake = self.generator(torch.rand(len(inputs), 64)) * 3 - 0.4
        real_scores, fake_scores = self.critic(torch.cat([inputs, fake.detach()])).chunk(2)
        loss = F.softplus(-real_scores).mean() + F.softplus(fake_scores).mean()
        paying = inputs[::8].clone().requires_grad_()
        (slopes,) = torch.autograd.grad(self.critic(paying).sum(), paying, create_graph=True)
        loss = loss + slopes.square().sum() * (8 / 2 / len(inputs))
        self.critic.requires_grad_(False)
        loss = loss + F.softplus(-self.critic(fake)).mean()
        self.critic.requires_grad_(True)
        torch._foreach_lerp_(self.averages, [one.detach() for one in self.generator.parameters()], 0.005)
        return loss
