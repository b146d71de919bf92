"""A study ends with as many trials as were asked for, however it was cut, and its best trial can be trained again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import torch
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from neurofleet import checkpoint
from neurofleet import experiment as experiments
from neurofleet.errors import ConfigError, RunError
from neurofleet.run import run
from neurofleet.study import cohort, engine, single, storage
from neurofleet.study.fused import Stack
from neurofleet.study.lane import Lane

RATES = "optimizer.lr=tag(log,interval(1e-3,1e-1))"
TRIALS = "search.num_trials=4"
# Some diverge, which torch remarks on; and NSGA-II's settings are called experimental.
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


class Cut:
    """A lane whose process dies in a round, before or after the trials' reports are written down."""

    def __init__(self, lane: Lane, at_round: int) -> None:
        self.lane, self.left = lane, at_round

    def __getattr__(self, name: str) -> Any:
        return getattr(self.lane, name)

    def round(self, tick: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.lane.round(tick)


def cut(at_round: int) -> Callable[[Lane], Any]:
    return lambda lane: Cut(lane, at_round)


def facts(trial: FrozenTrial) -> list[Any]:
    names = ("number", "state", "values", "params", "user_attrs", "intermediate_values", "datetime_complete")
    return [getattr(trial, name) for name in names]


def test_as_many_as_were_asked_for(studied: Any) -> None:
    done = studied(RATES, TRIALS)
    assert done.states == ["COMPLETE"] * 4
    for trial in done.trials:
        scores = trial.user_attrs["scores"]
        assert trial.value == scores["val/loss"] == pytest.approx(trial.intermediate_values[2], rel=1e-12)
        assert {"train/loss_epoch", "val/accuracy"} <= set(scores)
        assert sorted(trial.intermediate_values) == [1, 2]
        assert trial.user_attrs["num_parameters"] == 13 * 4 + 4 + 4 * 3 + 3
    assert len({trial.params["optimizer.lr"] for trial in done.trials}) == 4
    assert done.best.value == min(trial.value for trial in done.trials)
    assert sorted(record["number"] for record in done.told.trials) == [0, 1, 2, 3]
    assert {record["status"] for record in done.told.trials} == {"FINISHED"}


def test_more_may_be_asked_for_later(studied: Any) -> None:
    before = studied(RATES, TRIALS)
    again = studied(RATES, TRIALS)
    assert [facts(trial) for trial in again.trials] == [facts(trial) for trial in before.trials]
    more = studied(RATES, "search.num_trials=6")
    assert [facts(trial) for trial in more.trials[:4]] == [facts(trial) for trial in before.trials]
    assert more.states == ["COMPLETE"] * 6
    assert len({trial.params["optimizer.lr"] for trial in more.trials}) == 6, "none is drawn twice"


@pytest.mark.parametrize("rounds", [0, 1])
@pytest.mark.parametrize("scheduler", ["none", "asha"])
def test_a_cut_study_goes_on_to_what_a_whole_one_finds(studied: Any, rounds: int, scheduler: str) -> None:
    settings = [RATES, TRIALS, f"scheduler={scheduler}", "trainer.max_epochs=4"]
    with pytest.raises(KeyboardInterrupt):
        studied(*settings, name="cut", wrap=cut(rounds))
    gone_on = studied(*settings, name="cut")
    whole = studied(*settings, name="whole")
    assert gone_on.states == whole.states
    assert [trial.params for trial in gone_on.trials] == [trial.params for trial in whole.trials]
    assert [trial.values for trial in gone_on.trials] == [trial.values for trial in whole.trials]
    assert [one.intermediate_values for one in gone_on.trials] == [one.intermediate_values for one in whole.trials]
    assert Counter(whole.states) == ({"COMPLETE": 4} if scheduler == "none" else {"COMPLETE": 1, "PRUNED": 3})


def test_what_was_finished_before_the_cut_stays(studied: Any) -> None:
    settings = [RATES, "search.num_trials=5", "search.max_concurrent=2"]
    with pytest.raises(KeyboardInterrupt):
        studied(*settings, wrap=cut(3))  # two rounds a wave
    with storage.opened("tries", [StudyDirection.MINIMIZE]) as opened:
        before = opened.study.get_trials()
    assert [one.state.name for one in before] == ["COMPLETE"] * 2 + ["RUNNING"] * 2
    after = studied(*settings)
    assert after.states == ["COMPLETE"] * 5
    assert [facts(one) for one in after.trials[:2]] == [facts(one) for one in before[:2]]
    assert [one.params for one in after.trials[:4]] == [one.params for one in before]


GRID = ["search=grid", "optimizer.lr=0.01,0.02,0.03", "family.hidden=[4],[3,2]"]
POINTS = {(lr, hidden) for lr in (0.01, 0.02, 0.03) for hidden in ("[4]", "[3, 2]")}


def points(trials: list[FrozenTrial]) -> list[tuple[float, str]]:
    return [(trial.params["optimizer.lr"], trial.params["family.hidden"]) for trial in trials]


def test_a_grid_is_walked_once(studied: Any) -> None:
    done = studied(*GRID)
    assert done.states == ["COMPLETE"] * 6
    assert set(points(done.trials)) == POINTS


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_a_grid_goes_on_after_a_cut(studied: Any, rounds: int) -> None:
    settings = [*GRID, "search.max_concurrent=2", "search.fuse=pack", "trainer.max_epochs=1"]
    with pytest.raises(KeyboardInterrupt):
        studied(*settings, wrap=cut(rounds))
    done = studied(*settings)
    assert done.states == ["COMPLETE"] * 6
    assert set(points(done.trials)) == POINTS


def test_a_grid_that_was_cut_short_goes_on_where_it_was(studied: Any) -> None:
    assert len(studied(*GRID, "search.num_trials=4").trials) == 4
    done = studied(*GRID)
    assert len(done.trials) == 6
    assert set(points(done.trials)) == POINTS


DIVERGING = ["optimizer=sgd", "search=grid", "optimizer.lr=0.01,1e300,0.02", "trainer.max_epochs=3"]


@pytest.mark.parametrize("fuse", ["stack", "pack"])
def test_a_trial_that_diverges_harms_no_other(studied: Any, fuse: str, capsys: pytest.CaptureFixture[str]) -> None:
    done = studied(*DIVERGING, f"search.fuse={fuse}")
    assert done.states == ["COMPLETE", "FAIL", "COMPLETE"]
    assert "finite" in done.trials[1].user_attrs["failure"]
    assert "lower optimizer.lr" in done.trials[1].user_attrs["failure"]
    assert "trial 1 failed: " in capsys.readouterr().out
    assert {record["number"]: record["status"] for record in done.told.trials}[1] == "FAILED"
    for place in (0, 2):
        rate = done.trials[place].params["optimizer.lr"]
        alone = studied(
            "optimizer=sgd", "search=grid", f"optimizer.lr={rate},0.5", "trainer.max_epochs=3", name=f"{fuse}-{place}"
        )
        assert done.trials[place].value == pytest.approx(alone.trials[0].value, rel=1e-12)


def test_failed_trials_alone_are_tried_again(studied: Any) -> None:
    before = studied(*DIVERGING)
    after = studied(*DIVERGING, failed_only=True)
    assert after.states == ["COMPLETE", "FAIL", "COMPLETE", "FAIL"]
    assert after.trials[3].params == before.trials[1].params
    assert after.trials[3].user_attrs["retry_of"] == 1
    assert [facts(one) for one in after.trials[:3]] == [facts(one) for one in before.trials]
    assert studied(*DIVERGING).states == after.states, "what was tried again does not count against num_trials"


def test_a_retry_that_was_cut_is_not_lost(studied: Any) -> None:
    studied(*DIVERGING)
    with pytest.raises(KeyboardInterrupt):
        studied(*DIVERGING, failed_only=True, wrap=cut(0))
    after = studied(*DIVERGING)
    assert after.states == ["COMPLETE", "FAIL", "COMPLETE", "FAIL"]


def test_time_that_is_up_ends_a_study(studied: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that moves a second a look."""
    seconds = iter(range(10_000))
    monkeypatch.setattr(engine, "time", SimpleNamespace(monotonic=lambda: float(next(seconds))))
    settings = [RATES, TRIALS, "search.max_concurrent=2", "trainer.max_epochs=3"]
    done = studied(*settings, f"search.time_limit_minutes={2.5 / 60}")
    assert done.states == ["PRUNED", "PRUNED"], "the look before the wave, and those after two rounds"
    assert [sorted(one.intermediate_values) for one in done.trials] == [[1, 2]] * 2
    more = studied(*settings)
    assert more.states == ["PRUNED"] * 2 + ["COMPLETE"] * 2


class Devices:
    """A lane that trains on so many devices."""

    def __init__(self, lane: Lane, num_devices: int) -> None:
        self.lane, self.num_devices = lane, num_devices

    def __getattr__(self, name: str) -> Any:
        return getattr(self.lane, name)


def test_device_hours_that_are_spent_end_a_study(studied: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that moves a second a look; those of earlier sessions count too."""
    seconds = iter(range(10_000))
    monkeypatch.setattr(engine, "time", SimpleNamespace(monotonic=lambda: float(next(seconds))))
    settings = [RATES, TRIALS, "search.max_concurrent=2", "trainer.max_epochs=6"]

    def go_on(num_seconds: float, num_devices: int) -> Any:
        limit = f"search.device_hours={num_seconds / 3600}"
        return studied(*settings, limit, wrap=lambda lane: Devices(lane, num_devices))

    two = go_on(7.5, 2)
    assert two.states == ["PRUNED", "PRUNED"]
    assert [len(one.intermediate_values) for one in two.trials] == [3] * 2, "a look before the wave, one a round"
    assert go_on(7.5, 1).states == ["PRUNED", "PRUNED"], "nothing is left of them"
    more = go_on(13.5, 1)
    assert more.states == ["PRUNED"] * 4
    assert [len(one.intermediate_values) for one in more.trials[2:]] == [2] * 2, (
        "five looks on two devices and one on one: 11 seconds"
    )


def test_trials_that_cannot_be_built_end_a_study(studied: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ["search=grid", "family.dropout=0.1,1.5,2.5,3.5"]
    done = studied(*settings, name="some")
    assert done.states == ["COMPLETE", "FAIL", "FAIL", "FAIL"]
    assert "family.dropout" in done.trials[1].user_attrs["failure"]
    with pytest.raises(ConfigError, match="none of 3 can"):
        studied("search=grid", "family.dropout=1.5,2.5,3.5", name="none")


def test_several_objectives(studied: Any) -> None:
    done = studied("search=nsga2", "family.hidden=[2],[4],[8]", RATES, "search.num_trials=6", "search.max_concurrent=3")
    assert done.states == ["COMPLETE"] * 6
    assert done.best is None
    for trial in done.trials:
        loss, size = trial.values
        assert loss == trial.user_attrs["scores"]["val/loss"]
        [hidden] = json.loads(trial.params["family.hidden"])
        assert size == 13 * hidden + hidden + hidden * 3 + 3
    beaten = [
        one.number
        for one in done.trials
        if any(
            all(a <= b for a, b in zip(other.values, one.values, strict=True)) and other.values != one.values
            for other in done.trials
        )
    ]
    assert sorted(one.number for one in done.pareto) == [n for n in range(6) if n not in beaten]
    assert not (done.folder / "best").exists()


def test_the_best_is_what_a_run_of_its_experiment_leaves(studied: Any, tmp_path: Path) -> None:
    done = studied(RATES, TRIALS, "family.dropout=interval(0,0.4)", "search.metric=val/accuracy", "search.mode=max")
    best = done.folder / "best"
    about = json.loads((best / "trial.json").read_text())
    assert about["trial"] == done.best.number
    assert done.best.value == max(trial.value for trial in done.trials)
    result = run(experiments.load(best / "experiment.yaml"), folder=tmp_path / "again")
    kept, left = (
        checkpoint.decode((where / "weights.safetensors").read_bytes())[0] for where in (best, tmp_path / "again")
    )
    assert set(kept) == set(left)
    assert all(torch.allclose(kept[name], left[name], rtol=0, atol=1e-12) for name in left)
    assert result.metrics["val/loss"] == pytest.approx(about["scores"]["val/loss"], rel=1e-12)
    composed = experiments.compose([*done.composer.fixed, *about["overrides"]])
    assert experiments.digest(composed) == experiments.digest(experiments.load(best / "experiment.yaml"))
    history = json.loads((best / "history.json").read_text())
    assert [row["epoch"] for row in history] == [1.0, 2.0]
    assert (best / "spec.json").is_file()


def test_a_better_trial_of_a_later_session_takes_its_place(studied: Any) -> None:
    first = studied("search=grid", "optimizer.lr=0.001,0.05", "search.num_trials=1", "search.fuse=pack")
    assert json.loads((first.folder / "best" / "trial.json").read_text())["trial"] == 0
    second = studied("search=grid", "optimizer.lr=0.001,0.05", "search.fuse=pack")
    assert second.best.number == 1
    assert json.loads((second.folder / "best" / "trial.json").read_text())["trial"] == 1


def test_halving_saves_epochs(studied: Any) -> None:
    done = studied(RATES, "search.num_trials=9", "scheduler=asha", "trainer.max_epochs=9")
    assert Counter(done.states) == {"COMPLETE": 1, "PRUNED": 8}
    assert sorted(max(one.intermediate_values) for one in done.trials) == [1] * 6 + [3] * 2 + [9]
    at_first = sorted(done.trials, key=lambda one: one.intermediate_values[1])
    assert {one.number for one in at_first[:3]} == {one.number for one in done.trials if 3 in one.intermediate_values}
    assert done.best.state == TrialState.COMPLETE


def test_shapes_and_seeds_are_searched_together(studied: Any) -> None:
    done = studied("search=grid", "family.hidden=[4],[8]", "seed=0,1,2", "search.fuse=stack")
    assert done.states == ["COMPLETE"] * 6
    assert len({trial.value for trial in done.trials}) == 6


def test_a_session_that_is_cut_while_it_asks_loses_nothing(studied: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sampled, original = [], optuna.samplers.RandomSampler.sample_independent

    def cut(*arguments: Any) -> Any:
        sampled.append(arguments)
        if len(sampled) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(optuna.samplers.RandomSampler, "sample_independent", cut)
        with pytest.raises(KeyboardInterrupt):
            studied(RATES, "search.num_trials=4")
    done = studied(RATES, "search.num_trials=4")
    assert sorted(done.states) == ["COMPLETE"] * 4 + ["FAIL"], "the one that lacks its value is not counted"
    assert len(done.told.trials) == 4


def test_heirs_have_donors_of_their_own_shape(studied: Any) -> None:
    settings = ["scheduler=pbt", "scheduler.every_epochs=1", "trainer.max_epochs=4", "search.num_trials=8"]
    done = studied(RATES, "family.hidden=[4],[8]", *settings)
    assert done.states == ["COMPLETE"] * 8
    inherited = [(trial, change) for trial in done.trials for change in trial.user_attrs.get("inherited", [])]
    assert inherited
    for trial, change in inherited:
        assert change["values"]["family.hidden"] == json.loads(trial.params["family.hidden"])


def test_cma_es_draws_its_generations_across_sessions(studied: Any) -> None:
    settings = ["search=cmaes", RATES, "family.dropout=interval(0,0.4)", "family.activation=relu,tanh"]
    settings += ["search.sampler.popsize=4", "search.sampler.n_startup_trials=4", "search.max_concurrent=4"]
    with pytest.raises(KeyboardInterrupt):
        studied(*settings, "search.num_trials=16", wrap=cut(5))  # in the second generation
    done = studied(*settings, "search.num_trials=16")
    assert done.states == ["COMPLETE"] * 16
    generations = [trial.system_attrs.get("cma:generation") for trial in done.trials]
    assert generations == [None] * 4 + [0] * 4 + [1] * 4 + [2] * 4
    assert {trial.params["family.activation"] for trial in done.trials} == {"relu", "tanh"}


def test_bohb_draws_from_what_brackets_gave_up(studied: Any) -> None:
    settings = ["search=bohb", RATES, "search.num_trials=24", "trainer.max_epochs=9"]
    done = studied(*settings, "search.sampler.n_startup_trials=8")
    assert Counter(done.states).keys() == {"COMPLETE", "PRUNED"}
    rungs = {max(one.intermediate_values) for one in done.trials if one.state == TrialState.PRUNED}
    assert rungs == {1, 3}
    drawn = ["tpe:relative_params:0" in trial.system_attrs for trial in done.trials]
    assert drawn == [False] * 8 + [True] * 16, "what was pruned counts among the first 8"


SEEDS = ["search=grid", "seed=0,1,2", "trainer.max_epochs=4"]


def test_a_trial_that_breaks_harms_no_other(
    studied: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, in_a_stack, alone = studied(*SEEDS, name="whole"), Stack._train, single.run_chunk

    def breaks(stack: Stack) -> Any:
        if stack.loader.step == 2:
            raise IndexError("beyond its table")
        yield from in_a_stack(stack)

    def breaks_by_seed(family: Any, chunk: Any, optimizer: Any) -> Any:
        if family.recipe.seed == 1:
            raise IndexError("beyond its table")
        return alone(family, chunk, optimizer)

    monkeypatch.setattr(Stack, "_train", breaks)
    monkeypatch.setattr(single, "run_chunk", breaks_by_seed)
    done = studied(*SEEDS)
    assert done.states == ["COMPLETE", "FAIL", "COMPLETE"]
    assert done.trials[1].user_attrs["failure"].startswith("IndexError: beyond its table (test_engine.py, line ")
    for place in (0, 2):
        assert done.trials[place].value == pytest.approx(whole.trials[place].value, rel=1e-12)
        assert done.trials[place].intermediate_values == pytest.approx(whole.trials[place].intermediate_values)
    said = capsys.readouterr().out
    assert "3 trials of a stack begin again, each alone: IndexError: beyond its table" in said
    assert "trial 1 failed: IndexError: beyond its table" in said


@pytest.mark.parametrize("where", ["start", "_train"])
def test_one_error_in_the_first_three_trials_ends_a_study(
    studied: Any, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def breaks(*_: Any) -> Any:
        raise IndexError("beyond its table")

    with monkeypatch.context() as patched:
        patched.setattr(cohort.Trial if where == "start" else single.Single, where, breaks)
        with pytest.raises(RunError, match=r"the first \d trials failed by one error: IndexError: beyond its table"):
            studied(RATES, "search.num_trials=5", "search.fuse=pack")
    done = studied(RATES, "search.num_trials=5", "search.fuse=pack", failed_only=True)
    assert set(done.states[5:]) == {"COMPLETE"}


def test_each_trial_has_epochs_of_its_own_under_a_scheduler(studied: Any) -> None:
    settings = ["search=grid", "trainer.max_epochs=2,9,4", "optimizer.lr=0.001,0.01,0.03", "scheduler=asha"]
    done = studied(*settings)
    longest = {one.number: max(one.intermediate_values) for one in done.trials}
    for trial in done.trials:
        if trial.state == TrialState.COMPLETE:
            assert longest[trial.number] == trial.params["trainer.max_epochs"]
        else:
            assert longest[trial.number] in (1, 3)
    assert sorted(longest.values())[-1] == 9, "rungs go on beyond the first trial's end"
    assert Counter(done.states)["PRUNED"] >= 5


@pytest.mark.parametrize("metric", ["latency_ms", "num_parameters", "weights_bytes"])
def test_what_is_measured_after_training_may_be_the_only_objective(studied: Any, metric: str) -> None:
    done = studied("search=grid", "family.hidden=[4],[64]", f"search.metric={metric}", "trainer.max_epochs=1")
    assert done.states == ["COMPLETE"] * 2
    assert all(trial.value > 0 for trial in done.trials)
    if metric != "latency_ms":
        assert done.best.number == 0
    assert json.loads((done.folder / "best" / "trial.json").read_text())["trial"] == done.best.number


def test_values_stay_on_their_range(studied: Any) -> None:
    settings = ["family.dropout=range(0.0,0.8,0.1)", "trainer.max_epochs=1", "search.num_trials=40"]
    settings += ["search=evolution", "search.sampler.population_size=4", "search.sampler.sample_size=2"]
    done = studied(*settings)
    grid = {round(0.1 * place, 1) for place in range(8)}
    assert {one.user_attrs.get("failure") for one in done.trials} == {None}
    seen = {storage.values(done.composer.space, one.params)["family.dropout"] for one in done.trials}
    assert seen <= grid
    assert {one.params["family.dropout"] for one in done.trials[8:]} <= grid, "children too"
