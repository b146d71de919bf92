"""Actors: a study's trials on Ray, a `Lane` in each of several warm actors.

An actor that dies takes the progress of its trials with it, not the trials: they begin again in a new one, and what
they repeat is not reported twice.  So does one that finds no place, because the node is gone that it would run on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import signal
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from neurofleet.experiment import Experiment
from neurofleet.launch import workers
from neurofleet.launch.connection import bundle, connected, environment
from neurofleet.study.cohort import Tick
from neurofleet.study.lane import Report
from neurofleet.study.lane_actor import Answer, LaneActor, LostError, Seat, answered, get

MOST_DEATHS = 3  # so often a trial begins again
LEAST = 8  # trials of one architecture are torn among actors into parts of no fewer, unless one would have too many
SECONDS = 1.0  # between looks at the display while nothing is reported


@contextlib.contextmanager
def actors(launcher: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[ActorLanes]:
    """Lanes in as many actors as the launcher has workers; they start while the caller goes on.

    settings: what `Lane` takes

    Raises:
        ResourceError: the cluster can never hold them.
        UnreachableError: nobody answers at RAY_ADDRESS.
    """
    with on_ray(launcher) as local:
        import ray

        share = bundle(launcher)
        remote: Any = ray.remote(LaneActor)
        remote = remote.options(
            num_cpus=share["CPU"],
            num_gpus=share.get("GPU", 0),
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": workers.worker_environment(launcher, local)},
        )
        print(f"starting {launcher['num_workers']} actors ...", flush=True)
        folder = str(Path.cwd())
        lanes = ActorLanes(
            lambda: remote.remote(dict(settings), folder),
            launcher["num_workers"],
            lockstep=settings["lockstep"],
            keep_together=settings["fuse"] != "pack",
        )
        try:
            yield lanes
        finally:
            lanes.close()


@contextlib.contextmanager
def on_ray(launcher: Mapping[str, Any]) -> Iterator[bool]:
    """`connected`, with Ray's settings, and without its answer to SIGTERM, which ends a process without a word."""
    before = signal.getsignal(signal.SIGTERM)
    with environment(workers.settings()), connected(launcher) as local:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
        yield local


