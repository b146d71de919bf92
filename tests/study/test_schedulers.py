"""Each rule against examples worked by hand; lower scores are better."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from neurofleet.errors import ConfigError
from neurofleet.experiment import Dimension
from neurofleet.study.schedulers import Hyperband, Median, Never, PopulationBased, Scheduler, SuccessiveHalving

Curves = dict[int, dict[float, float]]


def flat(values: dict[int, float], *epochs: float) -> Curves:
    """Trials whose score never changes."""
    return {trial: dict.fromkeys(epochs, value) for trial, value in values.items()}


def studied(scheduler: Scheduler, values: dict[int, float], *, max_epochs: int, wave: int) -> dict[int, int]:
    """How many epochs each trial of flat scores gets, where `wave` of them train at a time."""
    scores: Curves = {}
    numbers = sorted(values)
    lengths = dict.fromkeys(numbers, max_epochs)
    for first in range(0, len(numbers), wave):
        training = set(numbers[first : first + wave])
        for epoch in range(1, max_epochs + 1):
            for trial in training:
                scores.setdefault(trial, {})[epoch] = values[trial]
            for loser in scheduler.losers(scores, set(training), epoch, max_epochs):
                lengths[loser] = epoch
                training.remove(loser)
    return lengths


def test_never_gives_up() -> None:
    assert studied(Never(), {0: 1.0, 1: 9.0}, max_epochs=5, wave=2) == {0: 5, 1: 5}


def test_halving_in_one_wave() -> None:
    """Nine trials, a third of which pass each rung, at epochs 1, 3 and 9."""
    scheduler = SuccessiveHalving(grace_epochs=1, reduction_factor=3)
    lengths = studied(scheduler, {trial: float(trial) for trial in range(9)}, max_epochs=27, wave=9)
    assert lengths == {0: 27, 1: 3, 2: 3, **dict.fromkeys(range(3, 9), 1)}


def test_halving_begins_after_the_grace() -> None:
    scheduler = SuccessiveHalving(grace_epochs=2, reduction_factor=2)
    assert studied(scheduler, {0: 0.0, 1: 1.0, 2: 2.0, 3: 3.0}, max_epochs=5, wave=4) == {0: 5, 1: 4, 2: 2, 3: 2}


def test_halving_in_two_waves_compares_with_the_first() -> None:
    """Of four, two pass the rung at epoch 1 and one that at 2.  Of eight, the four best would have passed the first:
    the second wave's 0.5 and 0.6 are among them, 2.5 and 3.5 are not.  At epoch 2 four have come (0, 1, 0.5, 0.6), of
    which two pass: 0 and 0.5."""
    scheduler = SuccessiveHalving(grace_epochs=1, reduction_factor=2)
    values = {0: 0.0, 1: 1.0, 2: 2.0, 3: 3.0, 4: 0.5, 5: 2.5, 6: 0.6, 7: 3.5}
    assert studied(scheduler, values, max_epochs=4, wave=4) == {0: 4, 1: 2, 2: 1, 3: 1, 4: 4, 5: 1, 6: 2, 7: 1}


def test_halving_judges_between_two_validations_at_the_later_one() -> None:
    """With a validation every second epoch the rung at 1 is judged at 2, and that at 3 at 4."""
    scheduler = SuccessiveHalving(grace_epochs=1, reduction_factor=3)
    scores = flat({trial: float(trial) for trial in range(3)}, 2.0)
    assert scheduler.losers(scores, {0, 1, 2}, 2.0, 10) == {1, 2}
    scores = flat({trial: float(trial) for trial in range(3)}, 2.0, 4.0)
    assert scheduler.losers(scores, {0, 1, 2}, 4.0, 10) == {1, 2}
    scores = flat({trial: float(trial) for trial in range(3)}, 2.0, 4.0, 6.0)
    assert scheduler.losers(scores, {0, 1, 2}, 6.0, 10) == set(), "nobody is judged twice at a rung"


def test_what_ended_by_itself_counts_and_is_not_given_up() -> None:
    scheduler = SuccessiveHalving(grace_epochs=1, reduction_factor=2)
    scores = flat({0: 0.0, 1: 1.0, 2: 2.0}, 1.0)
    assert scheduler.losers(scores, {2}, 1.0, 4) == {2}
    assert scheduler.losers(scores, {1}, 1.0, 4) == set(), "of three, two pass"


def test_nobody_is_given_up_at_the_last_epoch() -> None:
    for scheduler in (
        SuccessiveHalving(grace_epochs=1, reduction_factor=2),
        Hyperband(grace_epochs=1, reduction_factor=2),
        Median(grace_epochs=1, min_trials=1),
    ):
        assert scheduler.losers(flat({0: 0.0, 1: 1.0, 2: 2.0}, 1.0, 2.0, 4.0), {0, 1, 2}, 4.0, 4) == set()


@pytest.mark.parametrize(("max_epochs", "factor", "sizes"), [(9, 3, [9, 5, 3]), (27, 3, [27, 12, 6, 4]), (2, 3, [1])])
def test_brackets_have_the_sizes_of_the_paper(max_epochs: int, factor: int, sizes: list[int]) -> None:
    """Li et al. 2018, algorithm 1: n = ceil((s_max + 1) eta^s / (s + 1)); with R=9, eta=3: 9, 5, 3."""
    brackets = Hyperband(grace_epochs=1, reduction_factor=factor)._brackets(max_epochs)
    assert [brackets.count(index) for index in range(len(sizes))] == sizes
    assert len(brackets) == sum(sizes)


def test_a_bracket_judges_its_own_from_its_own_rung_on() -> None:
    """R=9, eta=3: trials 0 to 8 are judged from epoch 1, 9 to 13 from epoch 3, 14 to 16 never."""
    lengths = studied(
        Hyperband(grace_epochs=1, reduction_factor=3),
        {trial: float(trial) for trial in range(17)},
        max_epochs=9,
        wave=17,
    )
    assert [lengths[trial] for trial in range(9)] == [9, 3, 3, 1, 1, 1, 1, 1, 1]
    assert [lengths[trial] for trial in range(9, 14)] == [9, 9, 3, 3, 3]
    assert [lengths[trial] for trial in range(14, 17)] == [9, 9, 9]


def test_median_of_the_others_means() -> None:
    """At epoch 2 the means so far are 1, 2, 3, 4.  Trial 2's best, 2.5, is worse than the median of 1, 2 and 4; trial
    3's best, 1.5, is not, though its mean is the worst."""
    scheduler = Median(grace_epochs=1, min_trials=3)
    scores = {0: {1.0: 1.0, 2.0: 1.0}, 1: {1.0: 2.0, 2.0: 2.0}, 2: {1.0: 3.5, 2.0: 2.5}, 3: {1.0: 1.5, 2.0: 6.5}}
    assert scheduler.losers(scores, {0, 1, 2, 3}, 2.0, 10) == {2}
    assert Median(grace_epochs=1, min_trials=4).losers(scores, {0, 1, 2, 3}, 2.0, 10) == set()
    assert Median(grace_epochs=3, min_trials=3).losers(scores, {0, 1, 2, 3}, 2.0, 10) == set()


