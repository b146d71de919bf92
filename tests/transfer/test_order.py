"""What a user says becomes the experiment that trains, and the control beside it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neurofleet import experiment as experiments
from neurofleet.errors import ConfigError, MismatchError
from neurofleet.transfer import order as orders
from neurofleet.transfer.base import Base

Make = Callable[..., Any]
METHOD = {"name": "full", "share": None, "layer_decay": 0.5, "rank": None, "l2_sp": 0.1, "mixup": 0.2}


@pytest.fixture(scope="module")
def base(make_base: Make) -> Base:
    made: Base = make_base("family=mlp", "data=digits", "family.hidden=[8]")
    return dataclasses.replace(made, uri="runs:/1", name="digits-mlp", tags={"base.uri": "runs:/1"})


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    monkeypatch.setenv("NEUROFLEET_HOME", str(tmp_path))
    shared = experiments.compose(["data=digits", "data.train_rows=50"])
    del shared["family"]
    own = {
        "base": "runs:/1",
        "strict": True,
        "method": dict(METHOD),
        "statistics": "auto",
        "head": {"hidden": [4], "dropout": 0.0, "label_smoothing": 0.0},
        "augmentation": {"degrees": 0.0, "scale": 0.0, "translation": 0.0},
        "control": "scratch",
        "control_lr": None,
        "label_counts": [],
    }
    return shared | own


def test_an_order_is_an_experiment_that_builds(base: Base, config: dict[str, Any]) -> None:
    order = orders.Start(base).order(config)
    family = order.experiment["family"]
    assert order.experiment["name"] == f"digits-from-digits-mlp-{config['seed']}"
    assert (family["method"], family["hidden"], family["l2_sp"], family["statistics"]) == ("full", [4], 0.1, "data")
    assert order.tags == {"base": "digits-mlp", "base.sha256": family["base"]["sha256"], "base.uri": "runs:/1"}
    assert order.reason is None
    assert order.data.spec.num_rows["train"] == 50
    network = experiments.build_family(order.experiment, order.data.spec)
    network.begin(0)
    assert orders.architecture(order.experiment) == "mlp"


def test_a_control_has_a_random_start_and_the_same_budget(base: Base, config: dict[str, Any]) -> None:
    experiment = orders.Start(base).order(config).experiment
    before = copy.deepcopy(experiment)
    scratch, same = (orders.control(experiment, kind, None) for kind in ("scratch", "same_method"))
    assert experiment == before
    changed = {key for key in scratch["family"] if scratch["family"][key] != experiment["family"][key]}
    assert changed == {"random_start", "layer_decay", "l2_sp"}
    assert {key for key in same["family"] if same["family"][key] != experiment["family"][key]} == {
        *("random_start", "l2_sp")
    }
    for control in (scratch, same):
        assert {key for key in control if control[key] != experiment[key]} == {"family", "name"}
        experiments.build_family(control, base.spec).begin(0)
    assert scratch["name"] == f"{experiment['name']}-control"
    assert orders.control(experiment, "scratch", 0.25)["optimizer"] == experiment["optimizer"] | {"lr": 0.25}


def test_the_method_is_chosen_by_the_data(base: Base, config: dict[str, Any]) -> None:
    config["method"] = METHOD | {"name": "auto", "layer_decay": None, "l2_sp": None}
    order = orders.Start(base).order(config)
    assert order.experiment["family"]["method"] == "frozen"
    assert order.reason is not None
    assert order.reason.startswith("5 rows a class are few")
    config["data"]["train_rows"] = None
    order = orders.Start(base).order(config)
    with pytest.raises(ConfigError, match="method=auto, which chose probe_then_full, heeds share"):
        orders.Start(base).order(config | {"method": config["method"] | {"rank": 4}})
    family = order.experiment["family"]
    assert (family["method"], family["share"], family["mixup"]) == ("probe_then_full", 0.3, 0.2)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "control": ({"control": "maybe"}, "control needs one of scratch, same_method, off, got 'maybe'"),
    "method": ({"method": METHOD | {"name": "gradul"}}, "did you mean gradual"),
    "no method": ({"method": "full"}, "method needs the keys name, share"),
    "not heeded": ({"method": METHOD | {"rank": 4}}, "leave that out, or take a method that does: lora$"),
    "key": ({"method": {"name": "full"}}, "method needs the keys name, share"),
    "head": ({"head": None}, "head needs hidden, dropout and label_smoothing, got None"),
    "rate": ({"control_lr": 0}, "control_lr needs a learning rate above 0, or null for the same, got 0"),
    "too many": (
        {"label_counts": [10_000]},
        "label_counts needs at most the 1257 training rows of 'digits', got 10000",
    ),
    "no control": ({"control": "off", "label_counts": [9]}, "label_counts needs a control to compare with"),
    "counts": ({"label_counts": [0]}, r"needs a list of numbers of rows, got \[0\]"),
    "seed": ({"seed": -1}, "seed needs a whole number"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(case: str, base: Base, config: dict[str, Any]) -> None:
    changes, message = WRONG[case]
    with pytest.raises(ConfigError, match=message):
        orders.Start(base).order(config | changes)
    del config["head"]
    with pytest.raises(ConfigError, match=r"lacking \['head'\]"):
        orders.Start(base).order(config)


def test_texts_need_a_base_that_reads(make_base: Make, config: dict[str, Any]) -> None:
    reader = make_base("family=transformer", "data=pydoc_topics", "family.width=8", "family.num_heads=2", shape=(16,))
    with pytest.raises(MismatchError, match=r"cannot take digits \(image\): tokens are of texts alone"):
        orders.Start(reader).order(config)


def test_a_run_of_train_is_not_gone_on_with() -> None:
    with pytest.raises(ConfigError, match="neurofleet train resume=ID"):
        orders.resumed(experiments.compose(["data=wine"]))
