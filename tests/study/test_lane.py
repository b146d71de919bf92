"""What trials of one lane share, and what each gives back when it is over."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from neurofleet.data.lanes import Lanes
from neurofleet.experiment import compose
from neurofleet.study.lane import Lane

WINE = ["family=mlp", "family.hidden=[4]", "data=wine", "trainer.max_epochs=1", "trainer.precision=64-true"]
AGENT = ["family=ppo", "family.rollout={num_steps: 16, num_epochs: 1}", "data=env/cartpole", "data.animate=false"]
AGENT += ["data.num_environments=2", "data.steps_per_epoch=64", "data.batch_size=32", "data.num_episodes=2"]
COMMON = ["trainer.num_threads=1", "trainer.accelerator=cpu"]


def lane(wanted: str, fuse: str = "pack") -> Lane:
    return Lane(wanted=frozenset({wanted}), rank=(wanted, 1), fuse=fuse, max_stack=8, lockstep=False)


def to_the_end(lane: Lane) -> list[Any]:
    reports = []
    while lane.training:
        reports += lane.round(lambda _: None)
    return [report for report in reports if report.state is not None]


def test_rows_are_read_and_converted_once_for_all_trials() -> None:
    one = lane("val/loss")
    sizes = {0: 16, 1: 32, 2: 16}
    made = {number: compose([*WINE, *COMMON, f"data.batch_size={size}"]) for number, size in sizes.items()}
    assert one.begin(made) == ([], [])
    plans = {trial.number: trial.plan for cohort in one._cohorts for trial in cohort.trials}
    assert {number: each.supply.steps_per_epoch for number, each in plans.items()} == {0: 8, 1: 4, 2: 8}
    inputs = [each.supply.tensors("train", torch.device("cpu"))[0] for each in plans.values()]
    assert {each.dtype for each in inputs} == {torch.float64}
    assert len({each.data_ptr() for each in inputs}) == 1
    assert [report.state for report in to_the_end(one)] == ["COMPLETE"] * 3


@pytest.mark.parametrize("drops", [False, True])
def test_an_agents_environments_are_closed_when_its_trial_is_over(drops: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, closed = list[Any](), list[Any]()
    make, close = Lanes.__init__, Lanes.close

    def made(self: Any, *arguments: Any, **settings: Any) -> None:
        opened.append(self)
        make(self, *arguments, **settings)

    monkeypatch.setattr(Lanes, "__init__", made)
    monkeypatch.setattr(Lanes, "close", lambda self: (closed.append(self), close(self))[1])
    one = lane("latency_ms")
    one.begin({number: compose([*AGENT, *COMMON, "trainer.max_epochs=1", f"seed={number}"]) for number in range(2)})
    if drops:
        one.drop({0, 1})
    else:
        reports = to_the_end(one)
        assert [report.state for report in reports] == ["COMPLETE"] * 2
        assert all(report.measures["latency_ms"] > 0 for report in reports)
    assert opened
    assert {id(each) for each in opened} <= {id(each) for each in closed}
