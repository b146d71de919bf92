"""Two blocks on the patches of an image: nn.Linear, torch's attention kernel, torch's dropout."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

OVERRIDES = ["family=transformer", "data=mnist5k"]
WIDTH, HEADS, RATE = 64, 4, 0.1


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH, bias=False), nn.LayerNorm(WIDTH, bias=False)
        self.query_key_value = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.mix = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)
        self.dropout = nn.Dropout(RATE)

    def forward(self, stream: Tensor) -> Tensor:
        parts = self.query_key_value(self.first(stream)).unflatten(-1, (3, HEADS, -1))
        attended = F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in parts.unbind(dim=2)))
        stream = stream + self.dropout(self.mix(attended.transpose(1, 2).flatten(2)))
        return stream + self.dropout(self.down(F.gelu(self.up(self.second(stream)))))


class Plain(nn.Module):
    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.stem, self.cut = nn.Conv2d(1, 16, 5, padding=2), nn.Conv2d(16, WIDTH, 2, stride=2)
        self.norm_tokens, self.norm = nn.LayerNorm(WIDTH, bias=False), nn.LayerNorm(WIDTH, bias=False)
        self.register_buffer("places", torch.randn(49, WIDTH))
        self.blocks = nn.Sequential(Block(), Block())
        self.dropout, self.readout = nn.Dropout(RATE), nn.Linear(WIDTH, 10)
        self.to(memory_format=torch.channels_last)

    def forward(self, inputs: Tensor) -> Tensor:
        patches = self.cut(F.gelu(F.max_pool2d(self.stem(inputs), 2))).flatten(2).transpose(1, 2)
        tokens = self.blocks(self.dropout(self.norm_tokens(patches) + self.places))
        return self.readout(self.dropout(self.norm(tokens).mean(dim=1)))

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self(inputs), targets)
