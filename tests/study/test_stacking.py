"""Which trials stand in one stack: those that may, where torch can and where it pays."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from neurofleet import experiment as experiments
from neurofleet.families._base import Objective
from neurofleet.families._supervised import SupervisedFamily
from neurofleet.families.mlp import MLP
from neurofleet.run import plan
from neurofleet.steps import Batch, Context
from neurofleet.study import stacking
from neurofleet.study.cohort import Cohort, Trial
from neurofleet.study.fused import Stack
from neurofleet.study.single import Single

COMMON = ["family=mlp", "family.hidden=[8]", "data=wine", "trainer.max_epochs=1", "trainer.num_threads=1"]


def trials(num: int, change: Callable[[dict[str, Any], int], object], *overrides: str) -> list[Trial]:
    base = experiments.compose([*COMMON, *overrides])
    made, rows = list[Trial](), None
    for number in range(num):
        own: Any = copy.deepcopy(base)
        change(own, number)
        planned = plan(own, rows)
        rows = planned.data
        made.append(Trial(number, planned))
    return made


def divided(made: list[Trial], fuse: str = "stack", max_stack: int = 64) -> tuple[list[Cohort], list[str]]:
    said: list[str] = []
    found = stacking.cohorts(made, wanted=frozenset({"val/loss"}), fuse=fuse, max_stack=max_stack, say=said.append)
    return found, said


def numbers(found: list[Cohort]) -> list[list[int]]:
    return [sorted(trial.number for trial in cohort.trials) for cohort in found]


def own_rate(experiment: dict[str, Any], number: int) -> None:
    experiment["optimizer"]["lr"] = 0.001 * (1 + number)


def test_what_differs_in_numbers_alone_is_one_stack() -> None:
    def change(experiment: dict[str, Any], number: int) -> None:
        experiment["seed"] = number
        experiment["optimizer"] |= {"lr": 0.01 * (1 + number), "weight_decay": 0.1 * number, "betas": [0.9, 0.9]}
        experiment["trainer"]["gradient_clip_val"] = None if number else 1.0
        experiment["schedule"] = dict(experiment["schedule"], warmup=0.1 * number)
        experiment["family"]["dropout"] = 0.1 * number

    [stack], _ = divided(trials(3, change))
    assert isinstance(stack, Stack)
    assert numbers([stack]) == [[0, 1, 2]]


def hidden(experiment: dict[str, Any], number: int) -> None:
    experiment["family"]["hidden"] = [8 + number % 2]


def activation(experiment: dict[str, Any], number: int) -> None:
    experiment["family"]["activation"] = ("relu", "tanh")[number % 2]


def optimizer(experiment: dict[str, Any], number: int) -> None:
    if number % 2:
        sgd = {"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.0}
        experiment["optimizer"] = sgd


def batch_size(experiment: dict[str, Any], number: int) -> None:
    experiment["data"]["batch_size"] = 16 * (1 + number % 2)


def epochs(experiment: dict[str, Any], number: int) -> None:
    experiment["trainer"]["max_epochs"] = 1 + number % 2


@pytest.mark.parametrize("change", [hidden, activation, optimizer, batch_size, epochs])
def test_what_shapes_the_work_splits_stacks(change: Any) -> None:
    found, _ = divided(trials(4, change))
    assert [type(cohort) for cohort in found] == [Stack, Stack]
    assert numbers(found) == [[0, 2], [1, 3]]


def test_one_trial_is_no_stack() -> None:
    found, said = divided(trials(3, lambda experiment, number: experiment["family"].update(hidden=[8 + number])))
    assert [type(cohort) for cohort in found] == [Single] * 3
    assert said == []


def smoothing(experiment: dict[str, Any], number: int) -> None:
    experiment["family"]["label_smoothing"] = 0.1 * (number % 2)
    experiment["seed"] = number


@pytest.fixture
def branching(monkeypatch: pytest.MonkeyPatch) -> None:
    """A family that asks whether its setting is large, which no tensor of a stack can answer."""
    plain = SupervisedFamily.objective

    def objective(self: Any, batch: Batch, context: Context) -> Objective:
        said = plain(self, batch, context)
        return said if self.label_smoothing > 0.05 else Objective(said.loss * 2, said.metrics)

    monkeypatch.setattr(SupervisedFamily, "objective", objective)


@pytest.mark.usefixtures("branching")
def test_a_setting_that_torch_cannot_stack_splits_by_its_value() -> None:
    found, [said] = divided(trials(4, smoothing))
    assert [type(cohort) for cohort in found] == [Stack, Stack]
    assert numbers(found) == [[0, 2], [1, 3]]
    assert said.startswith("4 trials in 2 groups by their settings of the family: torch cannot run their objective")


@pytest.mark.usefixtures("branching")
def test_values_that_are_all_others_train_one_after_another() -> None:
    def change(experiment: dict[str, Any], number: int) -> None:
        experiment["family"]["label_smoothing"] = 0.1 * number

    found, [said] = divided(trials(3, change))
    assert [type(cohort) for cohort in found] == [Single] * 3
    assert said.startswith("3 trials one after another: torch cannot run")


@pytest.mark.parametrize("keeps", ["beside the float", "only in a closure"])
def test_a_setting_that_a_stack_cannot_reach_splits_by_its_value(monkeypatch: pytest.MonkeyPatch, keeps: str) -> None:
    """The first trial's closure would serve all trials of the stack."""
    build, plain = MLP.__init__, SupervisedFamily.objective

    @functools.wraps(build)
    def init(self: Any, **settings: Any) -> None:
        strength = settings["label_smoothing"]
        if keeps == "only in a closure":
            settings["label_smoothing"] = 0.0
        build(self, **settings)
        self.scaled = lambda loss: loss * (1 + strength)

    def objective(self: Any, batch: Batch, context: Context) -> Objective:
        said = plain(self, batch, context)
        return Objective(self.scaled(said.loss), said.metrics)

    monkeypatch.setattr(MLP, "__init__", init)
    monkeypatch.setattr(SupervisedFamily, "objective", objective)
    found, [said] = divided(trials(4, smoothing))
    assert numbers(found) == [[0, 2], [1, 3]]
    assert said.endswith("a setting in which they differ does not reach every trial of a stack")


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["trainer.precision=bf16-mixed"], "a stack trains in 32-true or 64-true"),
        (["+optimizer.amsgrad=true"], "the optimizer has settings beyond"),
    ],
    ids=["precision", "optimizer"],
)
def test_what_no_stack_can_do_trains_one_after_another(overrides: list[str], reason: str) -> None:
    found, [said] = divided(trials(2, own_rate, *overrides))
    assert [type(cohort) for cohort in found] == [Single, Single]
    assert said.startswith(f"2 trials one after another: {reason}")