def test_median_leaves_out_what_has_not_come_as_far() -> None:
    scores = flat({0: 1.0, 1: 2.0}, 1.0, 2.0) | flat({2: 0.0, 3: 0.1}, 1.0)
    assert Median(grace_epochs=1, min_trials=2).losers(scores, {0, 1}, 2.0, 10) == set()
    assert Median(grace_epochs=1, min_trials=1).losers(scores, {0, 1}, 2.0, 10) == {1}


def test_median_takes_later_scores_of_others_for_nothing() -> None:
    """An earlier trial's curve counts up to the same epoch alone."""
    scores = {0: {1.0: 5.0, 2.0: 0.0, 3.0: 0.0}, 1: {1.0: 4.0}}
    assert Median(grace_epochs=1, min_trials=1).losers(scores, {1}, 1.0, 10) == set()


@pytest.mark.parametrize(
    "scheduler",
    [
        SuccessiveHalving(grace_epochs=1, reduction_factor=2),
        Hyperband(grace_epochs=1, reduction_factor=2),
        Median(grace_epochs=1, min_trials=2),
    ],
)
def test_a_study_that_goes_on_decides_as_one_in_a_whole(scheduler: Scheduler) -> None:
    """What ended before the cut stands in the scores, the wave that was cut trains again from its start."""
    values = {trial: float((trial * 7) % 12) for trial in range(12)}
    whole = studied(scheduler, values, max_epochs=8, wave=4)
    scores: Curves = {trial: dict.fromkeys(range(1, whole[trial] + 1), values[trial]) for trial in range(8)}
    training, lengths = set(range(8, 12)), dict.fromkeys(range(8, 12), 8)
    for epoch in range(1, 9):
        for trial in training:
            scores.setdefault(trial, {})[epoch] = values[trial]
        losers = scheduler.losers(scores, set(training), epoch, 8)
        lengths |= dict.fromkeys(losers, epoch)
        training -= losers
    assert lengths == {trial: whole[trial] for trial in range(8, 12)}


