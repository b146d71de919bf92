"""What Ray Tune runs and watches of one trial: `train` in its actor, `Watch` and `Stop` beside the tuner."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import queue
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ray import tune

from neurofleet.errors import NeurofleetError
from neurofleet.launch import workers
from neurofleet.study.actors import MOST_DEATHS
from neurofleet.study.cohort import Points
from neurofleet.study.lane import Lane, Report

FILE = "report.pt"
News = queue.SimpleQueue[tuple[Report, int] | BaseException | None]  # with how many steps were taken since the last one


def train(config: dict[str, Any], task: Mapping[str, Any]) -> None:
    """A trial from its beginning to its end; a validation that was reported before is not reported again."""
    os.environ.update(task["environment"])
    workers.enter(task["working_folder"])
    torch.set_num_threads(task["num_threads"])
    logging.getLogger("ray").setLevel(logging.ERROR)  # where each checkpoint lies
    number = config["number"]
    earlier = tune.get_checkpoint()
    known = 0.0 if earlier is None else read(Path(earlier.path)).epoch
    lane, num_steps = Lane(**task["lane"]), list[int]()
    report = Report(number, known, {})
    try:
        with workers.guarded("an actor"):
            refused, _ = lane.begin({number: task["experiments"][number]})
            report = refused[0] if refused else report
            while report.state is None:
                (report,) = lane.round(num_steps.append)
                if report.state is None and report.epoch > known:
                    _tell(report, sum(num_steps), task["lane"]["rank"])
    except NeurofleetError as error:
        report = dataclasses.replace(report, state="FAIL", failure=str(error).splitlines()[0])
    _tell(report, sum(num_steps), task["lane"]["rank"])


def _tell(report: Report, step: int, rank: tuple[str, int] | None) -> None:
    scores = {"num_parameters": report.num_parameters} | report.scores
    if report.state == "FAIL" and rank is not None:
        scores |= {rank[0]: rank[1] * math.inf}  # to a scheduler, the worst there is
    with tempfile.TemporaryDirectory() as folder:
        torch.save(dataclasses.asdict(report), Path(folder) / FILE)
        measured = {"epoch": round(report.epoch), "step": step, "over": report.state is not None}
        tune.report(scores | measured, checkpoint=tune.Checkpoint.from_directory(folder))


def read(folder: Path) -> Report:
    return Report(**torch.load(folder / FILE, weights_only=True))


class Watch(tune.Callback):
    """Hands on what Ray Tune hears of trials."""

    def __init__(self, news: News) -> None:
        self._news = news
        self._points: dict[int, Points] = {}
        self._steps: dict[int, int] = {}

    def __reduce__(self) -> tuple[type[Watch], tuple[News]]:
        """Ray Tune writes itself down, to go on after a crash; here the study's journal does."""
        return type(self), (None,)  # type: ignore[return-value]

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **_: Any) -> None:
        number, step, epoch = trial.config["number"], result["step"], float(result["epoch"])
        taken, self._steps[number] = step - self._steps.get(number, 0), step
        scores = {name: value for name, value in result.items() if name.startswith(("train/", "val/"))}
        if not result["over"]:
            self._points.setdefault(number, []).append((step, epoch, scores))
        self._news.put((Report(number, epoch, scores, num_parameters=result["num_parameters"]), taken))

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        number = trial.config["number"]
        points = self._points.pop(number, [])
        if trial.last_result.get("over"):
            report = read(Path(trial.checkpoint.path))
        else:
            epoch, scores = points[-1][1:] if points else (0.0, {})
            size = trial.last_result.get("num_parameters", 0)
            report = Report(number, epoch, scores, "PRUNED", points=points, num_parameters=size)
        self._news.put((report, 0))

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        lines = [line for line in str(trial.get_pickled_error() or trial.get_error() or "").splitlines() if line]
        reason = f"its actor died {MOST_DEATHS + 1} times, lastly: {(lines or ['no reason'])[0]}"
        self._news.put((Report(trial.config["number"], 0.0, {}, "FAIL", reason), 0))


class Stop(tune.Stopper):
    """Ends all trials once the event is set."""

    def __init__(self, event: threading.Event | None) -> None:
        self._event = event

    def __reduce__(self) -> tuple[type[Stop], tuple[None]]:
        return type(self), (None,)

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return self.stop_all()

    def stop_all(self) -> bool:
        return self._event is not None and self._event.is_set()