class ActorLanes:
    """The lanes of several actors as one (`engine.Lanes`).

    make:          starts an actor
    lockstep:      whether all trials are to be validated before any goes on; else no actor waits for another
    keep_together: whether trials of one architecture are better off in one actor
    """

    def __init__(self, make: Callable[[], Any], num_actors: int, *, lockstep: bool, keep_together: bool) -> None:
        self._make, self._lockstep, self._keep_together = make, lockstep, keep_together
        self._seats = [Seat(make()) for _ in range(num_actors)]
        self._last: dict[int, Report] = {}  # of each trial that trains
        self._deaths: Counter[int] = Counter()
        self._late: list[tuple[Seat, list[Report]]] = []  # to be reported with the next round

    @property
    def training(self) -> set[int]:
        return {number for seat in self._seats for number in seat.trials}

    @property
    def num_devices(self) -> int:
        """All actors: one that waits keeps its cores or its GPU from others."""
        return len(self._seats)

    def begin(self, experiments: Mapping[int, Experiment]) -> tuple[list[Report], list[str]]:
        """As `Lane.begin`."""
        shares = divided(experiments, len(self._seats), keep_together=self._keep_together)
        for seat, numbers in zip(self._seats, shares, strict=True):
            seat.trials |= {number: experiments[number] for number in numbers}
        calls = [(seat, seat.actor.begin.remote(seat.trials)) for seat in self._seats if seat.trials]
        refused, said = list[Report](), list[str]()
        for seat, call in calls:
            answer = self._answer(seat, call)
            refused += self._news(seat, answer.reports)
            said += [f"{self._name(seat)}: {line}" for line in answer.said]
        return refused, said

    def round(self, tick: Tick) -> list[Report]:
        """As `Lane.round`; without lockstep, what the first actors to be done report."""
        reports = [report for seat, late in self._late for report in self._news(seat, late)]
        self._late.clear()
        for seat in self._seats:
            self._go_on(seat)
        while (busy := {seat.call: seat for seat in self._seats if seat.call}) and (self._lockstep or not reports):
            done = answered(list(busy), SECONDS)
            if not done:
                tick(0)
                for seat in busy.values():
                    reports += self._placed(seat)
            for call in done:
                seat = busy[call]
                seat.call = None
                answer = self._answer(seat, call)
                news = self._news(seat, answer.reports)
                reports += news
                tick(answer.num_steps)
                if not news or not self._lockstep:
                    self._go_on(seat)
        return reports

    def drop(self, numbers: set[int]) -> list[Report]:
        """As `Lane.drop`."""
        reports = list[Report]()
        for seat in self._seats:
            if seat.call is not None and numbers & seat.trials.keys():  # it is answered first
                call, seat.call = seat.call, None
                reports += self._news(seat, self._answer(seat, call).reports)
            if mine := numbers & seat.trials.keys():
                try:
                    dropped = self._got(seat, seat.actor.drop.remote(mine)).reports
                except LostError as error:
                    known = [self._last.get(number, Report(number, 0.0, {})) for number in sorted(mine)]
                    dropped = [dataclasses.replace(report, state="PRUNED") for report in known]
                    reports += self._news(seat, dropped)
                    dropped = self._replaced(seat, error)
                reports += self._news(seat, dropped)
        return reports

    def learnt(self, number: int) -> Any:
        """As `Lane.learnt`, sealed; None of a trial that has failed meanwhile."""
        return self._asked(number, "learnt")

    def inherit(self, number: int, state: Any, experiment: Experiment) -> None:
        """As `Lane.inherit`."""
        seat = self._seat_of(number)
        if seat is not None and state is not None:
            seat.trials[number] = experiment
            self._asked(number, "inherit", state, experiment)

    def close(self) -> None:
        """End the actors."""
        import ray

        for seat in self._seats:
            ray.kill(seat.actor)

    def _seat_of(self, number: int) -> Seat | None:
        return next((seat for seat in self._seats if number in seat.trials), None)

    def _asked(self, number: int, method: str, *arguments: Any) -> Any:
        """What a trial's actor answers, or the one that takes its place."""
        seat = self._seat_of(number)
        while seat is not None and not any(number == late.number for _, lot in self._late for late in lot):
            try:
                return self._got(seat, getattr(seat.actor, method).remote(number, *arguments))
            except LostError as error:
                self._late.append((seat, self._replaced(seat, error)))
        return None

    def _go_on(self, seat: Seat) -> None:
        if seat.trials and seat.call is None:
            seat.call = seat.actor.round.remote()

    def _news(self, seat: Seat, reports: list[Report]) -> list[Report]:
        """Those of the reports that say what was not known; trials that are over leave the seat."""
        news = []
        for report in reports:
            if report.number in seat.trials and (report.state or report.epoch > self._epoch(report.number)):
                news.append(report)
                self._last[report.number] = report
                if report.state is not None:
                    del seat.trials[report.number], self._last[report.number]
        return news

    def _epoch(self, number: int) -> float:
        return self._last[number].epoch if number in self._last else 0.0

    def _answer(self, seat: Seat, call: Any) -> Answer:
        try:
            answer: Answer = self._got(seat, call)
        except LostError as error:
            return Answer(self._replaced(seat, error))
        return answer

    def _got(self, seat: Seat, call: Any) -> Any:
        """`get`, with a word where the actor has no place to run."""
        while not answered([call], SECONDS):
            seat.need_place(self._name(seat))
        return get(call)

    def _placed(self, seat: Seat) -> list[Report]:
        try:
            seat.need_place(self._name(seat))
        except LostError as error:
            seat.call = None
            return self._news(seat, self._replaced(seat, error))
        return []

    def _name(self, seat: Seat) -> str:
        return f"actor {self._seats.index(seat)}"

    def _replaced(self, seat: Seat, error: LostError) -> list[Report]:
        """Put a new actor into the seat, where its trials begin again; reports of those that did so too often."""
        import ray

        ray.kill(seat.actor)  # it may be out of reach alone
        seat.take(self._make())
        self._deaths.update(seat.trials.keys())
        failed = [number for number in seat.trials if self._deaths[number] > MOST_DEATHS]
        again = {number: one for number, one in seat.trials.items() if number not in failed}
        if again:
            print(f"an actor died ({error}); its {len(again)} trials begin again in a new one", flush=True)
            epochs = {number: self._epoch(number) for number in again}
            seat.call = seat.actor.begin_again.remote(again, epochs)
        reason = f"its actor died {MOST_DEATHS + 1} times, lastly: {error}"
        return [Report(number, self._epoch(number), {}, "FAIL", reason) for number in failed]


def divided(experiments: Mapping[int, Experiment], num_shares: int, *, keep_together: bool) -> list[list[int]]:
    """The trials' numbers in shares of about equal size.

    Trials that may form one stack stay together, but for as many parts as leave `LEAST` in each, or as it takes to
    give no actor more than its share.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for number, experiment in experiments.items():
        groups[_architecture(experiment) if keep_together else str(number)].append(number)
    share = -(-len(experiments) // num_shares)
    parts = list[list[int]]()
    for group in groups.values():
        num_parts = min(num_shares, max(len(group) // LEAST, -(-len(group) // share)))
        cuts = [len(group) * index // num_parts for index in range(num_parts + 1)]
        parts += [group[first:last] for first, last in itertools.pairwise(cuts)]
    shares: list[list[int]] = [[] for _ in range(num_shares)]
    for part in sorted(parts, key=len, reverse=True):
        min(shares, key=len).extend(part)
    return shares


def _architecture(experiment: Experiment) -> str:
    """Equal for trials that may stand in one stack, as far as can be told before they are built."""
    family = {key: "a float" if isinstance(value, float) else value for key, value in experiment["family"].items()}
    described = [family, experiment["data"], experiment["optimizer"]["_target_"], experiment["trainer"]["max_epochs"]]
    return json.dumps(described, sort_keys=True)
