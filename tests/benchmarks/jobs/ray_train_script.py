"""Plain Ray Train v2: two workers that form a group and take one step."""

import os

os.environ["RAY_TRAIN_V2_ENABLED"] = "1"

import ray.train
from ray.train.torch import TorchTrainer


def step() -> None:
    import torch
    import torch.distributed as dist

    layer = torch.nn.Linear(8, 1)
    layer(torch.ones(4, 8)).mean().backward()
    dist.all_reduce(layer.weight.grad)


TorchTrainer(step, scaling_config=ray.train.ScalingConfig(num_workers=2)).fit()
