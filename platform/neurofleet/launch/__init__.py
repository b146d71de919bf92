"""Launcher: where an experiment runs: in this process, or on Ray Train workers that form one process group.

    launcher.name=local   run.run(experiment) here
    launcher.name=ray     Ray Train's TorchTrainer starts num_workers workers; each calls run.run(experiment), which
                          finds the process group and takes its share of every batch; rank 0 logs and writes

Only plain resolved dicts cross the border; rank 0's result comes back, or the first worker's error as itself.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurofleet.errors import ConfigError
from neurofleet.launch import elastic, workers
from neurofleet.launch.connection import (
    API_SERVER,
    LOOPBACK,
    authentication,
    check_room,
    cluster_nodes,
    ensure_token,
    environment,
    passed_on,
)
from neurofleet.launch.machine import is_open, running, runs
from neurofleet.launch.size import is_elastic, need_fixed

if TYPE_CHECKING:
    from neurofleet.run import Result
    from neurofleet.tracking import Tracker

__all__ = ["API_SERVER", "LOOPBACK", "authentication", "check", "cluster_nodes", "ensure_token", "is_open", "launch"]
__all__ += ["need_fixed", "passed_on", "running", "runs"]

NUM_WORKERS = "launcher/num_workers"  # a metric over steps, and a tag with its latest value


def check(experiment: dict[str, Any]) -> None:
    """Find out, before anything is written, whether `launch` has somewhere to run the experiment.

    Raises:
        ConfigError: a launcher that is none, or that contradicts the trainer about the device.
        ResourceError: more workers than the cluster has CPUs or GPUs for.
        UnreachableError: nobody answers at RAY_ADDRESS.
    """
    launcher = experiment["launcher"]
    workers.check(launcher)
    if launcher["name"] == "local":
        return
    accelerator = experiment["trainer"]["accelerator"]
    if accelerator == ("cpu" if launcher["use_gpu"] else "gpu"):
        raise ConfigError(
            f"trainer.accelerator and launcher.use_gpu need to agree, got {accelerator} and "
            f"{str(launcher['use_gpu']).lower()}; use trainer.accelerator=auto"
        )
    by_steps = launcher["strategy"] == "ddp" or experiment["trainer"]["checkpoint"]["every_n_steps"] is not None
    if is_elastic(launcher) and not by_steps:
        raise ConfigError(
            "launcher.strategy=fsdp with num_workers=[minimum, maximum] needs trainer.checkpoint.every_n_steps, got "
            "null: sharded workers save by steps alone, and have nothing to go on from else; set it, or strategy=ddp"
        )
    with environment(workers.settings()):  # Ray reads some of it when it is imported
        check_room(launcher)


def launch(experiment: dict[str, Any], *, tracker: Tracker | None, folder: Path, resume: bool) -> Result:
    """Run the experiment where its `launcher` says; arguments and result are those of `run.run`.

    Raises:
        ResourceError: more workers than the cluster has CPUs or GPUs for; nothing was started.
        UnreachableError: RAY_ADDRESS does not answer.
        NeurofleetError: whatever the run itself raises, from whichever worker raised it first.
    """
    launcher = experiment["launcher"]
    check(experiment)
    if launcher["name"] == "local":
        from neurofleet.run import run

        return run(experiment, tracker=tracker, folder=folder, resume=resume)
    task = {
        "experiment": experiment,
        "run_id": None if tracker is None else tracker.run_id,
        "folder": str(folder),
        "resume": resume,
        "working_folder": str(Path.cwd()),
    }
    if is_elastic(launcher):
        result = elastic.fit(launcher, work, task, folder, lambda size, step: _note(tracker, size, step))
    else:
        result = workers.fit(launcher, work, task, folder)
    from neurofleet.run import Result

    return Result(**(result | {"folder": Path(result["folder"])}))


def _note(tracker: Tracker | None, num_workers: int, step: int) -> None:
    """How many workers train from this step on is part of the run's record."""
    if tracker is not None:
        tracker.log_metrics(step, math.nan, {NUM_WORKERS: num_workers})
        tracker.set_tags({NUM_WORKERS: num_workers})


def work(task: dict[str, Any]) -> dict[str, Any]:
    """What each worker does."""
    import torch.distributed as dist

    from neurofleet.run import run
    from neurofleet.tracking import Tracker

    tracker = None
    if task["run_id"] is not None and dist.get_rank() == 0:
        tracker = Tracker.attach(task["run_id"])
    try:
        result = run(task["experiment"], tracker=tracker, folder=Path(task["folder"]), resume=task["resume"])
    finally:
        if tracker is not None:
            tracker.finish()
    return dataclasses.asdict(result) | {"folder": str(result.folder)}
