"""An autoencoder 64-256-128-8-128-256-64 of standardised digits, said again as pixels."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

OVERRIDES = ["family=autoencoder", "data=digits"]


class Plain(nn.Module):
    def __init__(self, spec: Any) -> None:
        super().__init__()
        sizes = [64, 256, 128, 8, 128, 256, 64]
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes))
        self.scale, self.offset = spec.input_std[0] / 16, spec.input_mean[0] / 16

    def forward(self, inputs: Tensor) -> Tensor:
        values = inputs.flatten(1)
        for index, layer in enumerate(self.layers):
            values = layer(values)
            if index not in (2, 5):  # the code and the pixels
                values = F.gelu(values)
        return torch.sigmoid(values)

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(self(inputs), inputs.flatten(1) * self.scale + self.offset)
