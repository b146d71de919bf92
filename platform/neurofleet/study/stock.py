"""Stock: `search.fuse=off`, trials under Ray Tune as it is: one trial an actor, judged by Ray Tune's own schedulers.

The study still asks its own sampler and writes its own journal: each of its waves is one `ray.tune.Tuner` over those
experiments, in a thread beside the engine.  A trial that Ray Tune pauses, or whose actor dies, trains anew to where it
was before it reports again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import queue
import shutil
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from neurofleet import experiment as experiments
from neurofleet.errors import ConfigError, WorkerError
from neurofleet.experiment import Experiment
from neurofleet.experiment.check import RAY
from neurofleet.launch import workers
from neurofleet.launch.connection import bundle, environment
from neurofleet.launch.machine import num_cpus, num_gpus
from neurofleet.study import schedulers
from neurofleet.study.actors import MOST_DEATHS, SECONDS, on_ray
from neurofleet.study.cohort import Tick
from neurofleet.study.lane import Report

SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the study tracks its trials itself
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "600",
    "RAY_AIR_NEW_OUTPUT": "0",
}


@contextlib.contextmanager
def stock(
    experiment: Experiment, scheduler: Mapping[str, Any], lane: Mapping[str, Any], folder: Path, max_epochs: int
) -> Iterator[StockLanes]:
    """Lanes that hand trials to Ray Tune.

    experiment: one of the study's; its launcher says which Ray, and how much of it a trial gets
    scheduler:  the config of one of ours, for which Ray Tune's own takes its place, or of one of Ray Tune's
    lane:       what `Lane` takes
    folder:     where Ray Tune keeps what it needs while it runs
    max_epochs: of the longest trial

    Raises:
        ConfigError: a scheduler that Ray Tune does not have, or refuses.
        ResourceError: the cluster can never hold a trial.
        UnreachableError: nobody answers at RAY_ADDRESS.
    """
    launcher = _launcher(experiment)
    with (
        environment({name: os.environ.get(name, value) for name, value in SETTINGS.items()}),
        on_ray(launcher) as local,
    ):
        make_scheduler(scheduler, max_epochs)  # what is wrong with it shows before anything is written
        surroundings = workers.worker_environment(launcher, local)
        if not launcher["use_gpu"]:
            surroundings["CUDA_VISIBLE_DEVICES"] = ""
        task: dict[str, Any] = {"lane": {**lane, "fuse": "pack", "lockstep": False}, "environment": surroundings}
        task |= {"working_folder": str(Path.cwd()), "num_threads": launcher["cpus_per_worker"]}
        lanes = StockLanes(launcher, lambda: make_scheduler(scheduler, max_epochs), task, folder)
        try:
            yield lanes
        finally:
            lanes.close()


def _launcher(experiment: Experiment) -> dict[str, Any]:
    """The experiment's own, or all of this machine."""
    launcher: dict[str, Any] = experiment["launcher"]
    if launcher["name"] == "ray":
        return launcher
    use_gpu = experiment["trainer"]["accelerator"] != "cpu" and num_gpus() > 0
    num_workers = num_gpus() if use_gpu else num_cpus()
    return {"name": "ray", "num_workers": num_workers, "cpus_per_worker": 1, "use_gpu": use_gpu, "strategy": "ddp"}


def make_scheduler(config: Mapping[str, Any], max_epochs: int) -> Any:
    """Ray Tune's scheduler: the one that is named, or the one that does what ours does."""
    if config["_target_"].startswith(RAY):
        return experiments.build(dict(config), "scheduler")
    from ray.tune import schedulers as rays

    ours: schedulers.Scheduler = experiments.build(dict(config), "scheduler")
    if isinstance(ours, schedulers.Never):
        return rays.FIFOScheduler()
    by_epoch: dict[str, Any] = {"time_attr": "epoch"}
    if isinstance(ours, schedulers.Median):
        return rays.MedianStoppingRule(**by_epoch, grace_period=ours.grace_epochs, min_samples_required=ours.min_trials)
    if isinstance(ours, schedulers.Hyperband):  # it has no first rung but the one that follows from the last
        return rays.HyperBandScheduler(**by_epoch, max_t=max_epochs, reduction_factor=ours.reduction_factor)
    if isinstance(ours, schedulers.SuccessiveHalving):
        return rays.ASHAScheduler(
            **by_epoch,
            max_t=max_epochs,
            grace_period=min(ours.grace_epochs, max_epochs),
            reduction_factor=ours.reduction_factor,
        )
    raise ConfigError(
        f"search.fuse=off leaves it to Ray Tune to stop and pause trials, got {config['_target_']}, which changes "
        "their settings while they train; use search.fuse=auto, stack or pack"
    )


