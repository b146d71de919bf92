"""Launcher: where an experiment runs: in this process, or on Ray Train workers that form one process group.

    launcher.name=local   run.run(experiment) here
    launcher.name=ray     Ray Train's TorchTrainer starts num_workers workers; each calls run.run(experiment), which
                          finds the process group and takes its share of every batch; rank 0 logs and writes

Only plain resolved dicts cross the border; rank 0's result comes back, or the first worker's error as itself.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurofleet.errors import ConfigError
from neurofleet.launch import workers
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

if TYPE_CHECKING:
    from neurofleet.run import Result
    from neurofleet.tracking import Tracker

__all__ = ["API_SERVER", "LOOPBACK", "authentication", "check", "cluster_nodes", "ensure_token", "is_open", "launch"]
__all__ += ["passed_on", "running", "runs"]


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
    result = workers.fit(launcher, work, task, folder)
    from neurofleet.run import Result

    return Result(**(result | {"folder": Path(result["folder"])}))


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
