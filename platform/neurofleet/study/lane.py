"""Lane: a place that trains trials, this process or an actor of Ray; plain dicts go in, plain reports come out."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Mapping
from statistics import median
from typing import Any

import torch
from torch import Tensor

from neurofleet.errors import UserError
from neurofleet.experiment import Experiment
from neurofleet.run import plan, threads
from neurofleet.study.cohort import Cohort, Learnt, Points, Row, Tick, Trial
from neurofleet.study.stacking import cohorts
from neurofleet.supply import RowSupply


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of a trial in a round: its scores, and if it is over how it ended.

    state:   None while it trains, else COMPLETE, PRUNED or FAIL
    scores:  of this validation, or those that count where the trial is over
    points:  all that was measured, once it is over
    weights: of a COMPLETE trial that is the best of its lane so far
    measures: the others of `MEASURES`, of a trial that is COMPLETE
    """

    number: int
    epoch: float
    scores: Row
    state: str | None = None
    failure: str | None = None
    points: Points = dataclasses.field(default_factory=list)
    history: list[Row] = dataclasses.field(default_factory=list)
    weights: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    num_parameters: int = 0
    measures: dict[str, float] = dataclasses.field(default_factory=dict)


MEASURES = ("num_parameters", "weights_bytes", "latency_ms")
"""objectives that are measured on a trained network: its size, and the median time of one answer to one row, alone"""
NUM_ANSWERS = 30


class Lane:
    """Trains the trials that it is given.

    wanted:    the objectives: scores that every validation has to give, and `MEASURES`
    rank:      the metric by which a trial is the best, and its sign: 1 if lower is better, else -1; or None
    fuse:      auto, stack or pack
    max_stack: trials in one stack at most
    lockstep:  whether all trials are to be validated before any goes on (a scheduler compares them)
    """

    def __init__(
        self, *, wanted: frozenset[str], rank: tuple[str, int] | None, fuse: str, max_stack: int, lockstep: bool
    ) -> None:
        self.rank, self.fuse, self.max_stack, self.lockstep = rank, fuse, max_stack, lockstep
        self.wanted = wanted - set(MEASURES)
        self._is_timed = "latency_ms" in wanted
        self._best = math.inf
        self._cohorts: list[Cohort] = []
        self._data: dict[str, Any] = {}
        self._num_threads: int | None = None

    def begin(self, experiments: Mapping[int, Experiment]) -> tuple[list[Report], list[str]]:
        """Take trials on, by number; returns a report of each that cannot be built, and what there is to say."""
        trials, refused, said = list[Trial](), list[Report](), list[str]()
        for number, experiment in experiments.items():
            section = json.dumps(experiment["data"], sort_keys=True)
            try:
                planned = plan(experiment, self._data.get(section))
            except UserError as error:
                refused.append(Report(number, 0.0, {}, "FAIL", str(error)))
                continue
            self._data[section] = planned.data
            self._num_threads = planned.config.num_threads
            trials.append(Trial(number, planned))
        with threads(self._num_threads):
            self._cohorts += cohorts(
                trials, wanted=self.wanted, fuse=self.fuse, max_stack=self.max_stack, say=said.append
            )
        return refused, said

    @property
    def training(self) -> set[int]:
        return {trial.number for cohort in self._cohorts for trial in cohort.trials}

    def round(self, tick: Tick) -> list[Report]:
        """Train on to the next validation: all trials in lockstep, else those of one cohort."""
        reports = []
        with threads(self._num_threads):
            for cohort in self._cohorts if self.lockstep else self._cohorts[:1]:
                ended = cohort.round(tick)
                reports += [self._report(trial) for trial in (*ended, *cohort.trials)]
        self._cohorts = [cohort for cohort in self._cohorts if not cohort.finished]
        return reports

    def drop(self, numbers: set[int]) -> list[Report]:
        """Give trials up."""
        gone = [trial for cohort in self._cohorts for trial in cohort.drop(numbers)]
        self._cohorts = [cohort for cohort in self._cohorts if not cohort.finished]
        return [dataclasses.replace(self._report(trial), state="PRUNED", points=trial.points) for trial in gone]

    def learnt(self, number: int) -> Learnt:
        """All that a trial has learnt so far."""
        return next(cohort.learnt(place) for cohort in self._cohorts if (place := cohort.place(number)) is not None)

    def inherit(self, number: int, state: Learnt, experiment: Experiment) -> None:
        """Let a trial go on from what another has learnt, by an experiment that shapes the same network."""
        for cohort in self._cohorts:
            place = cohort.place(number)
            if place is not None:
                cohort.inherit(place, state, plan(experiment, cohort.trials[place].plan.data))

    def _report(self, trial: Trial) -> Report:
        last = trial.history[-1] if trial.history else {"epoch": 0.0}
        scores = {name: value for name, value in last.items() if name not in ("step", "epoch")}
        report = Report(trial.number, last["epoch"], scores, num_parameters=trial.plan.num_parameters)
        if trial.failure is not None:
            return dataclasses.replace(report, state="FAIL", failure=trial.failure, points=trial.points)
        if not trial.ended:
            return report
        weights, measures = dict[str, Tensor](), self._measures(trial)
        if self.rank is not None:
            value = ({**trial.verdict, "num_parameters": report.num_parameters} | measures)[self.rank[0]] * self.rank[1]
            if value < self._best:
                self._best, state = value, trial.plan.family.state_dict()
                weights = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
        return dataclasses.replace(
            report,
            state="COMPLETE",
            scores=trial.verdict,
            points=trial.points,
            history=trial.history,
            weights=weights,
            measures=measures,
        )

    def _measures(self, trial: Trial) -> dict[str, float]:
        state = trial.plan.family.state_dict()
        measures = {"weights_bytes": float(sum(one.numel() * one.element_size() for one in state.values()))}
        if self._is_timed:
            measures["latency_ms"] = _latency(trial)
        return measures


def _latency(trial: Trial) -> float:
    """Milliseconds of one answer on the device that trains, or NaN for an agent, whose rows nobody holds."""
    if not isinstance(trial.plan.supply, RowSupply):
        return math.nan
    family = trial.plan.family.eval()
    row = trial.plan.supply.tensors("val", family.device)[0][:1]
    taken = []
    with torch.inference_mode():
        for _ in range(NUM_ANSWERS):
            begin = time.perf_counter()
            family(row).sum().item()  # which waits for a GPU
            taken.append(1e3 * (time.perf_counter() - begin))
    family.train()
    return median(taken)
