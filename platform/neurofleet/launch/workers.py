"""Ray Train workers: the same function in each, one process group, one result.

Ray Train v2 is used as it is, with its own switches set for short runs (figures in LOG.md).  It asks for the workers'
state every 2 s; here 5 times a second.  Its placement group cleaner asks the dashboard whether the controller lives and
holds up the end of a run for 12 s where it finds none: so a private Ray has a dashboard too, and actors are told where.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from neurofleet import progress
from neurofleet.errors import ConfigError, LostWorkerError, NeurofleetError, ResourceError, StoppedError, WorkerError
from neurofleet.launch.connection import bundle, connected, environment, passed_on
from neurofleet.launch.relay import relayed
from neurofleet.launch.size import bounds

# Ray's own switches; whoever sets one in the environment keeps it.
SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "60",  # for a worker that hangs or was stopped; Ray's is ten minutes
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # it would show every line twice
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process more; nobody drains the nodes of a local cluster
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_COLOR_PREFIX": "0",
    "RAY_DEDUP_LOGS": "0",  # it holds lines back for 5 s, and progress lines look alike
    "RAY_USAGE_STATS_ENABLED": "0",
}
# What gloo and NCCL say when the process at the other end is gone.
PARTNER_LOST = re.compile(
    r"[Cc]onnection (reset|closed|refused)|[Bb]roken pipe|remote process exited|Timed out waiting"
)
KEYS = {"name", "num_workers", "use_gpu", "strategy", "cpus_per_worker"}


def check(launcher: Mapping[str, Any]) -> None:
    """Raise ConfigError unless this describes where an experiment can run."""
    if launcher.get("name") not in ("local", "ray"):
        raise ConfigError(f"launcher.name needs local or ray, got {launcher.get('name')!r}")
    keys = KEYS if launcher["name"] == "ray" else {"name"}
    if set(launcher) != keys:
        raise ConfigError(
            f"launcher={launcher['name']} needs the keys {', '.join(sorted(keys))}, got {', '.join(sorted(launcher))}"
        )
    if launcher["name"] == "local":
        return
    bounds(launcher)
    threads = launcher["cpus_per_worker"]
    if type(threads) is not int or threads < 1:  # not isinstance: True is an int
        raise ConfigError(f"launcher.cpus_per_worker needs a whole number of at least 1, got {threads!r}")
    if not isinstance(launcher["use_gpu"], bool):
        raise ConfigError(f"launcher.use_gpu needs true or false, got {launcher['use_gpu']!r}")
    if launcher["strategy"] not in ("ddp", "fsdp"):
        raise ConfigError(f"launcher.strategy needs ddp or fsdp, got {launcher['strategy']!r}")


def settings() -> dict[str, str]:
    """The environment in which this process has to import and use Ray."""
    return {name: os.environ.get(name, value) for name, value in SETTINGS.items()}


def fit(
    launcher: Mapping[str, Any], function: Callable[[dict[str, Any]], Any], task: dict[str, Any], folder: Path
) -> Any:
    """Call `function(task)` in every worker of a process group; returns what rank 0 returned."""
    with ready(launcher, f"{launcher['num_workers']} workers") as local:
        print(f"starting {launcher['num_workers']} workers ...", flush=True)
        return attempt(launcher, function, task, folder, local=local)


@contextlib.contextmanager
def ready(launcher: Mapping[str, Any], what: str) -> Iterator[bool]:
    """A connection to the Ray on which workers start, under a bar of their progress; yields as `connected` does."""
    bar = progress.Bar(what)
    # The relay is the outermost: the last lines arrive while the connection closes.
    with bar, relayed(bar), environment(settings()), connected(launcher) as local:
        yield local


def attempt(
    launcher: Mapping[str, Any],
    function: Callable[[dict[str, Any]], Any],
    task: dict[str, Any],
    folder: Path,
    *,
    local: bool,
) -> Any:
    """`fit`, where Ray is connected already.

    local: whether all of it is on 127.0.0.1
    """
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    from neurofleet.launch.stopping import stopping  # with torch, which a look at the list of jobs does not need

    train: Any = ray.train  # mypy sees the classes of v1
    trainer = TorchTrainer(
        _guarded,
        train_loop_config={"function": function, "task": task},
        torch_config=TorchConfig(backend="nccl" if launcher["use_gpu"] else "gloo"),
        scaling_config=train.ScalingConfig(
            num_workers=launcher["num_workers"], use_gpu=launcher["use_gpu"], resources_per_worker=bundle(launcher)
        ),
        run_config=train.RunConfig(
            name="ray_train",
            storage_path=str(folder),
            failure_config=train.FailureConfig(max_failures=0, controller_failure_limit=0),
            worker_runtime_env={"env_vars": worker_environment(launcher, local)},
            logging_config=train.LoggingConfig(log_level="CRITICAL"),  # errors come back as exceptions
        ),
    )
    with stopping(folder):
        return _fit(trainer)


def _guarded(config: dict[str, Any]) -> Any:
    import torch.distributed as dist

    task = config["task"]
    enter(task.get("working_folder", ""))
    with guarded(f"worker {dist.get_rank()}"):
        return config["function"](task)


def enter(working_folder: str) -> None:
    """Work where the driver works, if this machine has that folder."""
    if os.path.isdir(working_folder):
        os.chdir(working_folder)


@contextlib.contextmanager
def guarded(who: str) -> Iterator[None]:
    """In a worker: any error leaves as a NeurofleetError that pickles and knows when it was raised."""
    try:
        yield
    except NeurofleetError as error:
        error.__dict__.update(raised_at=time.time(), raised_by=who)
        raise
    except Exception as error:  # noqa: BLE001 -- whatever a family raises has to cross the border
        own = traceback.format_exc().rstrip()
        wrapped = WorkerError(f"{who} raised {type(error).__name__}: {error}\n{own}")
        wrapped.__dict__.update(raised_at=time.time(), raised_by=who)
        raise wrapped from None


def _fit(trainer: Any) -> Any:
    """Ray Train's own Ctrl-C handler ends the process with code 0 and stays installed: neither is wanted."""
    from ray.exceptions import RayActorError
    from ray.train import TrainingFailedError

    interrupt = signal.getsignal(signal.SIGINT)
    try:
        return trainer.fit().return_value
    except TrainingFailedError as error:
        raise _cause(error) from None
    except RayActorError as error:
        first = next(iter(str(error).splitlines()), "")
        raise LostWorkerError(f"the controller of the workers died ({type(error).__name__}): {first}") from None
    except SystemExit as ended:
        if ended.code == signal.SIGTERM:  # outside the main thread, where Ray's own handler is at work
            raise StoppedError("stopped by SIGTERM", signal.SIGTERM) from None
        raise KeyboardInterrupt from None
    finally:
        with contextlib.suppress(ValueError):  # not in the main thread, where Ray leaves the handler alone too
            signal.signal(signal.SIGINT, interrupt)


