"""Lane: a place that trains trials, this process or an actor of Ray; plain dicts go in, plain reports come out."""

from __future__ import annotations

import dataclasses
import json
import math
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from neurofleet.data import ParquetDataModule
from neurofleet.errors import StoppedError, UserError
from neurofleet.experiment import Experiment
from neurofleet.run import plan, threads
from neurofleet.study.cohort import Cohort, Learnt, Points, Row, Tick, Trial
from neurofleet.study.single import Single
from neurofleet.study.stacking import cohorts
from neurofleet.supply import RowSupply, Supply


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of a trial in a round: its scores, and if it is over how it ended.

    state:   None while it trains, else COMPLETE, PRUNED or FAIL
    scores:  of this validation, or those that count where the trial is over
    points:  all that was measured, once it is over
    weights: of a COMPLETE trial that is the best of its lane so far
    measures: the others of `MEASURES`, of a trial that is COMPLETE
    broke:    whether it failed by an error that nobody foresaw
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
    broke: bool = False


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
        self._best = math.inf, 0  # the value of the best trial, by sign, and its number: the first of equals counts
        self._cohorts: list[Cohort] = []
        self._data: dict[str, Any] = {}
        self._supplies: dict[int, Supply] = {}  # of the trials that train, which may hold environments open
        self._num_threads: int | None = None

    @property
    def num_devices(self) -> int:
        """This process, and the GPU that it may have."""
        return 1

    def begin(self, experiments: Mapping[int, Experiment]) -> tuple[list[Report], list[str]]:
        """Take trials on, by number; returns a report of each that cannot be built, and what there is to say."""
        trials, refused, said = list[Trial](), list[Report](), list[str]()
        for number, experiment in experiments.items():
            try:
                trials.append(self._planned(number, experiment))
            except Exception as error:  # noqa: BLE001  whatever a family raises is a matter of its trial alone
                refused.append(self._broke(number, error))
        with threads(self._num_threads):
            try:
                self._cohorts += cohorts(
                    trials, wanted=self.wanted, fuse=self.fuse, max_stack=self.max_stack, say=said.append
                )
            except StoppedError:
                raise
            except Exception as error:  # noqa: BLE001
                said.append(f"{len(trials)} trials one after another: {_line(error)}")
                made = [self._alone(trial.number, trial.plan.experiment) for trial in trials]
                refused += [one for one in made if isinstance(one, Report)]
                self._cohorts += [one for one in made if isinstance(one, Cohort)]
        return refused, said

    def _planned(self, number: int, experiment: Experiment) -> Trial:
        self._release(number)
        section, batch_size = dict(experiment["data"]), experiment["data"].get("batch_size")
        section.pop("batch_size", None)
        key = json.dumps(section, sort_keys=True)
        data = self._data.get(key)
        if data is not None and data.batch_size != batch_size:
            data = data.with_batch_size(batch_size) if isinstance(data, ParquetDataModule) else None
        planned = plan(experiment, data)
        self._data[key] = planned.data
        self._num_threads = planned.config.num_threads
        self._supplies[number] = planned.supply
        return Trial(number, planned)

    def _alone(self, number: int, experiment: Experiment) -> Cohort | Report:
        """A trial from its beginning, or how it failed."""
        try:
            return Single(self._planned(number, experiment), self.wanted)
        except Exception as error:  # noqa: BLE001
            return self._broke(number, error)

    def _broke(self, number: int, error: Exception) -> Report:
        if isinstance(error, StoppedError):
            raise error
        self._release(number)
        return Report(number, 0.0, {}, "FAIL", _line(error), broke=not isinstance(error, UserError))

    def _release(self, number: int) -> None:
        supply = self._supplies.pop(number, None)
        if supply is not None:
            supply.close()

    @property
    def training(self) -> set[int]:
        return {trial.number for cohort in self._cohorts for trial in cohort.trials}

    def round(self, tick: Tick) -> list[Report]:
        """Train on to the next validation: all trials in lockstep, else those of one cohort."""
        reports = list[Report]()
        with threads(self._num_threads):
            for cohort in list(self._cohorts if self.lockstep else self._cohorts[:1]):
                reports += self._advanced(cohort, tick)
        self._cohorts = [cohort for cohort in self._cohorts if not cohort.finished]
        return reports

    def _advanced(self, cohort: Cohort, tick: Tick) -> list[Report]:
        """Reports of a round.  One trial that breaks fails; of a stack nobody knows which it was, so its trials begin
        again, each alone, and come to where the others are."""
        try:
            ended = cohort.round(tick)
        except StoppedError:
            raise
        except Exception as error:  # noqa: BLE001  whatever a family raises is a matter of its trial alone
            self._cohorts.remove(cohort)
            if len(cohort.trials) == 1:
                [trial] = cohort.trials
                report = self._broke(trial.number, error)
                return [dataclasses.replace(report, points=trial.points, num_parameters=trial.plan.num_parameters)]
            print(f"{len(cohort.trials)} trials of a stack begin again, each alone: {_line(error)}", flush=True)
            return [report for trial in cohort.trials for report in self._again(trial, tick)]
        return [self._report(trial) for trial in (*ended, *cohort.trials)]

    def _again(self, trial: Trial, tick: Tick) -> Iterator[Report]:
        """What a trial alone reports once it is beyond what it reported in the stack."""
        alone = self._alone(trial.number, trial.plan.experiment)
        if isinstance(alone, Report):
            yield alone
            return
        self._cohorts.append(alone)
        known = trial.history[-1]["epoch"] if trial.history else 0.0
        [report] = self._advanced(alone, tick)
        while report.state is None and report.epoch <= known:
            [report] = self._advanced(alone, tick)
        yield report

    def drop(self, numbers: set[int]) -> list[Report]:
        """Give trials up."""
        gone = [trial for cohort in self._cohorts for trial in cohort.drop(numbers)]
        self._cohorts = [cohort for cohort in self._cohorts if not cohort.finished]
        for trial in gone:
            self._release(trial.number)
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
            self._release(trial.number)
            return dataclasses.replace(report, state="FAIL", failure=trial.failure, points=trial.points)
        if not trial.ended:
            return report
        weights, measures = dict[str, Tensor](), self._measures(trial)
        self._release(trial.number)
        if self.rank is not None:
            value = ({**trial.verdict, "num_parameters": report.num_parameters} | measures)[self.rank[0]] * self.rank[1]
            if (value, trial.number) < self._best:
                self._best, state = (value, trial.number), trial.plan.family.state_dict()
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
    """Milliseconds of one answer on the device that trains; to an agent, whose rows nobody holds, of one to zeros."""
    family = trial.plan.family.eval()
    if isinstance(trial.plan.supply, RowSupply):
        row = trial.plan.supply.tensors("val", family.device)[0][:1]
    else:
        dtype = next(family.parameters()).dtype
        row = torch.zeros(1, *trial.plan.data.spec.shape, dtype=dtype, device=family.device)
    taken = []
    with torch.inference_mode():
        for _ in range(NUM_ANSWERS):
            begin = time.perf_counter()
            family(row).sum().item()  # which waits for a GPU
            taken.append(1e3 * (time.perf_counter() - begin))
    family.train()
    return median(taken)


def _line(error: Exception) -> str:
    """What a user's mistake says; of any other error the last line of its traceback, and where it was raised."""
    if isinstance(error, UserError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return traceback.format_exception_only(error)[-1].strip() + where
