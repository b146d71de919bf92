"""Engine: asks the sampler for trials, lets lanes train them, judges them, and writes down what became of each.

A trial stands in the study's journal before it trains, and what it came to before anything follows from it.  So a study
that is cut anywhere goes on with what it lacks: what ended stays, what was in training trains again, and no more trials
are asked for than were wanted.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from optuna.trial import FrozenTrial, TrialState

from neurofleet.errors import ConfigError, RunError, UserError
from neurofleet.experiment import Composer, Experiment
from neurofleet.experiment.space import bare
from neurofleet.run import Plan
from neurofleet.study import storage
from neurofleet.study.cohort import Learnt
from neurofleet.study.display import Display
from neurofleet.study.lane import Report
from neurofleet.study.record import timed_points, trial_record
from neurofleet.study.schedulers import PopulationBased, Scheduler, moves
from neurofleet.study.waves import Waves
from neurofleet.tracking import Tracker

DEVICE_HOURS = "device_hours"  # a study's attribute: what it has cost
SIZE = "num_parameters"  # an objective that every trial has
UNBUILDABLE = 3  # so many trials that cannot be built, and none that can, end a study


class Lanes(Protocol):
    """Where trials train: a `Lane` in this process, or several in actors of Ray."""

    @property
    def training(self) -> set[int]: ...

    @property
    def num_devices(self) -> int: ...

    def begin(self, experiments: Mapping[int, Experiment]) -> tuple[list[Report], list[str]]: ...

    def round(self, tick: Any) -> list[Report]: ...

    def drop(self, numbers: set[int]) -> list[Report]: ...

    def learnt(self, number: int) -> Learnt: ...

    def inherit(self, number: int, state: Learnt, experiment: Experiment) -> None: ...


class Engine:
    """One session of a study; `search.num_trials` counts the trials of earlier sessions too."""

    def __init__(
        self,
        composer: Composer,
        opened: storage.Opened,
        lanes: Lanes,
        scheduler: Scheduler,
        tracker: Tracker,
        display: Display,
        planned: Plan,
    ) -> None:
        self.composer, self.opened, self.lanes, self.scheduler = composer, opened, lanes, scheduler
        self.tracker, self.display, self.max_epochs = tracker, display, longest(composer, planned)
        self._per_epoch = planned.supply.steps_per_epoch
        self.study = opened.study
        self.objectives = objectives(composer.search)
        self._now = time.monotonic()
        self._deadline = self._now + 60 * (composer.search["time_limit_minutes"] or math.inf)
        self._device_hours = self.study.user_attrs.get(DEVICE_HOURS, 0.0)
        self._experiments: dict[int, Experiment] = {}
        self._values: dict[int, dict[str, Any]] = {}  # of searched keys, as they are now
        self._ids: dict[int, int] = {}
        self._scores: dict[int, dict[float, float]] = {}  # as a scheduler takes them
        self._broken: list[str] | None = []  # how the first trials broke; None once one did not
        metric, sign = next(iter(self.objectives.items()))
        self._metric, self._sign = metric, sign
        self._waves = Waves(opened, composer.space, composer.search)
        self._num_over = 0
        for trial in opened.trials():
            self._know(trial)
            self._num_over += trial.state.is_finished()
            if trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
                self._broken = None
        for trial in opened.undelivered():  # one that did come to the tracker is not sent twice
            self._send(trial)

    # The loop.

    def run(self) -> None:
        """Train until there are as many trials as asked for, or the time or the device-hours are up.

        Raises:
            ConfigError: none of the first trials can be built.
        """
        self._show()
        while not self.is_time_up() and (wave := self._waves.next()):
            refused, said = self.lanes.begin(self._composed(wave))
            for line in said:
                self.display.say(line)
            self._take(refused)
            self._need_unbroken()
            self._need_buildable()
            while self.lanes.training:
                reports = self.lanes.round(self.display.tick)
                self._take(reports)
                self._need_unbroken()
                self._judge({report.epoch for report in reports if report.state is None})
                if self.is_time_up():  # what has not been measured stays to be trained
                    self._take([one for one in self.lanes.drop(self.lanes.training) if one.scores])

    def is_time_up(self) -> bool:
        """Whether the budget of wall time or device-hours is spent; the latter counts earlier sessions too."""
        before, self._now = self._now, time.monotonic()
        self._device_hours += (self._now - before) * self.lanes.num_devices / 3600
        self.study.set_user_attr(DEVICE_HOURS, self._device_hours)
        return self._now >= self._deadline or self._device_hours >= (self.composer.search[DEVICE_HOURS] or math.inf)

    def _composed(self, wave: Sequence[FrozenTrial]) -> dict[int, Experiment]:
        """The experiments of those whose values make one; the others fail."""
        made: dict[int, Experiment] = {}
        for trial in wave:
            self._know(trial)
            self._values[trial.number] = storage.values(self.composer.space, trial.params)
            try:
                made[trial.number] = self.composer.experiment(self._values[trial.number])
            except UserError as error:
                self._take([Report(trial.number, 0.0, {}, "FAIL", str(error))])
        self._experiments |= made
        return made

    def _judge(self, epochs: set[float]) -> None:
        for epoch in sorted(epochs):
            at_it = {number for number in self.lanes.training if epoch in self._scores[number]}
            losers = self.scheduler.losers(self._scores, at_it, epoch, self.max_epochs)
            if losers:
                self._take(self.lanes.drop(losers))
            heirs = self._heirs(at_it - losers, epoch)
            learnt = {donor: self.lanes.learnt(donor) for donor in set(heirs.values())}
            for heir, donor in heirs.items():
                self._bequeath(heir, donor, learnt[donor], epoch)

    def _heirs(self, training: set[int], epoch: float) -> dict[int, int]:
        """Heirs and donors among trials that differ in nothing but what may change while they train."""
        populations: dict[str, set[int]] = {}
        for number in training:
            kept = {key: self._values[number][key] for key, one in self.composer.space.items() if not moves(key, one)}
            populations.setdefault(json.dumps(kept), set()).add(number)
        found: dict[int, int] = {}
        for population in populations.values():
            found |= self.scheduler.heirs(self._scores, population, epoch, self.max_epochs)
        return found

    def _bequeath(self, heir: int, donor: int, learnt: Learnt, epoch: float) -> None:
        """Let a trial go on from another's weights, with its settings somewhat changed."""
        assert isinstance(self.scheduler, PopulationBased)
        values = self.scheduler.mutated(self.composer.space, self._values[donor], f"{heir} {epoch}")
        self._values[heir] = values
        self._experiments[heir] = self.composer.experiment(values)
        self.lanes.inherit(heir, learnt, self._experiments[heir])
        attributes = self._trial(heir).user_attrs
        change = {"epoch": epoch, "from": donor, "values": values}
        self.opened.storage.set_trial_user_attr(
            self._ids[heir], "inherited", [*attributes.get("inherited", []), change]
        )

    # What is known of trials.

    def _trial(self, number: int) -> FrozenTrial:
        return self.opened.trial(self._ids[number])

    def _know(self, trial: FrozenTrial) -> None:
        self._ids[trial.number] = trial._trial_id
        curve = {float(epoch): value * self._sign for epoch, value in trial.intermediate_values.items()}
        self._scores[trial.number] = {} if trial.state == TrialState.RUNNING else curve

    def _take(self, reports: Sequence[Report]) -> None:
        """Write down what became of trials, then say so."""
        before = self.opened.best
        for report in reports:
            if len(self.objectives) == 1:
                for row in report.history or [{**report.scores, "epoch": report.epoch}]:
                    self._measured(report.number, row)
            if report.state is not None:
                self._end(report)
        best = self.opened.best
        if best is not None and best is not before:  # what is kept is never behind the journal
            self._keep(next(report for report in reports if report.number == best.number))
        self.opened.flush()
        for report in reports:
            if report.state is not None:
                self._tell_of(report)
        self._show()

    def _measured(self, number: int, row: Mapping[str, float]) -> None:
        value, epoch = row.get(self._metric, math.nan), row["epoch"]
        if math.isfinite(value) and epoch not in self._scores[number]:
            self._scores[number][epoch] = value * self._sign
            self.opened.storage.set_trial_intermediate_value(self._ids[number], round(epoch), value)

    def _end(self, report: Report) -> None:
        state, values, failure = TrialState[str(report.state)], None, report.failure
        if state == TrialState.COMPLETE:
            scores = {**report.scores, SIZE: float(report.num_parameters), **report.measures}
            values = [scores.get(metric, math.nan) for metric in self.objectives]
            bad = [metric for metric, value in zip(self.objectives, values, strict=True) if not math.isfinite(value)]
            if bad:
                state, values = TrialState.FAIL, None
                failure = f"{bad[0]} needs a finite value, got {scores.get(bad[0])}"
        if self._broken is not None:
            self._broken = [*self._broken, str(failure)] if report.broke else None
        about = {"scores": report.scores | report.measures, SIZE: report.num_parameters, "failure": failure}
        for name, value in about.items():
            if value is not None:
                self.opened.storage.set_trial_user_attr(self._ids[report.number], name, value)
        self.opened.tell(self._trial(report.number), values, state)
        self._num_over += 1

    def _keep(self, best: Report) -> None:
        values, experiment = self._values[best.number], self._experiments[best.number]
        self.opened.keep(experiment, best, self.composer.overrides(values), self.composer.experiment_file(values))

    def _overrides(self, number: int) -> list[str]:
        return self.composer.overrides(storage.values(self.composer.space, self._trial(number).params))

    def _send(self, trial: FrozenTrial) -> None:
        """A trial of an earlier session, by what the journal knows of it."""
        try:
            experiment = self.composer.experiment(storage.last_values(self.composer.space, trial))
        except UserError:  # it failed for that
            return
        began, ended = (int(one.timestamp() * 1000) for one in (trial.datetime_start, trial.datetime_complete) if one)
        length = max(trial.intermediate_values, default=1)
        points = [
            (self._metric, value, epoch * self._per_epoch, began + (ended - began) * epoch // length)
            for epoch, value in trial.intermediate_values.items()
        ]
        points += [(name, value, length * self._per_epoch, ended) for name, value in trial.user_attrs["scores"].items()]
        self.tracker.log_trial(trial_record(self.study.study_name, trial, experiment, points))

    def _tell_of(self, report: Report) -> None:
        trial = self._trial(report.number)
        experiment = self._experiments.pop(report.number, None)
        if experiment is not None:
            points = timed_points(report, trial.datetime_start, trial.datetime_complete)
            self.tracker.log_trial(trial_record(self.study.study_name, trial, experiment, points))
        over = self._num_over
        row: dict[str, float] = {"num_finished": float(over)}
        best = self.opened.best
        if best is not None and best.value is not None:
            row[f"best/{self._metric}"] = best.value
        self.tracker.log_many([(over, float(over), row)])
        if report.failure is not None:
            self.display.say(f"trial {report.number} failed: {report.failure}")

    def _need_buildable(self) -> None:
        if self.lanes.training:
            return
        trials = self.opened.trials()
        failures = [one for one in trials if one.state == TrialState.FAIL and not one.user_attrs.get(SIZE)]
        enough = min(UNBUILDABLE, self.composer.search["num_trials"])
        if len(failures) < len(trials) or len(failures) < enough:
            return
        shown = "; ".join(
            f"trial {one.number} ({', '.join(self._overrides(one.number))}): {one.user_attrs.get('failure')}"
            for one in failures[:UNBUILDABLE]
        )
        raise ConfigError(f"a study needs trials that can be built, and none of {len(failures)} can: {shown}")

    def _need_unbroken(self) -> None:
        """Where nothing but one error comes of the first trials, more would not help."""
        broken = self._broken or []
        if len(broken) >= min(UNBUILDABLE, self.composer.search["num_trials"]) and len(set(broken)) == 1:
            raise RunError(
                f"the first {len(broken)} trials failed by one error: {broken[0]}; mend it, then go on: "
                f"neurofleet tune study={self.study.study_name} failed_only=true"
            )

    def _show(self) -> None:
        self.display.show(self.opened.trials, self.opened.best)


def longest(composer: Composer, planned: Plan) -> int:
    """The epochs of the longest trial.  Where they are searched each trial has its own, and schedulers go by epochs."""
    searched = next((one for key, one in composer.space.items() if bare(key) == "trainer.max_epochs"), None)
    if searched is None:
        return planned.config.max_epochs
    return int(max(searched.choices or (searched.high or 0,)))


def objectives(search: Mapping[str, Any]) -> dict[str, int]:
    """The metrics that a study is about, each with its sign: 1 where lower is better, else -1."""
    metrics, modes = ([one] if isinstance(one, str) else one for one in (search["metric"], search["mode"]))
    return {metric: 1 if mode == "min" else -1 for metric, mode in zip(metrics, modes, strict=True)}
