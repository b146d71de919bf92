"""A `Lane` in an actor of Ray: what it is asked, and how its answers come back."""

from __future__ import annotations

import dataclasses
import io
import time
from collections.abc import Mapping
from typing import Any

import torch

from neurofleet.errors import NeurofleetError, WorkerError
from neurofleet.experiment import Experiment
from neurofleet.launch import workers
from neurofleet.study.cohort import Learnt
from neurofleet.study.lane import Lane, Report

PATIENCE = 30.0  # seconds between words about an actor that has not started
MOST_PATIENCE = 600.0  # after so many it counts as dead; a cluster may start a machine for it meanwhile


@dataclasses.dataclass(frozen=True)
class Answer:
    """Reports, what there is to say, and how many steps of trials were taken."""

    reports: list[Report]
    said: list[str] = dataclasses.field(default_factory=list)
    num_steps: int = 0


class LaneActor:
    """What runs in an actor; errors leave it as NeurofleetErrors."""

    def __init__(self, settings: Mapping[str, Any], working_folder: str) -> None:
        workers.enter(working_folder)
        self._lane = Lane(**settings)

    def begin(self, experiments: Mapping[int, Experiment]) -> Answer:
        with workers.guarded("an actor"):
            return Answer(*self._lane.begin(experiments))

    def round(self) -> Answer:
        taken: list[int] = []
        with workers.guarded("an actor"):
            return Answer(self._lane.round(taken.append), num_steps=sum(taken))

    def begin_again(self, experiments: Mapping[int, Experiment], epochs: Mapping[int, float]) -> Answer:
        """In the place of an actor that died: trials train anew to the epochs that they had come to."""
        begun = self.begin(experiments)
        over = begun.reports
        behind = {number for number in self._lane.training if epochs.get(number, 0.0) > 0}
        while behind & self._lane.training:
            for report in self.round().reports:
                if report.state is not None:
                    over.append(report)
                elif report.epoch >= epochs.get(report.number, 0.0):
                    behind.discard(report.number)
        return Answer(over, begun.said)

    def drop(self, numbers: set[int]) -> Answer:
        with workers.guarded("an actor"):
            return Answer(self._lane.drop(numbers))

    def learnt(self, number: int) -> bytes:
        """`Lane.learnt`, sealed: its tensors come back on the device that they were on, which the driver may lack."""
        with workers.guarded("an actor"):
            state, sealed = self._lane.learnt(number), io.BytesIO()
            torch.save({"weights": state.weights, "optimizer": state.optimizer}, sealed)
            return sealed.getvalue()

    def inherit(self, number: int, sealed: bytes, experiment: Experiment) -> None:
        with workers.guarded("an actor"):
            state = Learnt(**torch.load(io.BytesIO(sealed), weights_only=True))
            self._lane.inherit(number, state, experiment)


class LostError(Exception):
    """An actor is gone, and why."""


class Seat:
    """An actor, the trials that it has and that are not over, and its call that has not been answered."""

    def __init__(self, actor: Any) -> None:
        self.take(actor)
        self.trials: dict[int, Experiment] = {}
        self.call: Any = None

    def take(self, actor: Any) -> None:
        self.actor, self._started = actor, actor.__ray_ready__.remote()
        self._since = self._told = time.monotonic()

    def need_place(self, name: str) -> None:
        """Say so where the actor does not run yet.

        Raises:
            LostError: it has not for too long.
        """
        now = time.monotonic()
        if now - self._told < PATIENCE or answered([self._started], 0):
            return
        self._told = now
        waited = now - self._since
        if waited >= MOST_PATIENCE:
            raise LostError(f"it did not start in {waited:.0f} s; is there room for it in the cluster?")
        print(
            f"{name} has not started in {waited:.0f} s (the cluster is full, or slow); {len(self.trials)} trials wait",
            flush=True,
        )


def answered(calls: list[Any], seconds: float) -> list[Any]:
    """Those of the calls that are answered, after so many seconds at most."""
    import ray

    try:
        return list(ray.wait(calls, timeout=seconds)[0])
    except SystemError as error:  # how Ray hands on what a signal raised
        raise error.__cause__ or error from None


def get(call: Any) -> Any:
    """The answer to a call.

    Raises:
        LostError: the actor is gone.
        NeurofleetError: what was raised in the actor; Ray itself failed.
    """
    import ray
    from ray import exceptions

    try:
        return ray.get(call)
    except exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, NeurofleetError) else WorkerError(str(error)) from None
    except (
        exceptions.RayActorError,
        exceptions.ActorUnschedulableError,
        exceptions.NodeDiedError,
        exceptions.ObjectLostError,
        exceptions.OutOfMemoryError,
        exceptions.WorkerCrashedError,
    ) as error:
        raise LostError(_reason(error)) from None
    except exceptions.RayError as error:
        raise WorkerError(f"Ray lost an actor's answer ({type(error).__name__}): {_reason(error)}") from None


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if line.startswith("The actor is dead because")), (lines or ["no reason"])[0])
