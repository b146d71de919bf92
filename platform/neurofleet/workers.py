"""Workers: how Lightning and a network are set up in a group of processes (`torch.distributed`)."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.strategies import DDPStrategy, Strategy
from pytorch_lightning.trainer.states import TrainerFn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from neurofleet.errors import ConfigError
from neurofleet.families._base import Family
from neurofleet.trainer import TrainerConfig


class Group(NamedTuple):
    """This process's place among the workers; a process without a group is a group of one."""

    rank: int
    size: int

    @classmethod
    def current(cls) -> Group:
        return cls(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else cls(0, 1)

    @property
    def is_writer(self) -> bool:
        return self.rank == 0


class WorkersEnvironment(TorchElasticEnvironment):
    """Where Lightning reads ranks; it wants as many workers on every node, and whoever has room for them need not."""

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        pass


class WorkersStrategy(DDPStrategy):
    """Lightning's view of a group of workers.  Gradients are `steps.run_chunk`'s business, so nothing wraps the module.

    Weights need no broadcast either: the seed makes them equal, and a sharded network has no whole ones to send.
    """

    def setup(self, trainer: pl.Trainer) -> None:
        assert self.accelerator is not None
        assert self.model is not None
        self.accelerator.setup(trainer)
        self.precision_plugin.convert_module(self.model)
        if trainer.state.fn == TrainerFn.FITTING:
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()


def device_type(config: TrainerConfig, group: Group) -> str:
    """cuda or cpu.  In a group its launcher has decided; Lightning would take whatever GPU it can see."""
    if group.size > 1:
        return "cuda" if dist.get_backend() == "nccl" else "cpu"
    return "cuda" if config.accelerator != "cpu" and torch.cuda.is_available() else "cpu"


def trainer(accelerator: str, precision: str, stopper: EarlyStopping | None, group: Group) -> pl.Trainer:
    """A Lightning Trainer that only trains: logs, checkpoints and progress are `neurofleet.watch`'s."""
    strategy: Strategy | str = "auto"
    devices = num_nodes = 1
    if dist.is_initialized():  # a group of one, too: else Lightning warns that nothing is summed over workers
        strategy = WorkersStrategy(cluster_environment=WorkersEnvironment())
        devices = int(os.environ.get("LOCAL_WORLD_SIZE", group.size))
        num_nodes = group.size // devices
    return pl.Trainer(
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        strategy=strategy,
        precision=precision,  # type: ignore[arg-type]  # checked by TrainerConfig
        callbacks=[] if stopper is None else [stopper],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        max_epochs=-1,
    )


def shard(family: Family, group: Group) -> None:
    """Fully sharded data parallelism (Zhao et al. 2023): every layer's parameters are split over the workers."""
    family.to(memory_format=torch.contiguous_format)  # channels-last weights cannot be sharded yet (torch 2.13)
    mesh = init_device_mesh(family.device.type, (group.size,))
    for layer in _layers(family):
        if any(True for _ in layer.parameters()):
            fully_shard(layer, mesh=mesh)
    fully_shard(family, mesh=mesh)
    register_fsdp_forward_method(family, "objective")  # else the first layer that is called takes itself for the root


def _layers(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    for child in module.children():
        if isinstance(child, torch.nn.ModuleList):
            yield from _layers(child)
        else:
            yield child


def need_shardable(family: Family) -> None:
    """Raise ConfigError unless a family with its optimizer can be sharded: a layer is whole only while it is called."""
    if not family.shardable or any(True for _ in family.parameters(recurse=False)):
        raise ConfigError(
            f"launcher.strategy=fsdp needs a family that is layers alone, and {type(family).__name__} takes weights by "
            "another way, too; set launcher.strategy=ddp"
        )
    optimizer = family.recipe.optimizer([torch.nn.Parameter(torch.zeros(1))])
    if optimizer.defaults.get("fused") and not isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
        name = type(optimizer).__name__
        raise ConfigError(f"launcher.strategy=fsdp needs an unfused {name}, got optimizer.fused=true; set it to false")


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
    """Lightning's hints on hardware and loaders are about what is handled here; its warnings stay."""
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        # Lightning 2.6 calls what torch 2.13 deprecates.
        warnings.filterwarnings("ignore", message=r".*LeafSpec.* is deprecated", category=FutureWarning)
        # A refit on train and val has no rows left to validate on, and asks for none.
        warnings.filterwarnings("ignore", message=r".*have no `val_dataloader`")
        try:
            yield
        finally:
            logger.setLevel(level)
