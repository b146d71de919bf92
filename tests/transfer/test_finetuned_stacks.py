"""Fine-tunings train in stacks: each is the trial that it would be alone, and holds no encoder of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from neurofleet import experiment as experiments
from neurofleet.run import plan
from neurofleet.study.cohort import Trial
from neurofleet.study.fused import Stack
from neurofleet.study.single import Single
from neurofleet.study.stacking import cohorts
from neurofleet.transfer.base import Base

Make = Callable[..., Any]
NEW = ("data=digits", "data.train_rows=60", "data.batch_size=25", "trainer.max_epochs=3", "optimizer.lr=0.01")
WANTED = frozenset({"val/loss"})
WAYS: dict[str, dict[str, Any]] = {
    "frozen": {"method": "frozen", "mixup": 0.2, "hidden": [5]},
    "full": {"method": "full", "l2_sp": 0.1, "dropout": 0.1},
    "gradual": {"method": "gradual", "share": 0.6},
    "lora": {"method": "lora"},
    "probe_then_full": {"method": "probe_then_full", "share": 0.4},
}


@pytest.fixture(scope="module")
def base(make_base: Make) -> Base:
    return make_base("family=cnn", "data=digits", "family.channels=[4,6]", "family.hidden=8", "family.dropout=0.2")


def trials(base: Base, finetuning: Make, settings: list[dict[str, Any]]) -> list[Trial]:
    """They differ in seed, learning rate and decay."""
    made = [
        finetuning(base, *NEW, f"seed={number}", f"optimizer.weight_decay={0.05 * number}", **own)
        for number, own in enumerate(settings)
    ]
    data = experiments.build_data(made[0])
    return [Trial(number, plan(one, data)) for number, one in enumerate(made)]


def assert_same(mine: Trial, theirs: Trial) -> None:
    assert (mine.failure, theirs.failure) == (None, None)
    states = mine.plan.family.state_dict(), theirs.plan.family.state_dict()
    assert set(states[0]) == set(states[1])
    assert max(float((states[0][name] - states[1][name]).abs().max()) for name in states[0]) < 1e-12
    assert mine.verdict["val/loss"] == pytest.approx(theirs.verdict["val/loss"], rel=1e-9)


@pytest.mark.parametrize("way", WAYS)
def test_a_stack_of_fine_tunings_is_each_of_them_alone(way: str, base: Base, finetuning: Make, to_the_end: Any) -> None:
    together = trials(base, finetuning, [WAYS[way]] * 3)
    [stack] = cohorts(together, wanted=WANTED, fuse="stack", max_stack=8, say=print)
    assert isinstance(stack, Stack)
    if way == "frozen":  # neither among what learns nor among what is carried along
        assert not [name for name in (*stack._names, *stack._others) if "encoder" in name]
    for mine, single in zip(to_the_end(stack), trials(base, finetuning, [WAYS[way]] * 3), strict=True):
        assert_same(mine, *to_the_end(Single(single, WANTED)))


APART: dict[str, tuple[list[dict[str, Any]], str]] = {
    "rates": ([{"method": "gradual", "share": 0.6, "layer_decay": 0.7}] * 2, "learning rates of their own"),
    "turns": (
        [{"method": "probe_then_full", "share": share} for share in (0.4, 0.4, 0.7, 0.7)],
        "in 2 groups by their settings of the family",
    ),
    "held": ([{"l2_sp": l2_sp} for l2_sp in (0.0, 0.0, 0.3, 0.3)], "in 2 groups by their settings of the family"),
}


@pytest.mark.parametrize("case", APART)
def test_what_one_stack_cannot_do_it_is_not_asked_for(case: str, base: Base, finetuning: Make, to_the_end: Any) -> None:
    settings, reason = APART[case]
    said: list[str] = []
    found = cohorts(trials(base, finetuning, settings), wanted=WANTED, fuse="stack", max_stack=8, say=said.append)
    assert reason in said[0]
    ended = sorted((trial for cohort in found for trial in to_the_end(cohort)), key=lambda trial: trial.number)
    for mine, single in zip(ended, trials(base, finetuning, settings), strict=True):
        assert_same(mine, *to_the_end(Single(single, WANTED)))


def test_weights_of_the_pull_that_differ_reach_every_trial(base: Base, finetuning: Make, to_the_end: Any) -> None:
    settings = [{"l2_sp": l2_sp} for l2_sp in (0.3, 0.1, 0.0)]
    [stack] = cohorts(trials(base, finetuning, settings), wanted=WANTED, fuse="stack", max_stack=8, say=print)
    for mine, single in zip(to_the_end(stack), trials(base, finetuning, settings), strict=True):
        assert_same(mine, *to_the_end(Single(single, WANTED)))
