"""A perceptron as encoder; each row against 64 training rows that are drawn for the step, contrastive loss."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neurofleet import experiment as experiments

OVERRIDES = ["family=siamese", "data=mnist5k"]


class Plain(nn.Module):
    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 32))
        self.inputs, self.targets = experiments.build_data(experiments.compose(OVERRIDES)).rows("train")

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        drawn = torch.randint(len(self.targets), (64,))
        rows = F.normalize(self.layers(inputs), dim=1)
        references = F.normalize(self.layers(self.inputs[drawn]), dim=1)
        apart = torch.cdist(rows, references)
        same = targets.unsqueeze(1) == self.targets[drawn]
        near, far = apart * same, F.relu(1 - apart) * ~same
        return (near.sum(1) / same.sum(1).clamp(min=1) + far.sum(1) / (~same).sum(1).clamp(min=1)).mean()