def _cause(error: Any) -> NeurofleetError:
    """The error that came first: the others are workers that lost their partner.

    A worker that is killed says nothing, and its partners complain of the connection: then it is the one that counts.
    """
    found = getattr(error, "worker_failures", {})
    failures = {rank: getattr(failure, "_base_exc", failure) for rank, failure in found.items()}
    ours = [failure for failure in failures.values() if isinstance(failure, NeurofleetError)]
    silent = len(ours) < len(failures)
    if ours and not (silent and all(PARTNER_LOST.search(str(failure)) for failure in ours)):
        return min(ours, key=lambda failure: getattr(failure, "raised_at", math.inf))
    strangers = [(f"worker {rank}", one) for rank, one in failures.items() if not isinstance(one, NeurofleetError)]
    who, lost = strangers[0] if strangers else ("a worker", getattr(error, "controller_failure", error))
    lines = [line for line in str(lost).splitlines() if line.strip()] or [type(lost).__name__]
    if "startup timed out" in lines[0]:
        return ResourceError(f"the workers' CPUs or GPUs did not become free in time: {lines[0]}")
    if type(lost).__name__ == "WorkerHealthCheckTimeoutError":
        seconds = settings()["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"]
        named = LostWorkerError(f"{who} did not answer for {seconds} s: stopped, hung, or cut off")
    else:
        named = LostWorkerError(f"{who} died ({type(lost).__name__}): {lines[0]}")
    named.__dict__["raised_by"] = who
    return named


def worker_environment(launcher: Mapping[str, Any], loopback: bool) -> dict[str, str]:
    """Threads as granted, none of which spins when idle; gloo on the interface that the cluster uses."""
    threads = str(launcher["cpus_per_worker"])
    wanted = passed_on() | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    wanted |= {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
    wanted["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "1"  # who is granted no GPU sees none; else Ray 2.60 shows all
    if loopback:
        wanted["GLOO_SOCKET_IFNAME"] = "lo" if sys.platform == "linux" else "lo0"
    return wanted
