"""Waves: the trials that a session trains, some at a time: those that were cut, those to be tried again, then new ones.

What an earlier session left is looked through once, so that the cost of a trial does not grow with their number.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from neurofleet.experiment import Space
from neurofleet.experiment.check import GRID, ONE_SHOT
from neurofleet.study import storage

RANKED = "one_shot"  # a study's attribute: the candidates of a one-shot search from the best on, with their scores
WAVE = 256  # trials that are built at a time where nothing else bounds them: their networks stand in memory together


class Waves:
    """`search.num_trials` counts the trials of earlier sessions too, but for those that were tried again."""

    def __init__(self, opened: storage.Opened, space: Space, search: Mapping[str, Any]) -> None:
        self._opened, self._space = opened, space
        self._distributions = {key: storage.distribution(one) for key, one in space.items()}
        self._size = search["max_concurrent"] or WAVE
        self._bury_cut()
        known = [trial for trial in opened.trials() if "cut" not in trial.user_attrs]
        self._left = deque(trial for trial in known if trial.state == TrialState.RUNNING)
        waiting = [trial for trial in known if trial.state == TrialState.WAITING]
        self._num_waiting = len(waiting)
        asked = sum("retry_of" not in trial.user_attrs for trial in known if trial.state != TrialState.WAITING)
        retries = sum("retry_of" in trial.user_attrs for trial in waiting)
        self._lacking = max(search["num_trials"] - asked, 0) + retries
        self._points = self._unseen(known) if search["sampler"]["_target_"] in (GRID, ONE_SHOT) else None

    def next(self) -> list[FrozenTrial]:
        """The next of them, which stand in the journal; none when all are trained."""
        wave = [self._left.popleft() for _ in range(min(self._size, len(self._left)))]
        while len(wave) < self._size and self._lacking > 0:
            wave.append(self._ask())
            self._lacking -= 1
        self._opened.flush()
        return wave

    def _bury_cut(self) -> None:
        """A session that was cut while it asked may leave a trial that lacks values; nothing can train it."""
        for trial in self._opened.trials():
            if trial.state == TrialState.RUNNING and set(trial.params) != set(self._space):
                self._opened.storage.set_trial_user_attr(trial._trial_id, "cut", value=True)
                self._opened.storage.set_trial_user_attr(trial._trial_id, "scores", {})
                self._opened.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)

    def _ask(self) -> FrozenTrial:
        if self._points is not None and not self._num_waiting:
            place, point, about = next(self._points)
            self._opened.study.enqueue_trial(point, user_attrs={"grid": place} | about)
            self._num_waiting = 1
        self._opened.storage.none_waits = not self._num_waiting
        self._num_waiting = max(self._num_waiting - 1, 0)  # optuna gives those first that wait
        return self._opened.trial(self._opened.study.ask(self._distributions)._trial_id)

    def _unseen(self, known: list[FrozenTrial]) -> Iterator[tuple[int, dict[str, Any], dict[str, Any]]]:
        """The points of the grid, or of the ranking, that no trial has had: place, params, what a trial is to note."""
        had = {trial.user_attrs["grid"] for trial in known if "grid" in trial.user_attrs}
        ranked = self._opened.study.user_attrs.get(RANKED)
        if ranked is not None:
            points = ((one["params"], {"shared": one["shared"]}) for one in ranked)
        else:
            points = ((one, {}) for one in self._combinations())
        for place, (point, about) in enumerate(points):
            if place not in had:
                yield place, point, about

    def _combinations(self) -> Iterator[dict[str, Any]]:
        columns = [dimension.grid() or () for dimension in self._space.values()]
        for point in itertools.product(*columns):
            yield storage.params(self._space, dict(zip(self._space, point, strict=True)))
