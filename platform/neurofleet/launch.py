"""Launcher: where an experiment runs: in this process, or on Ray Train workers that form one process group.

    launcher.name=local   run.run(experiment) here
    launcher.name=ray     Ray Train's TorchTrainer starts num_workers workers; each calls run.run(experiment), which
                          finds the process group and takes its share of every batch; rank 0 logs and writes

Only plain resolved dicts cross the border; rank 0's result comes back, or the first worker's error as itself.

Ray Train v2 is used as it is, with its own switches set for short runs (figures in LOG.md).  It asks for the workers'
state every 2 s; here 5 times a second.  Its placement group cleaner asks the dashboard whether the controller lives and
holds up the end of a run for 10 s where there is none, so a private Ray has a dashboard too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import secrets
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurofleet import paths, progress
from neurofleet.errors import ConfigError, NeurofleetError, ResourceError, UnreachableError, WorkerError

if TYPE_CHECKING:
    from neurofleet.run import Result
    from neurofleet.tracking import Tracker

# Ray's own switches; whoever sets one in the environment keeps it.
SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # it would show every line twice
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process more; nobody drains the nodes of a local cluster
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_COLOR_PREFIX": "0",
    "RAY_DEDUP_LOGS": "0",  # it holds lines back for 5 s, and progress lines look alike
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
KEYS = {"name", "num_workers", "use_gpu", "strategy", "cpus_per_worker"}


def launch(experiment: dict[str, Any], *, tracker: Tracker | None, folder: Path, resume: bool) -> Result:
    """Run the experiment where its `launcher` says; arguments and result are those of `run.run`.

    Raises:
        ResourceError: more workers than the cluster has CPUs or GPUs for; nothing was started.
        UnreachableError: RAY_ADDRESS does not answer.
        NeurofleetError: whatever the run itself raises, from whichever worker raised it first.
    """
    launcher = experiment["launcher"]
    if launcher["name"] == "local":
        from neurofleet.run import run

        return run(experiment, tracker=tracker, folder=folder, resume=resume)
    check(launcher)
    task = {
        "experiment": experiment,
        "run_id": None if tracker is None else tracker.run_id,
        "folder": str(folder),
        "resume": resume,
        "working_folder": str(Path.cwd()),
    }
    result = fit(launcher, work, task, folder)
    from neurofleet.run import Result

    return Result(**(result | {"folder": Path(result["folder"])}))


def check(launcher: Mapping[str, Any]) -> None:
    """Raise ConfigError unless this describes workers."""
    if launcher["name"] != "ray":
        raise ConfigError(f"launcher.name needs local or ray, got {launcher['name']!r}")
    if set(launcher) != KEYS:
        raise ConfigError(f"launcher needs the keys {', '.join(sorted(KEYS))}, got {', '.join(sorted(launcher))}")
    for name in ("num_workers", "cpus_per_worker"):
        if not isinstance(launcher[name], int) or launcher[name] < 1:
            raise ConfigError(f"launcher.{name} needs a whole number of at least 1, got {launcher[name]!r}")
    if launcher["strategy"] not in ("ddp", "fsdp"):
        raise ConfigError(f"launcher.strategy needs ddp or fsdp, got {launcher['strategy']!r}")


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


def fit(launcher: Mapping[str, Any], function: Any, task: dict[str, Any], folder: Path) -> Any:
    """Call `function(task)` in every worker of a process group; returns what rank 0 returned."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    bar = progress.Bar(f"{launcher['num_workers']} workers")
    with connected(launcher) as local, bar, _relayed(bar):
        from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        trainer = TorchTrainer(
            _guarded,
            train_loop_config={"function": function, "task": task},
            torch_config=TorchConfig(backend="nccl" if launcher["use_gpu"] else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=launcher["num_workers"], use_gpu=launcher["use_gpu"], resources_per_worker=_bundle(launcher)
            ),
            run_config=RunConfig(
                name="ray_train",
                storage_path=str(folder),
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
                worker_runtime_env={"env_vars": _worker_environment(launcher, local)},
                logging_config=LoggingConfig(log_level="CRITICAL"),  # errors come back as exceptions
            ),
        )
        return _fit(trainer)