# Population based training.


def population(**changes: Any) -> PopulationBased:
    settings: dict[str, Any] = {"every_epochs": 2, "quantile": 0.25, "factors": [0.5, 2.0], "resample_probability": 0.0}
    return PopulationBased(**settings | changes)


def test_the_worst_go_on_from_the_best() -> None:
    scores = flat({trial: float(trial) for trial in range(8)}, 1.0, 2.0)
    heirs = population().heirs(scores, set(range(8)), 2.0, 10)
    assert set(heirs) == {6, 7}
    assert set(heirs.values()) <= {0, 1}
    assert heirs == population().heirs(scores, set(range(8)), 2.0, 10), "a study that goes on has to draw the same"
    assert population().losers(scores, set(range(8)), 2.0, 10) == set()


def test_nobody_inherits_between_or_at_the_end() -> None:
    scores = flat({trial: float(trial) for trial in range(8)}, 1.0, 2.0, 10.0)
    assert population().heirs(scores, set(range(8)), 1.0, 10) == {}
    assert population().heirs(scores, set(range(8)), 10.0, 10) == {}
    assert population().heirs(scores, {3}, 2.0, 10) == {}


SPACE = {
    "optimizer.lr": Dimension("float", low=1e-4, high=1e-1, log=True),
    "optimizer.momentum": Dimension("categorical", choices=(0.0, 0.9)),
    "family.dropout": Dimension("float", low=0.0, high=0.5),
    "family.width": Dimension("int", low=4, high=64, step=1),
    "family.activation": Dimension("categorical", choices=("relu", "tanh")),
}
VALUES = {
    "optimizer.lr": 1e-2,
    "optimizer.momentum": 0.9,
    "family.dropout": 0.2,
    "family.width": 8,
    "family.activation": "relu",
}


def test_numbers_are_multiplied_and_shapes_kept() -> None:
    for seed in range(20):
        mutated = population().mutated(SPACE, VALUES, str(seed))
        assert mutated["optimizer.lr"] in (pytest.approx(5e-3), pytest.approx(2e-2))
        assert mutated["family.dropout"] in (pytest.approx(0.1), pytest.approx(0.4))
        unchanged = ("optimizer.momentum", "family.width", "family.activation")
        assert {name: mutated[name] for name in unchanged} == {name: VALUES[name] for name in unchanged}
    drawn = {population().mutated(SPACE, VALUES, str(seed))["optimizer.lr"] for seed in range(20)}
    assert len(drawn) == 2


def test_numbers_stay_within_their_bounds_and_are_drawn_anew() -> None:
    edge = VALUES | {"optimizer.lr": 0.09, "family.dropout": 0.5}
    for seed in range(20):
        mutated = population(factors=[2.0]).mutated(SPACE, edge, str(seed))
        assert (mutated["optimizer.lr"], mutated["family.dropout"]) == (0.1, 0.5)
    drawn = [population(resample_probability=1.0).mutated(SPACE, VALUES, str(seed)) for seed in range(40)]
    assert {one["optimizer.momentum"] for one in drawn} == {VALUES["optimizer.momentum"]}, "a choice is inherited"
    assert all(1e-4 <= one["optimizer.lr"] <= 1e-1 for one in drawn)
    assert min(one["optimizer.lr"] for one in drawn) < 1e-3 < 1e-2 < max(one["optimizer.lr"] for one in drawn)
    assert all(before != after for before, after in pairwise(one["family.dropout"] for one in drawn))


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: SuccessiveHalving(grace_epochs=0, reduction_factor=3), "scheduler.grace_epochs needs a whole number"),
        (lambda: SuccessiveHalving(grace_epochs=1, reduction_factor=1), "at least 2, got 1"),
        (lambda: Hyperband(grace_epochs=1.5, reduction_factor=3), "got 1.5"),  # type: ignore[arg-type]
        (lambda: Median(grace_epochs=1, min_trials=True), "got True"),
        (lambda: population(quantile=0.6), "at most 0.5, got 0.6"),
        (lambda: population(factors=[]), "scheduler.factors needs numbers above 0"),
        (lambda: population(factors=[-1.0]), r"got \[-1.0\]"),
        (lambda: population(resample_probability=2), "got 2"),
    ],
)
def test_impossible_settings_are_refused(make: Any, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        make()
