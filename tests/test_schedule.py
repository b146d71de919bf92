"""The learning-rate curves: end points, warm-up, and the values that are refused."""

from __future__ import annotations

import math

import pytest

from neurofleet.errors import ConfigError
from neurofleet.schedule import Constant, Cosine, Exponential, Linear, Schedule, Step


def steps(milestones: list[float], factor: float = 0.1, warmup: float = 0.0) -> Step:
    return Step(warmup=warmup, milestones=milestones, factor=factor)


@pytest.mark.parametrize(
    ("schedule", "start", "middle", "end"),
    [
        (Constant(warmup=0.0), 1, 1, 1),
        (Linear(warmup=0.0, final=0.0), 1, 0.5, 0),
        (Linear(warmup=0.0, final=0.2), 1, 0.6, 0.2),
        (Cosine(warmup=0.0, final=0.0), 1, 0.5, 0),
        (Cosine(warmup=0.0, final=0.2), 1, 0.6, 0.2),
        (Exponential(warmup=0.0, final=0.01), 1, 0.1, 0.01),
        (steps([0.5, 0.75]), 1, 0.1, 0.01),
        (steps([]), 1, 1, 1),
    ],
)
def test_curves_pass_through_their_points(schedule: Schedule, start: float, middle: float, end: float) -> None:
    assert schedule(0.0) == pytest.approx(start, abs=1e-15)
    assert schedule(0.5) == pytest.approx(middle, abs=1e-15)
    assert schedule(1.0) == pytest.approx(end, abs=1e-15)


def test_cosine_is_half_a_cosine() -> None:
    schedule = Cosine(warmup=0.0, final=0.0)
    for progress in (0.1, 0.25, 0.9):
        assert schedule(progress) == pytest.approx((1 + math.cos(math.pi * progress)) / 2, abs=1e-15)


def test_exponential_falls_by_equal_ratios() -> None:
    schedule = Exponential(warmup=0.0, final=0.03)
    ratios = [schedule((i + 1) / 10) / schedule(i / 10) for i in range(10)]
    assert ratios == pytest.approx([0.03**0.1] * 10, rel=1e-12)


def test_a_step_falls_at_its_milestone() -> None:
    schedule = steps([0.5, 0.75], factor=0.5)
    assert [schedule(p) for p in (0.499999, 0.5, 0.749999, 0.75)] == [1, 0.5, 0.5, 0.25]


@pytest.mark.parametrize(
    "schedule", [Linear(warmup=0.2, final=0.0), Cosine(warmup=0.2, final=0.0), steps([0.499], 0.5, 0.2)]
)
def test_warmup_rises_linearly_then_the_whole_curve_follows(schedule: Schedule) -> None:
    assert [schedule(p) for p in (0.05, 0.1, 0.2)] == pytest.approx([0.25, 0.5, 1.0], abs=1e-15)
    assert 0 < schedule(0.0) <= 1e-3, "a first step of zero would be a step lost"
    assert schedule(0.6) == pytest.approx(0.5, abs=1e-15), "the middle of what remains is the middle of the curve"
    rising = [schedule(i / 100) for i in range(21)]
    assert rising == sorted(rising)


@pytest.mark.parametrize("warmup", [-0.1, 1.0, 2.0, math.nan])
def test_warmup_is_a_fraction(warmup: float) -> None:
    with pytest.raises(ConfigError, match=r"schedule\.warmup .* needs 0 <= warmup < 1, got"):
        Constant(warmup=warmup)


@pytest.mark.parametrize("kind", [Linear, Cosine])
@pytest.mark.parametrize("final", [-1.0, math.nan, math.inf])
def test_no_curve_ends_below_zero(kind: type[Linear] | type[Cosine], final: float) -> None:
    with pytest.raises(ConfigError, match=r"schedule\.final needs a number of at least 0, got"):
        kind(warmup=0.0, final=final)


@pytest.mark.parametrize("final", [0.0, -0.5, 1.5, math.nan])
def test_equal_ratios_never_reach_zero(final: float) -> None:
    with pytest.raises(ConfigError, match=r"schedule\.final of an exponential schedule needs 0 < final <= 1, got"):
        Exponential(warmup=0.0, final=final)


@pytest.mark.parametrize("milestones", [[30], [0.5, 1.0], [0.0], [-0.5], [math.nan]], ids=str)
def test_milestones_are_fractions(milestones: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"schedule\.milestones are fractions of training"):
        steps(milestones)


def test_the_factor_of_a_step_is_not_negative() -> None:
    with pytest.raises(ConfigError, match=r"schedule\.factor needs a number of at least 0, got -0\.1"):
        steps([0.5], factor=-0.1)
