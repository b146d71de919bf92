"""Small bases, and fine-tunings that start from them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from neurofleet import counter
from neurofleet import experiment as experiments
from neurofleet.families._base import Family
from neurofleet.transfer import base as bases
from neurofleet.transfer.base import Base

PLAIN: dict[str, Any] = {
    "random_start": False,
    "strict": True,
    "statistics": "base",
    "method": "full",
    "share": 0.0,
    "layer_decay": 1.0,
    "rank": 2,
    "l2_sp": 0.0,
    "mixup": 0.0,
    "hidden": [],
    "dropout": 0.0,
    "label_smoothing": 0.0,
    "augmentation": {"degrees": 0.0, "scale": 0.0, "translation": 0.0},
}
TRAINING = ["trainer.precision=64-true", "trainer.num_threads=1", "trainer.accelerator=cpu"]
TRAINING += ["trainer.checkpoint.every_n_minutes=null", "trainer.checkpoint.keep_last=1000"]


@pytest.fixture(scope="session")
def make_base() -> Callable[..., Base]:
    def make(*overrides: str, **spec: Any) -> Base:
        """An untrained network of `family=... data=...`, moved a little, so that nothing in it is zero."""
        experiment = experiments.compose(list(overrides))
        found = dataclasses.replace(experiments.build_data(experiment).spec, **spec)
        network = experiments.build_family(experiment, found)
        weights = {}
        for number, (name, tensor) in enumerate(network.state_dict().items()):
            rows = torch.arange(tensor.numel(), dtype=torch.int32)
            noise = counter.normal(number, rows, ()).view(tensor.shape) * 0.02
            weights[name] = tensor + noise if tensor.is_floating_point() else tensor
        return Base(uri="made", name="made", encoder=experiment["family"], spec=found, weights=weights)

    return make


@pytest.fixture(scope="session")
def finetuning() -> Callable[..., dict[str, Any]]:
    def make(base: Base, *overrides: str, **family: Any) -> dict[str, Any]:
        """An experiment on the data of `overrides`; `family` are settings of Finetuned."""
        experiment = experiments.compose(["optimizer=adamw", *TRAINING, *overrides])
        made = {
            "_target_": "neurofleet.transfer.finetuned.Finetuned",
            "encoder": copy.deepcopy(dict(base.encoder)),
            "encoder_spec": base.spec.to_dict() | {"vocabulary": []},
            "base": {"uri": base.uri, "sha256": bases.keep(base)},
        }
        experiment["family"] = listed(made | PLAIN | family)
        return experiment

    return make


@pytest.fixture(scope="session")
def begun() -> Callable[..., Family]:
    def make(experiment: dict[str, Any], dtype: torch.dtype = torch.float64) -> Family:
        """The family as a run has it before its first step, but for what is settled."""
        data = experiments.build_data(experiment)
        family = experiments.build_family(experiment, data.spec).to(dtype)
        family.begin(experiment["seed"])
        family.recipe = experiments.build_recipe(experiment, num_steps=100, log_every_n_steps=1, gradient_clip_val=None)
        family.start(tuple(one.to(dtype) if one.is_floating_point() else one for one in data.rows("train")))
        return family

    return make


def listed(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: listed(value) for key, value in node.items()}
    return [listed(one) for one in node] if isinstance(node, list | tuple) else node