def _guarded(config: dict[str, Any]) -> Any:
    """In a worker: any error leaves as a NeurofleetError that pickles and knows when and where it was raised."""
    import torch.distributed as dist

    task = config["task"]
    if os.path.isdir(task.get("working_folder", "")):
        os.chdir(task["working_folder"])
    try:
        return config["function"](task)
    except NeurofleetError as error:
        error.__dict__ |= {"raised_at": time.time(), "rank": dist.get_rank()}
        raise
    except Exception as error:  # noqa: BLE001 -- whatever a family raises has to cross the border
        own = traceback.format_exc().rstrip()
        wrapped = WorkerError(f"worker {dist.get_rank()} raised {type(error).__name__}: {error}\n{own}")
        wrapped.__dict__ |= {"raised_at": time.time(), "rank": dist.get_rank()}
        raise wrapped from None


def _fit(trainer: Any) -> Any:
    """Ray Train's own Ctrl-C handler ends the process with code 0 and stays installed: neither is wanted."""
    from ray.train import TrainingFailedError

    in_main_thread = signal.getsignal(signal.SIGINT)
    try:
        return trainer.fit().return_value
    except TrainingFailedError as error:
        raise _cause(error) from None
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        with contextlib.suppress(ValueError):  # not in the main thread, where Ray leaves the handler alone too
            signal.signal(signal.SIGINT, in_main_thread)


def _cause(error: Any) -> NeurofleetError:
    """The error that came first: the others are workers that lost their partner."""
    failures = [getattr(failure, "_base_exc", failure) for failure in getattr(error, "worker_failures", {}).values()]
    ours = [failure for failure in failures if isinstance(failure, NeurofleetError)]
    if ours:
        return min(ours, key=lambda failure: getattr(failure, "raised_at", math.inf))
    lost = failures[0] if failures else getattr(error, "controller_failure", error)
    lines = [line for line in str(lost).splitlines() if line.strip()] or [type(lost).__name__]
    if "startup timed out" in lines[0]:
        return ResourceError(f"the workers' CPUs or GPUs did not become free in time: {lines[0]}")
    return WorkerError(f"a worker died ({type(lost).__name__}): {lines[0]}")


def _bundle(launcher: Mapping[str, Any]) -> dict[str, float]:
    return {"CPU": launcher["cpus_per_worker"]} | ({"GPU": 1} if launcher["use_gpu"] else {})


