"""run(experiment) -> Result: one execution of an experiment, in this process; it knows neither Ray nor MLflow.

Inside a process group (`torch.distributed` is initialised) every member calls `run` with the same experiment and takes
its part of every global batch; rank 0 alone writes files and logs.  Everything that decides the result is a function of
the experiment, so a run that was cut anywhere goes on from its last checkpoint to the very same weights.

The run's folder then holds experiment.yaml, spec.json, checkpoints/, weights.safetensors, history.json (one row a
validation), predictions.safetensors (outputs and targets of the test rows) and exhibits.safetensors (`picture/array`,
what the family shows of itself): all that figures and a release are made from.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping

from neurofleet import checkpoint, workers
from neurofleet import experiment as experiments
from neurofleet.data import EnvironmentDataModule, ParquetDataModule
from neurofleet.errors import ConfigError, nearest
from neurofleet.experiment import Experiment
from neurofleet.families._base import Family
from neurofleet.progress import Bar, Progress
from neurofleet.steps import Batch
from neurofleet.supply import Supply
from neurofleet.supply import supply as make_supply
from neurofleet.trainer import DTYPES, TrainerConfig
from neurofleet.watch import CHECKPOINTS, Log, Watch
from neurofleet.workers import Group


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run ended with: `metrics` by name (`test/accuracy`), the run's folder, and its size and cost."""

    metrics: dict[str, float]
    folder: Path
    num_parameters: int
    num_steps: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """An experiment with all that it names built: what can be wrong with it has been found, and nothing is written."""

    experiment: Experiment
    config: TrainerConfig
    data: ParquetDataModule | EnvironmentDataModule
    family: Family
    supply: Supply
    num_parameters: int


def plan(experiment: Experiment, data: ParquetDataModule | EnvironmentDataModule | None = None) -> Plan:
    """Build everything that an experiment names; `data`, if it stands in memory already, is the experiment's own.

    Raises:
        UserError: the experiment cannot be run as it stands.
    """
    experiment = experiments.check(experiment)
    config: TrainerConfig = experiments.build(experiment["trainer"], "trainer")
    if experiment["launcher"].get("name") == "local" and config.accelerator == "gpu" and not torch.cuda.is_available():
        raise ConfigError("trainer.accelerator=gpu needs a CUDA device, and this machine has none; use auto or cpu")
    data = data or experiments.build_data(experiment)
    dtype = DTYPES[config.precision]
    family = experiments.build_family(experiment, data.spec).to(dtype)
    family.begin(experiment["seed"])
    num_parameters = sum(parameter.numel() for parameter in family.parameters())
    supply = make_supply(data, family, dtype)
    if config.early_stopping is not None:
        monitor, known = config.early_stopping["monitor"], [f"val/{name}" for name in family.score_names]
        if not supply.validates:
            raise ConfigError("trainer.early_stopping needs validation rows, got none; use data.train_splits=[train]")
        if monitor not in known:
            hint = nearest(monitor, known)
            raise ConfigError(f"trainer.early_stopping.monitor needs a metric that is there, got {monitor!r}; {hint}")
    family.recipe = experiments.build_recipe(
        experiment,
        num_steps=supply.steps_per_epoch * config.max_epochs,
        log_every_n_steps=config.log_every_n_steps,
        gradient_clip_val=config.gradient_clip_val,
    )
    if experiment["launcher"].get("strategy") == "fsdp":
        workers.need_shardable(family)
    family.automatic_optimization = False
    return Plan(experiment, config, data, family, supply, num_parameters)


def run(experiment: Experiment, *, tracker: Log | None = None, folder: Path, resume: bool = False) -> Result:
    """Train, evaluate, and leave the weights in `folder`.

    tracker: where measurements go; on rank 0 only
    folder:  the run's own; with `resume`, its last good checkpoint is where training goes on, or its beginning where
             there is none yet

    Raises:
        UserError: the experiment cannot be run as it stands; nothing was written.
        DivergedError: the loss stopped being finite.
        StoppedError: a signal ended the run after a checkpoint.
        CheckpointError: the disk refused a checkpoint, or none can be read.
    """
    began = time.monotonic()
    planned = plan(experiment)
    num_parameters, group = planned.num_parameters, Group.current()
    place = {"rank": group.rank, "world_size": group.size}
    if resume:
        _need_same(planned.experiment, folder)
    elif checkpoint.exists(folder / CHECKPOINTS):
        raise ConfigError(
            f"a new run needs a folder without checkpoints, got {folder}; take another, or resume that run"
        )
    elif group.is_writer:
        folder.mkdir(parents=True, exist_ok=True)
        experiments.save(planned.experiment, folder / "experiment.yaml")
    if group.is_writer:  # a submitted run has its experiment before it begins, and this now
        planned.data.spec.save(folder / "spec.json")
    with contextlib.closing(planned.supply), threads(planned.config.num_threads), workers.quiet_lightning():
        stopper = _stopper(planned.config)
        trainer = workers.trainer(workers.device_type(planned.config, group), planned.config.precision, stopper, group)
        family = planned.family.to(trainer.strategy.root_device)
        _settle(planned, group)
        watch = _watch(planned, folder, tracker, stopper, family.device, group)
        family.start_together(watch.loader.tensors)
        if group.size > 1 and experiment["launcher"].get("strategy") == "fsdp":
            workers.shard(family, group)
        watch.claim()
        if resume and checkpoint.exists(watch.folder):
            watch.restore(family, *checkpoint.load(watch.folder))
        if not watch.finished:
            _fit(trainer, family, watch, planned.supply.held_out("val", family.device, **place))
        if watch.best:
            family.load_state_dict(watch.best)
        metrics = watch.verdict | _test(trainer, family, planned.supply.held_out("test", family.device, **place))
    if tracker is not None:
        test = {name: value for name, value in metrics.items() if name.startswith("test/")}
        tracker.log_many([(watch.step, watch.step / watch.loader.steps_per_epoch, test)])
    _leave(folder, planned, watch)
    return Result(metrics, folder, num_parameters, watch.step, time.monotonic() - began)


