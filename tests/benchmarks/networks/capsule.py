"""The capsule network as tutorials write it: the predictions laid out, einsum for what routing asks of them."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

OVERRIDES = ["family=capsule", "data=mnist5k"]


def squash(vectors: Tensor) -> Tensor:
    square = vectors.square().sum(dim=-1, keepdim=True)
    return vectors * (square + 1e-9).sqrt() / (1 + square)


class Plain(nn.Module):
    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.stages = nn.Sequential(
            nn.Conv2d(1, 16, 5, padding=2, bias=False),
            nn.MaxPool2d(2),
            nn.GroupNorm(1, 16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 5, padding=2, bias=False),
            nn.MaxPool2d(2),
            nn.GroupNorm(1, 32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, 2, padding=1),
        )
        self.weight = nn.Parameter(torch.randn(128, 10, 8, 16) * 0.1)
        self.decoder = nn.Sequential(
            nn.Linear(160, 256), nn.ReLU(), nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 784)
        )
        self.to(memory_format=torch.channels_last)

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        primary = squash(self.stages(inputs).permute(0, 2, 3, 1).reshape(len(inputs), -1, 8))
        predictions = torch.einsum("bne,njed->bnjd", primary, self.weight)
        capsules = self.route(predictions)
        lengths, present = capsules.norm(dim=-1), F.one_hot(targets, 10)
        margin = present * F.relu(0.9 - lengths) ** 2 + 0.5 * (1 - present) * F.relu(lengths - 0.1) ** 2
        rebuilt = self.decoder((capsules * present.unsqueeze(-1)).flatten(1))
        errors = (rebuilt - inputs.flatten(1)).square().sum(dim=1)
        return margin.sum(dim=1).mean() + 5e-5 * errors.mean()

    @staticmethod
    def route(predictions: Tensor) -> Tensor:
        fixed = predictions.detach()
        logits = fixed.new_zeros(fixed.shape[:3])
        for _ in range(2):
            outputs = squash(torch.einsum("bnj,bnjd->bjd", logits.softmax(dim=2), fixed))
            logits = logits + torch.einsum("bnjd,bjd->bnj", fixed, outputs)
        return squash(torch.einsum("bnj,bnjd->bjd", logits.softmax(dim=2), predictions))