def timed(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> Iterator[float]:
    """What the clock says of steps, of a stack and of a trial alone in turn."""
    readings = iter(seconds)
    monkeypatch.setattr(stacking, "_seconds", lambda action: (action(), next(readings))[1])
    return readings


def test_auto_takes_what_was_measured_to_be_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = timed(monkeypatch, 2.0, 1.0)
    found, said = divided(trials(4, own_rate), fuse="auto")
    assert [type(cohort) for cohort in found] == [Stack]
    assert said == ["4 trials in 1 stack, measured 2.0x as fast"]
    assert list(readings) == [], "both were timed"
    timed(monkeypatch, 8.0, 1.0)
    found, said = divided(trials(4, own_rate), fuse="auto")
    assert [type(cohort) for cohort in found] == [Single] * 4
    assert said == ["4 trials one after another: a stack of them is slower (0.50x)"]


def test_nothing_is_measured_where_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch)
    assert [type(cohort) for cohort in divided(trials(2, own_rate), fuse="stack")[0]] == [Stack]
    assert [type(cohort) for cohort in divided(trials(2, own_rate), fuse="pack")[0]] == [Single, Single]


def test_measuring_teaches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stack that was timed trains as one that was not."""
    timed(monkeypatch, 1.0, 1.0)
    verdicts = []
    for fuse in ("auto", "stack"):
        [stack], _ = divided(trials(2, own_rate, "trainer.precision=64-true"), fuse=fuse)
        assert isinstance(stack, Stack)
        verdicts.append([trial.verdict for trial in stack.round(lambda num_steps: None)])
    assert verdicts[0] == verdicts[1]


def test_a_stack_is_no_larger_than_allowed() -> None:
    found, _ = divided(trials(7, own_rate), max_stack=3)
    assert numbers(found) == [[0, 1], [2, 3], [4, 5, 6]]


def test_a_stack_is_no_larger_than_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    made = trials(6, own_rate)
    one = 1 / stacking.SHARE_OF_MEMORY  # so that what is free is counted in bytes of trials
    free = psutil.virtual_memory()._replace(available=10**9 * one)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    bytes_of_one = 10**9 // stacking._most(made[0], Single(made[0], frozenset()))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free._replace(available=2.5 * bytes_of_one * one))
    found, _ = divided(made)
    assert numbers(found) == [[0, 1], [2, 3], [4, 5]]
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free._replace(available=0))
    found, _ = divided(made)
    assert len(found) == 6, "one trial has to be tried whatever is free"


def test_settings_stay_in_place_when_the_first_trial_goes() -> None:
    """Those that are left agree in their rate, which differs from the first one's."""

    def change(experiment: dict[str, Any], number: int) -> None:
        experiment["family"]["dropout"] = 0.5 if number else 0.0
        own_rate(experiment, number)

    def rounds(cohort: Cohort) -> list[dict[str, float]]:
        last = next(trial for trial in cohort.trials if trial.number == 2)
        cohort.round(lambda num_steps: None)
        cohort.drop({0})
        cohort.round(lambda num_steps: None)
        return last.history

    settings = ["trainer.max_epochs=3", "trainer.precision=64-true"]
    [stack], _ = divided(trials(3, change, *settings))
    [alone], _ = divided(trials(3, change, *settings)[2:])
    for ours, own in zip(rounds(stack), rounds(alone), strict=True):
        assert ours["train/loss_epoch"] == pytest.approx(own["train/loss_epoch"], rel=1e-12)


def test_what_cannot_stack_at_all_trains_one_after_another() -> None:
    def change(experiment: dict[str, Any], number: int) -> None:
        experiment["family"]["dropout"] = 0.1 * (1 + number % 2)
        experiment["seed"] = number // 2

    found, said = divided(trials(4, change, "trainer.precision=bf16-mixed"))
    assert [type(cohort) for cohort in found] == [Single] * 4
    assert "32-true" in said[-1]
