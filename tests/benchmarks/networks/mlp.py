"""The perceptron 64-64-10."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

OVERRIDES = ["family=mlp", "data=digits"]


class Plain(nn.Module):
    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs)

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self(inputs), targets)
