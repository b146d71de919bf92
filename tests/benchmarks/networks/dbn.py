"""One centred restricted Boltzmann machine 784-256 of pixels, by CD-1: the dearest part of the family's training."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

OVERRIDES = ["family=dbn", "data=mnist5k", "family.hidden=[256]", "family.pretraining=0.999"]


class Plain(nn.Module):
    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(spec.num_inputs, 256)
        self.readout = nn.Linear(256, 10)  # has its turn in fine-tuning
        self.visible_bias = nn.Parameter(torch.zeros(spec.num_inputs))
        self.scale, self.offset = spec.input_std[0] / 255, spec.input_mean[0] / 255
        self.register_buffer("centre", torch.full((spec.num_inputs,), 0.1))

    def drive(self, visible: Tensor) -> Tensor:
        return self.layer(visible - self.centre)

    def free_energy(self, visible: Tensor) -> Tensor:
        drive = self.drive(visible)
        return (-visible @ self.visible_bias - (F.softplus(drive) - 0.5 * drive).sum(dim=1)).mean()

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        data = inputs.flatten(1) * self.scale + self.offset
        with torch.no_grad():
            hidden = torch.bernoulli(torch.sigmoid(self.drive(data)))
            dreamt = torch.sigmoid((hidden - 0.5) @ self.layer.weight + self.visible_bias)
        return 0.001 * (self.free_energy(data) - self.free_energy(dreamt))
