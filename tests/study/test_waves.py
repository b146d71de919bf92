"""Trials come in waves: those that were cut, those to be tried again, then new ones; none costs more than the first."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from statistics import median
from typing import Any

import optuna
import pytest
from optuna.study import StudyDirection
from optuna.trial import TrialState

from neurofleet.experiment import Dimension, Space
from neurofleet.experiment.check import GRID
from neurofleet.study import storage
from neurofleet.study.waves import Waves

SPACE: Space = {"optimizer.lr": Dimension("float", low=0.0, high=1.0)}
STEPS: Space = {"seed": Dimension("int", low=0, high=9, step=1)}


def search(num_trials: int, **others: Any) -> dict[str, Any]:
    return {"num_trials": num_trials, "max_concurrent": None, "sampler": {"_target_": "a sampler"}} | others


@pytest.fixture
def opened(home: Any) -> Iterator[storage.Opened]:
    with storage.opened("tries", [StudyDirection.MINIMIZE]) as one:
        one.study.sampler = optuna.samplers.RandomSampler(seed=0)
        yield one


def test_what_was_cut_comes_first_and_no_more_than_asked_for(opened: storage.Opened) -> None:
    assert [one.number for one in Waves(opened, SPACE, search(5, max_concurrent=3)).next()] == [0, 1, 2]
    later = Waves(opened, SPACE, search(5, max_concurrent=2))
    assert [[one.number for one in later.next()] for _ in range(4)] == [[0, 1], [2, 3], [4], []]


def test_retries_are_beyond_what_was_asked_for(opened: storage.Opened) -> None:
    first = Waves(opened, SPACE, search(2)).next()
    for trial in first:
        opened.tell(trial, None, TrialState.FAIL)
    assert opened.retry_failed() == 2
    again = Waves(opened, SPACE, search(3)).next()
    assert [one.params for one in again[:2]] == [one.params for one in first]
    assert [one.user_attrs.get("retry_of") for one in again] == [0, 1, None]


def test_a_grid_is_walked_from_where_it_was_left(opened: storage.Opened) -> None:
    grid = search(10, sampler={"_target_": GRID}, max_concurrent=4)
    seen = [one.params["seed"] for _ in range(3) for one in Waves(opened, STEPS, grid).next()]
    assert seen == [0, 1, 2, 3] * 3, "they were not told of, so they come again"
    waves = Waves(opened, STEPS, grid)
    assert [one.params["seed"] for _ in range(4) for one in waves.next()] == list(range(10))


def test_the_best_is_the_first_of_equals(opened: storage.Opened) -> None:
    assert opened.best is None
    for trial, value in zip(Waves(opened, SPACE, search(4)).next(), [3.0, 1.0, 1.0, 2.0], strict=True):
        opened.tell(trial, [value], TrialState.COMPLETE)
    assert opened.best is not None
    assert opened.best.number == 1


def test_a_trial_costs_what_the_first_ones_cost(opened: storage.Opened) -> None:
    waves = Waves(opened, SPACE, search(2400, max_concurrent=8))
    taken, began = list[float](), time.thread_time()
    while wave := waves.next():
        for trial in wave:
            opened.tell(trial, [1.0], TrialState.COMPLETE)
        taken.append(time.thread_time() - began)
        began = time.thread_time()
    assert len(taken) == 300
    assert median(taken[-100:]) < 2 * median(taken[:100])


def test_what_the_tracker_has_is_not_sent_again(opened: storage.Opened) -> None:
    first, second, _ = Waves(opened, SPACE, search(3)).next()
    opened.tell(first, [1.0], TrialState.COMPLETE)
    assert [one.number for one in opened.undelivered()] == [0]
    opened.describe({storage.DELIVERED: datetime.now().isoformat()})
    opened.tell(second, None, TrialState.FAIL)
    assert [one.number for one in opened.undelivered()] == [1]
