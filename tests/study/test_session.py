"""What stands after `neurofleet tune`: a new study, or one that goes on; mistakes are named before files are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from optuna.study import StudyDirection

from neurofleet.errors import ConfigError, UserError
from neurofleet.experiment import Composer
from neurofleet.study import session, storage

MLP = ["family=mlp", "data=wine", "trainer.max_epochs=2"]
RATES = "optimizer.lr=tag(log,interval(1e-3,1e-1))"


def begun(name: str, *overrides: str) -> None:
    """A study that another session has begun."""
    composer = Composer.of(overrides)
    with storage.opened(name, [StudyDirection.MINIMIZE]) as opened:
        space = {key: one.to_dict() for key, one in composer.space.items()}
        opened.describe({"overrides": list(overrides), "space": space, "run_id": "abc"})


def test_a_new_study_gets_a_name_of_its_own(home: Path) -> None:
    assert session.order([*MLP, RATES]).name == "mlp-wine-random-1"
    begun("mlp-wine-random-1", *MLP, RATES)
    assert session.order([*MLP, RATES]).name == "mlp-wine-random-2"
    assert session.order([*MLP, RATES, "search=tpe"]).name == "mlp-wine-tpe-1"
    order = session.order([*MLP, RATES, "study=mine"])
    assert (order.name, order.run_id, order.failed_only) == ("mine", None, False)
    assert order.overrides == [*MLP, RATES]
    assert not (home / "studies" / "mine").exists()


def test_a_study_goes_on_by_its_name_alone(home: Path) -> None:
    begun("mine", *MLP, RATES, "family.hidden=[4],[8]", "search.num_trials=5")
    order = session.order(["study=mine"])
    first = Composer.of([*MLP, RATES, "family.hidden=[4],[8]", "search.num_trials=5"])
    assert (order.name, order.run_id) == ("mine", "abc")
    assert (order.composer.space, order.composer.fixed) == (first.space, first.fixed)
    assert order.composer.search == first.search
    point = {"optimizer.lr": 0.01, "family.hidden": [8]}
    assert order.composer.experiment(point) == first.experiment(point)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("search.num_trials=9", "num_trials", 9),
        ("search.max_concurrent=2", "max_concurrent", 2),
        ("search.fuse=pack", "fuse", "pack"),
        ("search.max_stack=3", "max_stack", 3),
        ("search.time_limit_minutes=5", "time_limit_minutes", 5),
        ("search.device_hours=0.5", "device_hours", 0.5),
    ],
)
@pytest.mark.usefixtures("home")
def test_budgets_may_change(override: str, key: str, value: Any) -> None:
    begun("mine", *MLP, RATES)
    assert session.order(["study=mine", override]).composer.search[key] == value
    assert session.order(["study=mine", RATES, *MLP, override]).composer.search[key] == value, "said again as it was"


@pytest.mark.usefixtures("home")
def test_failed_trials_alone() -> None:
    begun("mine", *MLP, RATES)
    assert session.order(["study=mine", "failed_only=true"]).failed_only
    assert not session.order(["study=mine", "failed_only=false"]).failed_only
    with pytest.raises(ConfigError, match=r"no study 'mien' to go on with.*mine"):
        session.order(["study=mien", "failed_only=true"])


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("optimizer.lr=interval(0,1)", r"got optimizer.lr=interval\(0,1\), where it has optimizer.lr=tag"),
        ("family.dropout=0.1,0.2", r"got family.dropout=0.1,0.2, where it has nothing of family.dropout"),
        ("family=cnn", "got family=cnn, where it has family=mlp"),
        ("search.metric=val/accuracy", "search.metric"),
        ("seed=3", "seed=3"),
    ],
)
@pytest.mark.usefixtures("home")
def test_another_space_under_the_same_name_is_refused_with_the_difference(override: str, complaint: str) -> None:
    begun("mine", *MLP, RATES)
    with pytest.raises(ConfigError, match=complaint) as refused:
        session.order(["study=mine", override])
    assert "take another name" in str(refused.value)
    assert "search.num_trials" in str(refused.value)


THREE = ("family.dropout", "family.label_smoothing", "optimizer.weight_decay")
MISTAKES = {
    "nothing to search": (MLP, "tune needs something to search"),
    "an unknown key": ([*MLP, "optimizer.lrr=0.1,0.2"], "lrr"),
    "an unknown choice": ([*MLP[1:], "family=mlp,cmm"], "cnn"),
    "a grid of 10^9": (
        [*MLP, "search=grid", *(f"{key}=range(0,1,0.001)" for key in THREE)],
        "a grid needs at most 1,000,000 points, got 1,000,000,000",
    ),
    "a grid of intervals": ([*MLP, "search=grid", RATES], "intervals for optimizer.lr; use range"),
    "no trials": ([*MLP, RATES, "search.num_trials=0"], "search.num_trials needs a whole number of at least 1"),
    "a scheduler with two metrics": ([*MLP, RATES, "search=nsga2", "scheduler=asha"], "judges trials by one metric"),
    "two launchers": ([*MLP, "launcher=local,ray"], "launcher cannot be searched and needs one value"),
    "a name that is a path": ([*MLP, RATES, "study=../mine"], "study needs a name"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named(name: str, home: Path) -> None:
    overrides, complaint = MISTAKES[name]
    with pytest.raises(UserError) as refused:
        session.order(overrides)
    assert complaint in str(refused.value)
    assert not home.exists()


UNFIT = {
    "an unknown metric": (
        ["search.metric=val/acuracy"],
        r"search.metric needs one of val/loss, val/accuracy, val/f1, .*num_parameters.*, got 'val/acuracy'",
    ),
    "a scheduler that has nothing to go by": (
        ["search.metric=num_parameters", "scheduler=asha"],
        r"a scheduler judges trials by a score of each validation, got search.metric=num_parameters",
    ),
    "no validation rows": (["data.train_splits=[train,val]"], "a study compares trials on validation rows, got none"),
    "a family that does not fit": (["family=cnn"], "families that fit"),
    "workers that come and go": (
        ["launcher=ray", "launcher.num_workers=[1,2]"],
        r"a study needs a number of workers that stays, got launcher.num_workers=\[1, 2\]; give one number, as in 2",
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_no_trial_can_do_is_named(name: str, home: Path) -> None:
    overrides, complaint = UNFIT[name]
    order = session.order([*MLP[1:], RATES, *(overrides if "family=cnn" in overrides else [MLP[0], *overrides])])
    with pytest.raises(UserError, match=complaint):
        session.begin(order)
    assert not home.exists()


@pytest.mark.usefixtures("home")
def test_a_space_that_no_trial_can_build_says_which_and_why() -> None:
    order = session.order([*MLP, "family.dropout=1.5,2.5,3.5,4.5"])
    with pytest.raises(ConfigError) as refused:
        session.begin(order)
    for rate in (1.5, 2.5, 3.5):
        assert f"family.dropout={rate}: family.dropout needs 0 <= dropout < 1, got {rate}" in str(refused.value)
    assert "none of 4 can" in str(refused.value)


@pytest.mark.usefixtures("home")
def test_one_choice_that_cannot_be_built_refuses_no_others() -> None:
    planned = session.begin(session.order([*MLP, "family.hidden=[0],[8]", RATES]))
    assert planned.experiment["family"]["hidden"] == [8]
    with pytest.raises(ConfigError, match="at least one unit"):
        session.begin(session.order([*MLP, "family.hidden=[0]", RATES]))


@pytest.mark.parametrize("name", ["../../x", "a/b", ""])
def test_a_name_that_is_no_name_is_refused_before_anything_is_read(name: str) -> None:
    with pytest.raises(ConfigError, match="study needs a name"):
        session.order([f"study='{name}'", "optimizer.lr=0.1,0.2"])