def _worker_environment(launcher: Mapping[str, Any], loopback: bool) -> dict[str, str]:
    """Threads as granted, none of which spins when idle; gloo on the interface that the cluster uses."""
    threads = str(launcher["cpus_per_worker"])
    environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    environment |= {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
    environment |= {"NEUROFLEET_HOME": str(paths.home()), "NEUROFLEET_DATA": str(paths.data())}
    environment |= {name: os.environ[name] for name in ("MLFLOW_TRACKING_URI", "PYTHONPATH") if name in os.environ}
    if loopback:
        environment["GLOO_SOCKET_IFNAME"] = "lo" if sys.platform == "linux" else "lo0"
    return environment


@contextlib.contextmanager
def connected(launcher: Mapping[str, Any]) -> Iterator[bool]:
    """A connection to a Ray that has what the launcher asks for; yields whether all of it is on 127.0.0.1."""
    address = os.environ.get("RAY_ADDRESS") or _platform_address()
    private = address in (None, "local")
    if private:
        _need(launcher, [_this_machine()])
        print("starting a private Ray for this run: 10 to 40 s (`neurofleet up` keeps one ready) ...", flush=True)
        ensure_token()
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # loopback; see cluster/servers.py
    os.environ.update(authentication())
    import ray

    mine = not ray.is_initialized()
    if mine:
        _connect(address, private)
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        _need(launcher, nodes)
        _say_if_busy(launcher, ray.available_resources())
        yield all(node["NodeManagerAddress"] == "127.0.0.1" for node in ray.nodes() if node["Alive"])
    finally:
        if mine:
            ray.shutdown()


def _connect(address: str | None, private: bool) -> None:
    import ray

    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": True}
    if private:
        # Without a dashboard, see the top.
        options |= {"address": "local", "include_dashboard": True, "dashboard_host": "127.0.0.1"}
        options |= {"_node_ip_address": "127.0.0.1"}
    try:
        ray.init(**({"address": address} | options))
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UnreachableError(
            f"launcher=ray needs a Ray cluster at {address}, got: {reason}; mend or unset RAY_ADDRESS, "
            "or use launcher=local"
        ) from None


def _need(launcher: Mapping[str, Any], nodes: list[dict[str, float]]) -> None:
    """Raise ResourceError if the workers can never all run at once."""
    bundle = _bundle(launcher)
    places = sum(int(min(node.get(kind, 0) // amount for kind, amount in bundle.items())) for node in nodes)
    if places >= launcher["num_workers"]:
        return
    has = ", ".join(f"{sum(node.get(kind, 0) for node in nodes):g} {kind}s" for kind in ("CPU", "GPU"))
    wants = " and ".join(f"{amount:g} {kind}" for kind, amount in bundle.items())
    raise ResourceError(
        f"launcher.num_workers={launcher['num_workers']} with {wants} each needs more than the cluster has: {has} on "
        f"{len(nodes)} node(s), room for {places} worker(s); lower launcher.num_workers or launcher.cpus_per_worker"
    )


def _say_if_busy(launcher: Mapping[str, Any], free: dict[str, float]) -> None:
    for kind, amount in _bundle(launcher).items():
        wanted = amount * launcher["num_workers"]
        if free.get(kind, 0) < wanted:
            print(f"waiting for {wanted:g} {kind}s, {free.get(kind, 0):g} are free now ...", flush=True)


def _this_machine() -> dict[str, float]:
    """What a private Ray will have, seen without starting it.  GPUs are for Ray to count."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"CPU": usable, "GPU": math.inf}


def _platform_address() -> str | None:
    """host:port of the Ray head that `neurofleet up` started, if its door is open."""
    try:
        address = str(json.loads((paths.home() / "platform.json").read_text())["ray"]["address"])
    except FileNotFoundError:
        return None
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
    except OSError:
        return None
    return address


def authentication() -> dict[str, str]:
    """Ray's settings for token authentication: the user's if there are any, else this platform's token."""
    names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    settings = {name: os.environ[name] for name in names if os.environ.get(name)}
    settings.setdefault("RAY_AUTH_MODE", "token")
    if "RAY_AUTH_TOKEN" not in settings:
        settings.setdefault("RAY_AUTH_TOKEN_PATH", str(paths.home() / "ray_token"))
    return settings


def ensure_token() -> None:
    """Make the token that Ray's clients and servers share, readable by this user alone, unless there is one."""
    file = authentication().get("RAY_AUTH_TOKEN_PATH")
    if file and not Path(file).exists():
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as token:
            token.write(secrets.token_hex(32))


@contextlib.contextmanager
def _relayed(bar: progress.Bar) -> Iterator[None]:
    """What workers print is shown without Ray's prefix, and their progress moves the bar."""
    relays = [Relay(sys.stdout, bar), Relay(sys.stderr, bar)]
    with contextlib.redirect_stdout(relays[0]), contextlib.redirect_stderr(relays[1]):  # type: ignore[type-var]
        yield


class Relay:
    """A text stream that passes on whole lines to another, cleaned."""

    def __init__(self, stream: Any, bar: progress.Bar) -> None:
        self.rich_proxied_file = getattr(stream, "rich_proxied_file", stream)  # so that the bar draws past this
        self._stream = stream
        self._bar = bar

    def write(self, text: str) -> int:
        if text.startswith("(") and "pid=" in text:
            _, _, text = text.partition(") ")
            seen = progress.parse(text)
            if seen is not None:
                self._bar.update(seen)
                return len(text)
        self._stream.write(text)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
