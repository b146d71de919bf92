"""Trials on Ray end as they do in one process, whichever actor dies; those with `slow` share a private Ray."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from neurofleet import paths
from neurofleet.errors import ConfigError, StoppedError
from neurofleet.experiment import Composer, Experiment
from neurofleet.launch import connection
from neurofleet.study import actors, lane_actor, stock
from neurofleet.study.lane import Lane, Report
from neurofleet.study.lane_actor import LaneActor, LostError

LAUNCHER = {"name": "ray", "num_workers": 2, "use_gpu": False, "strategy": "ddp", "cpus_per_worker": 1}
TINY = ["family=mlp", "family.hidden=[4]", "data=wine", "data.batch_size=124", "trainer.max_epochs=4"]
TINY += ["trainer.accelerator=cpu", "trainer.precision=64-true", "search.fuse=stack"]
RATES = [0.001, 0.003, 0.01, 0.03, 0.05, 0.1]
DIVERGING = 1e300
SETTINGS = {
    "wanted": frozenset({"val/loss"}),
    "rank": ("val/loss", 1),
    "fuse": "stack",
    "max_stack": 64,
    "lockstep": True,
}


def trials(*rates: float, overrides: tuple[str, ...] = ()) -> dict[int, Experiment]:
    composer = Composer.of([*TINY, *overrides, "optimizer.lr=interval(1e-3,1e300)"])
    return {number: composer.experiment({"optimizer.lr": rate}) for number, rate in enumerate(rates)}


def trained(lanes: Any, experiments: dict[int, Experiment]) -> list[Report]:
    """All reports up to the trials' ends."""
    refused, _ = lanes.begin(experiments)
    reports = list(refused)
    while lanes.training:
        reports += lanes.round(lambda _: None)
    return reports


def ends(reports: list[Report]) -> dict[int, Report]:
    return {report.number: report for report in reports if report.state is not None}


def same(ours: dict[int, Report], alone: dict[int, Report]) -> None:
    assert ours.keys() == alone.keys()
    for number, report in ours.items():
        assert report.state == alone[number].state
        assert report.scores == pytest.approx(alone[number].scores, rel=1e-9)
        assert len(report.history) == len(alone[number].history)


# Which trials share an actor.


def test_trials_of_one_architecture_are_torn_into_parts_that_are_big_enough() -> None:
    small, large = trials(*[0.1] * 16), trials(*[0.1] * 16, overrides=("family.hidden=[8]",))
    one = actors.divided(small, 2, keep_together=True)
    assert [len(share) for share in one] == [8, 8]
    both = small | {16 + number: experiment for number, experiment in large.items()}
    for share in actors.divided(both, 2, keep_together=True):
        assert sum(number < 16 for number in share) == sum(number >= 16 for number in share) == 8
    assert [len(share) for share in actors.divided(trials(*[0.1] * 4), 2, keep_together=True)] == [2, 2]


