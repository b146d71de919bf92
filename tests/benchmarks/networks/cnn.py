"""Two convolutions and a dense layer, in the layout that is fastest on CPUs."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

OVERRIDES = ["family=cnn", "family.norm=none", "family.dropout=0.0", "data=mnist5k"]


class Plain(nn.Module):
    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 5, padding=2),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(16, 32, 5, padding=2),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 7 * 7, 128),
            nn.ReLU(),
            nn.Linear(128, 10),
        )
        self.to(memory_format=torch.channels_last)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs)

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self(inputs), targets)
