"""nn.GRU in both directions over the rows of digits: its last states and the mean of all, normalised, read out."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

OVERRIDES = ["family=rnn", "family.cell=gru", "family.bidirectional=true", "data=mnist5k"]
HIDDEN = 64


class Plain(nn.Module):
    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.recurrence = nn.GRU(28, HIDDEN, batch_first=True, bidirectional=True)
        self.norm, self.readout = nn.LayerNorm(4 * HIDDEN), nn.Linear(4 * HIDDEN, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        states, last = self.recurrence(inputs.squeeze(1))
        return self.readout(self.norm(torch.cat([last[0], last[1], states.mean(dim=1)], dim=1)))

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self(inputs), targets)