class StockLanes:
    """Trials of one wave at a time under a `ray.tune.Tuner` (`engine.Lanes`)."""

    def __init__(self, launcher: Mapping[str, Any], scheduler: Any, task: dict[str, Any], folder: Path) -> None:
        self._launcher, self._scheduler, self._task, self._folder = launcher, scheduler, task, folder
        self._news: queue.SimpleQueue[tuple[Report, int] | BaseException | None] = queue.SimpleQueue()
        self._last: dict[int, Report] = {}  # of each trial that trains
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._num_waves = 0

    @property
    def training(self) -> set[int]:
        return set(self._last)

    @property
    def num_devices(self) -> int:
        """As many as trials have at a time."""
        return int(self._launcher["num_workers"])

    def begin(self, experiments: Mapping[int, Experiment]) -> tuple[list[Report], list[str]]:
        """As `Lane.begin`; what cannot be built shows in a round."""
        self._num_waves += 1
        self._last = {number: Report(number, 0.0, {}) for number in experiments}
        tuner = self._tuner(dict(experiments))
        self._thread = threading.Thread(target=self._fit, args=(tuner,), daemon=True)
        self._thread.start()
        place = f"{self._launcher['num_workers']} at a time"
        return [], [f"{len(experiments)} trials under Ray Tune, each in an actor of its own, {place}"]

    def round(self, tick: Tick) -> list[Report]:
        """As `Lane.round`: what Ray Tune has heard of."""
        reports = list[Report]()
        while not reports and self._last:
            try:
                found = self._news.get(timeout=SECONDS)
            except queue.Empty:
                tick(0)
                continue
            if isinstance(found, BaseException):
                raise found
            if found is None:
                return self._ended_with("FAIL", "Ray Tune ended without it")
            report, num_steps = found
            tick(num_steps)
            reports += self._taken(report)
        return reports

    def drop(self, numbers: set[int]) -> list[Report]:
        """As `Lane.drop`, of all that train."""
        assert numbers == self.training, "Ray Tune's own scheduler drops single trials"
        self._end()
        reports = list[Report]()
        while not self._news.empty():
            found = self._news.get()
            if isinstance(found, tuple):
                reports += self._taken(found[0])
        return reports + self._ended_with("PRUNED", None)

    def learnt(self, number: int) -> Any:
        raise AssertionError("no scheduler of this study lets trials inherit")

    def inherit(self, number: int, state: Any, experiment: Experiment) -> None:
        raise AssertionError("no scheduler of this study lets trials inherit")

    def close(self) -> None:
        self._end()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _end(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=30)

    def _taken(self, report: Report) -> list[Report]:
        known = self._last.get(report.number)
        if known is None or (report.state is None and report.epoch <= known.epoch):
            return []
        self._last[report.number] = report
        if report.state is not None:
            del self._last[report.number]
        return [report]

    def _ended_with(self, state: str, failure: str | None) -> list[Report]:
        reports = [dataclasses.replace(one, state=state, failure=failure) for one in self._last.values()]
        self._last.clear()
        return reports

    def _fit(self, tuner: Any) -> None:
        try:
            tuner.fit()
        except BaseException as error:  # noqa: BLE001 -- it is raised where the engine waits
            self._news.put(WorkerError(f"Ray Tune gave the study up: {type(error).__name__}: {error}"))
        self._news.put(None)

    def _tuner(self, wave: dict[int, Experiment]) -> Any:
        from ray import tune

        from neurofleet.study.stock_trial import Stop, Watch, train

        metric, sign = self._task["lane"]["rank"] or (None, 1)
        share = bundle(self._launcher)
        resources = {"cpu": share["CPU"], "gpu": share.get("GPU", 0)}
        trainable = tune.with_parameters(train, task=self._task | {"experiments": wave})
        return tune.Tuner(
            tune.with_resources(trainable, resources),
            param_space={"number": tune.grid_search(sorted(wave))},
            tune_config=tune.TuneConfig(
                metric=metric,
                mode=None if metric is None else "min" if sign == 1 else "max",
                scheduler=self._scheduler(),
                max_concurrent_trials=self._launcher["num_workers"],
            ),
            run_config=tune.RunConfig(
                name=f"wave-{self._num_waves}",
                storage_path=str(self._folder),
                callbacks=[Watch(self._news)],
                stop=Stop(self._stop),
                failure_config=tune.FailureConfig(max_failures=MOST_DEATHS),
                checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
                verbose=0,
            ),
        )
