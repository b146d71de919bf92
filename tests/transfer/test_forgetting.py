"""What the base's own head says on the encoder as it came, and as it was left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from neurofleet import experiment as experiments
from neurofleet.data import ParquetDataModule
from neurofleet.transfer import forgetting
from neurofleet.transfer.base import Base

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def base(make_base: Make) -> Base:
    made: Base = make_base("family=mlp", "data=wine", "family.hidden=[8]")
    return made


def told(experiment: dict[str, Any], family: Any) -> Any:
    data: ParquetDataModule = experiments.build_data(experiment)
    return forgetting.predictions(experiment, data.spec, family.state_dict())


def test_an_encoder_that_stayed_has_forgotten_nothing(base: Base, finetuning: Make, begun: Make) -> None:
    experiment = finetuning(base, "data=wine")
    family = begun(experiment, torch.float32)
    spec, before, after = told(experiment, family)
    assert spec == base.spec
    assert torch.equal(before.outputs, after.outputs)
    rows = experiments.build_data(experiment).rows("test")
    whole = experiments.build_family({"family": base.encoder, "seed": 0}, base.spec)
    whole.load_state_dict(dict(base.weights))
    torch.testing.assert_close(before.outputs, whole(rows.inputs), rtol=1e-5, atol=1e-5)
    assert torch.equal(before.targets, rows.targets)


def test_one_that_moved_answers_otherwise_by_the_old_head(base: Base, finetuning: Make, begun: Make) -> None:
    experiment = finetuning(base, "data=wine")
    family = begun(experiment, torch.float32)
    with torch.no_grad():
        for one in family.encoder.parameters():
            one.zero_()
    _, before, after = told(experiment, family)
    assert not torch.equal(before.outputs, after.outputs)
    expected = base.weights["readout.bias"].expand(len(after.outputs), 3)
    torch.testing.assert_close(after.outputs, expected, rtol=1e-6, atol=1e-6)  # of features that are all zero


def test_what_cannot_be_asked_is_left_out(make_base: Make, finetuning: Make, begun: Make) -> None:
    unsupervised = make_base("family=autoencoder", "data=wine")
    headless = make_base("family=mlp", "data=wine", "family.hidden=[8]")
    weights = {name: one for name, one in headless.weights.items() if not name.startswith("readout")}
    others = make_base("family=mlp", "data=wine", "family.hidden=[8]", source="elsewhere")
    divided = make_base("family=mlp", "data=wine", "family.hidden=[8]", "data.split=1")
    without = Base(uri="made", name="made", encoder=headless.encoder, spec=headless.spec, weights=weights)
    for base in (unsupervised, without, others, divided):
        experiment = finetuning(base, "data=wine")
        assert told(experiment, begun(experiment, torch.float32)) is None, base