def test_small_groups_stay_whole() -> None:
    groups = [trials(*[0.1] * 4, overrides=(f"family.hidden=[{size}]",)) for size in (4, 8, 16, 32)]
    all_of_them = {4 * place + number: one for place, group in enumerate(groups) for number, one in group.items()}
    shares = actors.divided(all_of_them, 2, keep_together=True)
    assert [len(share) for share in shares] == [8, 8]
    assert all(len({number // 4 for number in share}) == 2 for share in shares)
    apart = actors.divided(all_of_them, 3, keep_together=False)
    assert sorted(len(share) for share in apart) == [5, 5, 6]


def test_floats_of_a_family_do_not_part_trials() -> None:
    composer = Composer.of([*TINY, "family.dropout=interval(0.0,0.5)"])
    experiments = {number: composer.experiment({"family.dropout": number / 8}) for number in range(4)}
    assert len({actors._architecture(experiment) for experiment in experiments.values()}) == 1


# What becomes of trials whose actor dies.


def test_trials_that_begin_again_come_to_where_they_were() -> None:
    actor = LaneActor(SETTINGS, "")
    answer = actor.begin_again(trials(0.01, 0.1, DIVERGING), {0: 2.0, 1: 2.0, 2: 0.0})
    assert {(report.number, report.state) for report in answer.reports} == {(2, "FAIL")}
    assert {report.epoch for report in actor.round().reports} == {3.0}


def test_a_trial_whose_actors_die_again_and_again_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    with connection.environment(connection._settings(None)):  # which Ray reads once, when it is imported
        import ray

    class Mortal:
        def __getattr__(self, name: str) -> Any:
            return self

        def remote(self, *_: Any) -> object:
            return object()

    def lost(_: Any) -> None:
        raise LostError("it was killed")

    made = []
    monkeypatch.setattr(actors, "get", lost)
    monkeypatch.setattr(ray, "kill", lambda _: None)
    monkeypatch.setattr(ray, "wait", lambda calls, timeout: (calls, []))
    lanes = actors.ActorLanes(lambda: made.append(1) or Mortal(), 1, lockstep=True, keep_together=True)
    reports = trained(lanes, trials(0.01, 0.1))
    assert [(one.number, one.state, one.failure) for one in reports] == [
        (number, "FAIL", "its actor died 4 times, lastly: it was killed") for number in (0, 1)
    ]
    assert len(made) == 5


class Nowhere:
    """Ray, and an actor on it that never starts."""

    def __getattr__(self, name: str) -> Any:
        return self

    def remote(self, *_: Any) -> object:
        return object()


def test_an_actor_without_a_place_is_not_waited_for_in_silence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with connection.environment(connection._settings(None)):
        import ray

    made, now = list[int](), [0.0]

    def wait(calls: list[object], timeout: float) -> tuple[list[object], list[object]]:
        now[0] += timeout
        return [], calls

    monkeypatch.setattr(lane_actor, "MOST_PATIENCE", 120.0)
    monkeypatch.setattr(lane_actor.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(ray, "kill", lambda _: None)
    lanes = actors.ActorLanes(lambda: made.append(1) or Nowhere(), 1, lockstep=True, keep_together=True)
    reports = trained(lanes, trials(0.01, 0.1))
    assert [(one.number, one.state) for one in reports] == [(0, "FAIL"), (1, "FAIL")]
    assert "its actor died 4 times, lastly: it did not start in 120 s; is there room" in str(reports[0].failure)
    assert len(made) == 5
    said = capsys.readouterr().out
    for seconds in (30, 60, 90):
        assert said.count(f"actor 0 has not started in {seconds} s (the cluster is full, or slow); 2 trials wait") == 4
    assert said.count("its 2 trials begin again in a new one") == 3


def test_a_signal_while_ray_waits_stops_the_study(monkeypatch: pytest.MonkeyPatch) -> None:
    with connection.environment(connection._settings(None)):
        import ray

    def wait(*_: Any, **__: Any) -> Any:
        raise SystemError("returned a result with an exception set") from StoppedError("stopped by SIGTERM", 15)

    monkeypatch.setattr(ray, "wait", wait)
    with pytest.raises(StoppedError, match="SIGTERM"):
        lane_actor.answered([object()], 1.0)


# On Ray.


@pytest.fixture(scope="module")
def private_ray() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "local")
        with actors.on_ray(LAUNCHER):
            yield


@pytest.mark.slow
def test_ray_tune_as_it_is(private_ray: None, tmp_path: Path) -> None:
    """Before the actors below take all CPUs."""
    experiments = trials(*RATES[:3], DIVERGING)
    never = {"_target_": "neurofleet.study.schedulers.Never"}
    steps: list[int] = []
    with stock.stock(experiments[0] | {"launcher": LAUNCHER}, never, SETTINGS, tmp_path / "ray_tune", 4) as lanes:
        lanes.begin(experiments)
        reports = []
        while lanes.training:
            reports += lanes.round(steps.append)
    same(ends(reports), ends(trained(Lane(**SETTINGS), experiments)))
    assert [report.epoch for report in reports if report.number == 0] == [1, 2, 3, 4, 4]
    assert sum(steps) >= 3 * 4
    assert not (tmp_path / "ray_tune").exists()


@pytest.fixture(scope="module")
def two_actors(private_ray: None) -> Iterator[actors.ActorLanes]:
    with actors.actors(LAUNCHER, SETTINGS) as lanes:
        yield lanes


def inside(lanes: actors.ActorLanes, place: int, function: Any) -> Any:
    import ray

    return ray.get(lanes._seats[place].actor.__ray_call__.remote(function))


def surroundings(_: Any) -> dict[str, Any]:
    import torch

    return {"threads": torch.get_num_threads(), "home": os.environ["NEUROFLEET_HOME"], "folder": os.getcwd()}


@pytest.mark.slow
def test_actors_work_as_the_driver_does(two_actors: actors.ActorLanes) -> None:
    expected = {"threads": 1, "home": str(paths.home()), "folder": os.getcwd()}
    import sys

    import ray.cloudpickle

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    for place in range(2):
        assert inside(two_actors, place, surroundings) == expected


@pytest.mark.slow
def test_two_actors_score_as_one_process_does(two_actors: actors.ActorLanes) -> None:
    experiments = trials(*RATES, DIVERGING)
    assert sorted(map(len, actors.divided(experiments, 2, keep_together=True))) == [3, 4]
    ours, alone = ends(trained(two_actors, experiments)), ends(trained(Lane(**SETTINGS), experiments))
    same(ours, alone)
    assert [report.state for _, report in sorted(ours.items())] == ["COMPLETE"] * 6 + ["FAIL"]
    assert "finite" in str(ours[6].failure)
    best = min((report for number, report in ours.items() if number < 6), key=lambda one: one.scores["val/loss"])
    assert best.weights


@pytest.mark.slow
def test_a_killed_actor_costs_no_trial(two_actors: actors.ActorLanes, capsys: pytest.CaptureFixture[str]) -> None:
    experiments = trials(*RATES)
    two_actors.begin(experiments)
    reports = [*two_actors.round(lambda _: None), *two_actors.round(lambda _: None)]
    os.kill(inside(two_actors, 0, lambda _: os.getpid()), signal.SIGKILL)
    while two_actors.training:
        reports += two_actors.round(lambda _: None)
    assert "its 3 trials begin again in a new one" in capsys.readouterr().out
    same(ends(reports), ends(trained(Lane(**SETTINGS), experiments)))
    for number in experiments:
        assert [report.epoch for report in reports if report.number == number] == [1, 2, 3, 4]


@pytest.mark.slow
def test_an_heir_in_another_actor_learns_on(two_actors: actors.ActorLanes) -> None:
    experiments = trials(*RATES[:2])
    lane = Lane(**SETTINGS)
    found = []
    for lanes in (two_actors, lane):
        lanes.begin(experiments)
        lanes.round(lambda _: None)
        lanes.inherit(0, lanes.learnt(1), experiments[1])
        reports = []
        while lanes.training:
            reports += lanes.round(lambda _: None)
        found.append(ends(reports))
    same(*found)


@pytest.mark.slow
def test_trials_are_given_up(two_actors: actors.ActorLanes) -> None:
    two_actors.begin(trials(*RATES))
    two_actors.round(lambda _: None)
    dropped = two_actors.drop({0, 5})
    assert sorted((report.number, report.state, report.epoch) for report in dropped) == [
        (0, "PRUNED", 1.0),
        (5, "PRUNED", 1.0),
    ]
    assert all(report.points for report in dropped)
    assert two_actors.training == {1, 2, 3, 4}
    two_actors.drop(two_actors.training)


# Schedulers of Ray Tune.

OURS = "neurofleet.study.schedulers."


@pytest.mark.parametrize(
    ("config", "name", "settings"),
    [
        ({"_target_": OURS + "Never"}, "FIFOScheduler", {}),
        (
            {"_target_": OURS + "SuccessiveHalving", "grace_epochs": 2, "reduction_factor": 3},
            "AsyncHyperBandScheduler",
            {"_time_attr": "epoch", "_max_t": 9, "_reduction_factor": 3},
        ),
        (
            {"_target_": OURS + "Hyperband", "grace_epochs": 1, "reduction_factor": 3},
            "HyperBandScheduler",
            {"_time_attr": "epoch", "_max_t_attr": 9},
        ),
        (
            {"_target_": OURS + "Median", "grace_epochs": 2, "min_trials": 4},
            "MedianStoppingRule",
            {"_time_attr": "epoch", "_grace_period": 2, "_min_samples_required": 4},
        ),
        (
            {"_target_": "ray.tune.schedulers.MedianStoppingRule", "grace_period": 7},
            "MedianStoppingRule",
            {"_grace_period": 7},
        ),
    ],
)
def test_ray_tune_has_a_scheduler_for_ours(config: dict[str, Any], name: str, settings: dict[str, Any]) -> None:
    with connection.environment(connection._settings(None)):
        made = stock.make_scheduler(config, 9)
    assert type(made).__name__ == name
    assert {key: getattr(made, key) for key in settings} == settings


def test_what_changes_trials_while_they_train_is_refused() -> None:
    config = {"every_epochs": 2, "quantile": 0.25, "factors": [0.8], "resample_probability": 0.0}
    with pytest.raises(ConfigError, match=r"leaves it to Ray Tune .* use search\.fuse=auto, stack or pack"):
        stock.make_scheduler({"_target_": OURS + "PopulationBased", **config}, 9)


def test_ray_tunes_own_schedulers_need_ray_tune() -> None:
    with pytest.raises(ConfigError, match=r"need search\.fuse=off, got stack"):
        Composer.of([*TINY, "optimizer.lr=1,2", "scheduler._target_=ray.tune.schedulers.FIFOScheduler"])
