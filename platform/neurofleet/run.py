"""run(experiment) -> Result: one execution of an experiment, in this process; it knows neither Ray nor MLflow.

Inside a process group (`torch.distributed` is initialised) every member calls `run` with the same experiment and takes
its part of every global batch; rank 0 alone writes files and logs.  Everything that decides the result is a function of
the experiment, so a run that was cut anywhere goes on from its last checkpoint to the very same weights.

The run's folder then holds experiment.yaml, spec.json, checkpoints/, weights.safetensors, history.json (one row a
validation) and predictions.safetensors (outputs and targets of the test rows): all that figures and a release are
made from.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from lightning_fabric.plugins.environments import TorchElasticEnvironment
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.strategies import DDPStrategy, Strategy
from pytorch_lightning.trainer.states import TrainerFn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from neurofleet import checkpoint
from neurofleet import experiment as experiments
from neurofleet.data import ParquetDataModule, Rows
from neurofleet.errors import ConfigError
from neurofleet.experiment import Experiment
from neurofleet.families._base import Family
from neurofleet.steps import Batch, ChunkLoader, HeldOut
from neurofleet.watch import Log, Watch

DTYPES = {"32-true": torch.float32, "64-true": torch.float64, "bf16-mixed": torch.float32}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How long and how to train; the names are Lightning's where it has them.

    max_epochs:              passes over the training rows
    check_val_every_n_epoch: epochs between two validations
    log_every_n_steps:       how often a training step is measured and logged
    precision:               32-true, 64-true or bf16-mixed
    accelerator:             auto, cpu or gpu
    gradient_clip_val:       largest norm of the gradient, or None
    num_threads:             of the CPU, or None for torch's own choice
    early_stopping:          None, or monitor, mode (min, max), patience (validations), min_delta, restore_best
    checkpoint:              every_n_steps, every_n_minutes (None for never: the end always leaves one), keep_last
    register:                whether the model is released in the registry when the run is done
    """

    max_epochs: int
    check_val_every_n_epoch: int
    log_every_n_steps: int
    precision: str
    accelerator: str
    gradient_clip_val: float | None
    num_threads: int | None
    early_stopping: Mapping[str, Any] | None
    checkpoint: Mapping[str, Any]
    register: bool

    def __post_init__(self) -> None:
        for name in ("max_epochs", "check_val_every_n_epoch", "log_every_n_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"trainer.{name} needs a whole number of at least 1, got {getattr(self, name)}")
        if self.precision not in DTYPES:
            raise ConfigError(f"trainer.precision needs one of {', '.join(DTYPES)}, got {self.precision!r}")
        if self.accelerator not in ("auto", "cpu", "gpu"):
            raise ConfigError(f"trainer.accelerator needs auto, cpu or gpu, got {self.accelerator!r}")
        if self.accelerator == "gpu" and not torch.cuda.is_available():
            raise ConfigError("trainer.accelerator=gpu needs a CUDA device, and this machine has none; use auto or cpu")
        if self.gradient_clip_val is not None and self.gradient_clip_val <= 0:
            raise ConfigError(f"trainer.gradient_clip_val needs a number above 0 or null, got {self.gradient_clip_val}")
        _need_keys("trainer.checkpoint", self.checkpoint, {"every_n_steps", "every_n_minutes", "keep_last"})
        if self.checkpoint["keep_last"] < 1:
            raise ConfigError(f"trainer.checkpoint.keep_last needs at least 1, got {self.checkpoint['keep_last']}")
        if self.early_stopping is not None:
            keys = {"monitor", "mode", "patience", "min_delta", "restore_best"}
            _need_keys("trainer.early_stopping", self.early_stopping, keys)
            if self.early_stopping["mode"] not in ("min", "max"):
                raise ConfigError(f"trainer.early_stopping.mode needs min or max, got {self.early_stopping['mode']!r}")


def _need_keys(where: str, values: Mapping[str, Any], keys: set[str]) -> None:
    if set(values) != keys:
        raise ConfigError(
            f"{where} needs the keys {', '.join(sorted(keys))}, got {', '.join(sorted(values)) or 'none'}"
        )


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run ended with: `metrics` by name (`test/accuracy`), the run's folder, and its size and cost."""

    metrics: dict[str, float]
    folder: Path
    num_parameters: int
    num_steps: int
    seconds: float


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


def run(experiment: Experiment, *, tracker: Log | None = None, folder: Path, resume: bool = False) -> Result:
    """Train, evaluate, and leave the weights in `folder`.

    tracker: where measurements go; on rank 0 only
    folder:  the run's own; with `resume`, its last good checkpoint is where training goes on

    Raises:
        UserError: the experiment cannot be run as it stands; nothing was written.
        DivergedError: the loss stopped being finite.
        StoppedError: a signal ended the run after a checkpoint.
        CheckpointError: the disk refused a checkpoint, or none can be read.
    """
    began = time.monotonic()
    experiment = experiments.check(experiment)
    config: TrainerConfig = experiments.build(experiment["trainer"])
    data = experiments.build_data(experiment)
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    stopper = _stopper(config, data)
    with _threads(config.num_threads), _quiet_lightning():
        trainer = _trainer(config, stopper, world_size)
        device = trainer.strategy.root_device
        family = experiments.build_family(experiment, data.spec).to(device, DTYPES[config.precision])
        if world_size > 1 and experiment["launcher"].get("strategy") == "fsdp":
            _shard(family, world_size)
        loader = _loader(experiment, config, data, device, rank, world_size)
        family.recipe = experiments.build_recipe(
            experiment,
            num_steps=loader.num_steps,
            log_every_n_steps=config.log_every_n_steps,
            gradient_clip_val=config.gradient_clip_val,
        )
        family.automatic_optimization = False
        watch = _watch(experiment, config, folder, loader, tracker, stopper, writer=rank == 0)
        if rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            experiments.save(experiment, folder / "experiment.yaml")
            data.spec.save(folder / "spec.json")
        if resume and checkpoint.exists(watch.folder):
            watch.restore(family, *checkpoint.load(watch.folder))
        if not watch.finished:
            _fit(trainer, family, watch, _held_out(data, "val", config, trainer, rank, world_size))
        if watch.best:
            family.load_state_dict(watch.best)
        metrics = watch.verdict
        metrics |= _test(trainer, family, _held_out(data, "test", config, trainer, rank, world_size))
    _leave(folder, family, data, watch)
    num_parameters = sum(parameter.numel() for parameter in family.parameters())
    return Result(metrics, folder, num_parameters, watch.step, time.monotonic() - began)


def _stopper(config: TrainerConfig, data: ParquetDataModule) -> EarlyStopping | None:
    if config.early_stopping is None:
        return None
    if len(data.rows("val").targets) == 0:
        raise ConfigError("trainer.early_stopping needs validation rows, got none; use data.train_splits=[train]")
    settings = {key: value for key, value in config.early_stopping.items() if key != "restore_best"}
    return EarlyStopping(**settings, verbose=False)


def _trainer(config: TrainerConfig, stopper: EarlyStopping | None, world_size: int) -> pl.Trainer:
    strategy: Strategy | str = "auto"
    devices = num_nodes = 1
    if world_size > 1:
        strategy = WorkersStrategy(cluster_environment=TorchElasticEnvironment())
        devices = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
        num_nodes = world_size // devices
    return pl.Trainer(
        accelerator=config.accelerator,
        devices=devices,
        num_nodes=num_nodes,
        strategy=strategy,
        precision=config.precision,  # type: ignore[arg-type]  # checked against DTYPES
        callbacks=[] if stopper is None else [stopper],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        max_epochs=-1,
    )


def _loader(
    experiment: Experiment, config: TrainerConfig, data: ParquetDataModule, device: torch.device, rank: int, size: int
) -> ChunkLoader:
    return ChunkLoader(
        _tensors(data.rows("train"), config, device),
        batch_size=data.batch_size,
        seed=experiment["seed"],
        max_epochs=config.max_epochs,
        epochs_per_round=config.check_val_every_n_epoch,
        cut_every=config.checkpoint["every_n_steps"],
        rank=rank,
        world_size=size,
    )


def _tensors(rows: Rows, config: TrainerConfig, device: torch.device) -> Batch:
    dtype = DTYPES[config.precision]
    return tuple(tensor.to(device, dtype if tensor.is_floating_point() else None) for tensor in rows)


def _held_out(
    data: ParquetDataModule, stage: str, config: TrainerConfig, trainer: pl.Trainer, rank: int, world_size: int
) -> HeldOut | None:
    rows = data.rows(stage)
    if len(rows.targets) == 0:
        return None
    tensors = _tensors(rows, config, trainer.strategy.root_device)
    return HeldOut(tensors, batch_size=max(data.batch_size, 512), rank=rank, world_size=world_size)


def _watch(
    experiment: Experiment,
    config: TrainerConfig,
    folder: Path,
    loader: ChunkLoader,
    tracker: Log | None,
    stopper: EarlyStopping | None,
    *,
    writer: bool,
) -> Watch:
    return Watch(
        folder=folder,
        loader=loader,
        tracker=tracker,
        stopper=stopper,
        restore_best=config.early_stopping is not None and config.early_stopping["restore_best"],
        writer=writer,
        description=f"{experiments.family_name(experiment)} on {experiments.data_name(experiment)}",
        **config.checkpoint,
    )


def _fit(trainer: pl.Trainer, family: Family, watch: Watch, val: HeldOut | None) -> None:
    loop, loader = trainer.fit_loop, watch.loader
    # A Lightning epoch is one round. After a checkpoint both of Lightning's counts go on from where it was written.
    loop.max_epochs = -(-loader.num_steps // loader.steps_per_round)
    current = loop.epoch_progress.current
    current.processed = current.completed = watch.step // loader.steps_per_round  # type: ignore[attr-defined]
    loop.epoch_loop.manual_optimization.optim_step_progress.total.completed = watch.step
    trainer.callbacks.append(watch)  # type: ignore[attr-defined]  # set by a connector, out of mypy's sight
    with watch:
        try:
            trainer.fit(family, loader, val)
        except RuntimeError as error:
            if "Early stopping conditioned on metric" in str(error):
                raise ConfigError(f"trainer.early_stopping.monitor needs a metric that is there: {error}") from None
            raise


def _test(trainer: pl.Trainer, family: Family, test: HeldOut | None) -> dict[str, float]:
    if test is None:
        return {}
    (metrics,) = trainer.test(family, test, verbose=False)
    return {name: float(value) for name, value in metrics.items()}


def _shard(family: Family, world_size: int) -> None:
    """Fully sharded data parallelism (Zhao et al. 2023): every layer's parameters are split over the workers."""
    family.to(memory_format=torch.contiguous_format)  # channels-last weights cannot be sharded yet (torch 2.13)
    mesh = init_device_mesh(family.device.type, (world_size,))
    for layer in family.children():
        for module in layer.children() if isinstance(layer, torch.nn.ModuleList) else [layer]:
            if any(True for _ in module.parameters()):
                fully_shard(module, mesh=mesh)
    fully_shard(family, mesh=mesh)


def _leave(folder: Path, family: Family, data: ParquetDataModule, watch: Watch) -> None:
    """What a run leaves behind for figures, releases and readers; every worker helps, since weights may be sharded."""
    rows = data.rows("test")
    family.eval()
    dtype = next(family.parameters()).dtype
    with torch.inference_mode():
        outputs = torch.cat([family(batch) for batch in rows.inputs.to(family.device, dtype).split(512)])
    weights = checkpoint.gathered(family.state_dict())
    if watch.writer:
        checkpoint.save_weights(folder / "weights.safetensors", weights)
        checkpoint.save_weights(folder / "predictions.safetensors", {"outputs": outputs, "targets": rows.targets})
        (folder / "history.json").write_text(json.dumps(watch.history))


@contextlib.contextmanager
def _threads(num_threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Lightning's hints on hardware and loaders are about what is handled here; its warnings stay."""
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        # Lightning 2.6 calls what torch 2.13 deprecates.
        warnings.filterwarnings("ignore", message=r".*LeafSpec.* is deprecated", category=FutureWarning)
        try:
            yield
        finally:
            logger.setLevel(level)