def _settle(planned: Plan, group: Group) -> None:
    """Do what is done once, under a bar of its own: a large backbone takes longer over it than the training takes."""
    place = {"rank": group.rank, "world_size": group.size}
    device = planned.family.device
    if not planned.family.settled or not group.is_writer:
        planned.supply.settle(device, lambda *_: None, **place)
        return
    began: dict[str, float] = {}
    print("computing features of the train, val and test rows, once for all ...", flush=True)
    with Bar("features") as bar:

        def report(stage: str, done: int, whole: int) -> None:
            seconds = time.monotonic() - began.setdefault(stage, time.monotonic())
            eta = max(seconds, 0.0) * (whole - done) / done
            bar.update(Progress(done, whole, 0, planned.config.max_epochs, eta, {}), force=done == whole)

        planned.supply.settle(device, report, **place)


def _need_same(experiment: Experiment, folder: Path) -> None:
    """Going on with other settings would end in weights that no experiment describes."""
    before = experiments.load(folder / "experiment.yaml")
    if experiments.digest(before) != experiments.digest(experiment):
        sections = [key for key in experiment if key not in ("launcher", "name") and before[key] != experiment[key]]
        raise ConfigError(
            f"a run goes on with the experiment that it began with, got other settings of {', '.join(sections)}; "
            f"train a new run, or take the settings of {folder / 'experiment.yaml'}"
        )


def _stopper(config: TrainerConfig) -> EarlyStopping | None:
    if config.early_stopping is None:
        return None
    settings = {key: value for key, value in config.early_stopping.items() if key != "restore_best"}
    # After the validation: at the end of an epoch Lightning calls it after `Watch`, which would see the round before.
    return EarlyStopping(**settings, check_on_train_epoch_end=False, verbose=False)


def _watch(
    planned: Plan, folder: Path, tracker: Log | None, stopper: EarlyStopping | None, device: torch.device, group: Group
) -> Watch:
    config, experiment = planned.config, planned.experiment
    loader = planned.supply.loader(
        device,
        seed=experiment["seed"],
        max_epochs=config.max_epochs,
        epochs_per_round=config.check_val_every_n_epoch,
        cut_every=config.checkpoint["every_n_steps"],
        rank=group.rank,
        world_size=group.size,
    )
    return Watch(
        folder=folder,
        loader=loader,
        tracker=tracker,
        stopper=stopper,
        restore_best=config.early_stopping is not None and config.early_stopping["restore_best"],
        writer=group.is_writer,
        experiment_digest=experiments.digest(experiment),
        description=f"{experiments.family_name(experiment)} on {experiments.data_name(experiment)}",
        **config.checkpoint,
    )


def _fit(trainer: pl.Trainer, family: Family, watch: Watch, val: Iterable[Batch] | None) -> None:
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
        except SystemExit:  # how Lightning answers a second Ctrl-C
            raise KeyboardInterrupt from None


def _test(trainer: pl.Trainer, family: Family, test: Iterable[Batch] | None) -> dict[str, float]:
    if test is None:
        return {}
    (metrics,) = trainer.test(family, test, verbose=False)
    return {name: float(value) for name, value in metrics.items()}


def _leave(folder: Path, planned: Plan, watch: Watch) -> None:
    """What a run leaves behind for figures, releases and readers, what is dearest first; every worker helps, since
    weights may be sharded."""
    family = planned.family.eval()
    weights = family.released(checkpoint.gathered(family.state_dict()))
    if watch.writer:
        checkpoint.save_weights(folder / "weights.safetensors", weights)
        checkpoint.write(folder / "history.json", json.dumps(watch.history).encode())
    with torch.inference_mode():
        # Pictures of weights need whole ones.
        exhibit = watch.writer and not checkpoint.is_sharded(family)
        predictions, shown = planned.supply.leave(watch.loader, watch.history, exhibit=exhibit)
    exhibits = {f"{picture}/{name}": array for picture, arrays in shown.items() for name, array in arrays.items()}
    if watch.writer:
        checkpoint.save_weights(folder / "exhibits.safetensors", exhibits)
        checkpoint.save_weights(folder / "predictions.safetensors", predictions)


@contextlib.contextmanager
def threads(num_threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
