"""Floats in which the trials of a stack differ reach each trial, and only that trial."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from neurofleet import experiment as experiments
from neurofleet.families.mlp import MLP
from neurofleet.run import plan
from neurofleet.study.cohort import Trial
from neurofleet.study.fused import Stack
from neurofleet.study.settings import NotStackableError, differing, in_place, owners
from neurofleet.study.single import Single
from neurofleet.study.stacking import cohorts

COMMON = ["family=mlp", "family.hidden=[8]", "trainer.max_epochs=2", "trainer.precision=64-true"]
COMMON += ["trainer.num_threads=1", "data.batch_size=50", "seed=3"]


def trials(data: str, values: Sequence[dict[str, Any]], family: str = "mlp") -> list[Trial]:
    """By changes to the family."""
    base = experiments.compose([*COMMON, f"data={data}"])
    if family != "mlp":
        base = experiments.compose([f"family={family}", *COMMON[2:], f"data={data}"])
    made, rows = list[Trial](), None
    for number, changes in enumerate(values):
        own: Any = copy.deepcopy(base)
        own["family"] |= changes
        planned = plan(own, rows)
        rows = planned.data
        made.append(Trial(number, planned))
    return made


AUGMENTATIONS = [{"degrees": 30.0 * i, "scale": 0.1 * i, "translation": 0.05 * i} for i in range(3)]
DIFFERING: dict[str, tuple[str, str, list[dict[str, Any]]]] = {
    "dropout": ("wine", "mlp", [{"dropout": rate} for rate in (0, 0.2, 0.5)]),  # one of them whole
    "label smoothing": ("wine", "mlp", [{"label_smoothing": rate} for rate in (0.0, 0.1, 0.3)]),
    "both": ("wine", "mlp", [{"dropout": 0.1 * i, "label_smoothing": 0.1 * (2 - i)} for i in range(3)]),
    "augmentation": ("digits", "mlp", [{"augmentation": one} for one in AUGMENTATIONS]),
    "weight of a term": (
        "wine",
        "autoencoder",
        [{"variant": "variational", "kl_weight": one} for one in (0.1, 1.0, 4.0)],
    ),
}


@pytest.mark.parametrize("name", DIFFERING)
def test_settings_that_differ_are_each_trials_own(name: str, to_the_end: Any) -> None:
    data, family, values = DIFFERING[name]
    wanted = frozenset({"val/loss"})
    said: list[str] = []
    made = cohorts(trials(data, values, family), wanted=wanted, fuse="stack", max_stack=8, say=said.append)
    assert [type(cohort) for cohort in made] == [Stack], said
    stacked = to_the_end(made[0])
    alone = [one for trial in trials(data, values, family) for one in to_the_end(Single(trial, wanted))]
    for mine, other in zip(stacked, alone, strict=True):
        states = mine.plan.family.state_dict(), other.plan.family.state_dict()
        for key in states[1]:
            torch.testing.assert_close(states[0][key], states[1][key], rtol=1e-11, atol=1e-12)
        assert mine.verdict == pytest.approx(other.verdict, rel=1e-9, abs=1e-10)
    first, last = (trial.plan.family.state_dict() for trial in (alone[0], alone[-1]))
    assert any(not torch.equal(first[key], last[key]) for key in first), "the setting has to matter"


def test_what_differs_is_found_where_it_is_kept() -> None:
    families = [trial.plan.family for trial in trials("wine", [{"dropout": 0.1}, {"dropout": 0.4}])]
    found = differing(families)
    assert len(found) == 1
    [(place, name)] = found
    assert dict(owners(families[0]))[place] is families[0].get_submodule(place)
    assert [vars(family.get_submodule(place))[name] for family in families] == [0.1, 0.4]
    assert found[place, name].tolist() == [0.1, 0.4]


def test_what_is_put_in_place_is_taken_back_whatever_happens() -> None:
    [family] = (trial.plan.family for trial in trials("wine", [{"dropout": 0.1}]))
    [(place, name)] = differing([family, trials("wine", [{"dropout": 0.4}])[0].plan.family])
    kept = dict(owners(family))
    stopped = False
    try:
        with in_place(kept, {(place, name): "a tensor"}):
            assert vars(kept[place])[name] == "a tensor"
            raise RuntimeError("torch says no")
    except RuntimeError:
        stopped = True
    assert stopped
    assert vars(kept[place])[name] == 0.1


def test_nothing_differs_among_equals() -> None:
    assert differing([trial.plan.family for trial in trials("wine", [{"dropout": 0.1}] * 2)]) == {}


def test_networks_of_other_parts_are_told_apart() -> None:
    families = [trial.plan.family for trial in trials("wine", [{"hidden": [8]}, {"hidden": [8, 8]}])]
    with pytest.raises(NotStackableError, match="different parts"):
        differing(families)


def test_a_rule_that_changes_towards_the_end_is_compared_there(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = MLP.objective

    def changing(family: MLP, batch: Any, context: Any) -> Any:
        made = objective(family, batch, context)
        in_a_stack = torch._C._functorch.maybe_current_level() is not None
        return dataclasses.replace(made, loss=made.loss * (1.5 if context.progress > 0.5 and in_a_stack else 1.0))

    monkeypatch.setattr(MLP, "objective", changing)
    said: list[str] = []
    made = cohorts(
        trials("wine", [{"dropout": 0.1}] * 2), wanted=frozenset(), fuse="stack", max_stack=8, say=said.append
    )
    assert [type(one) for one in made] == [Single, Single]
    assert "does not reach every trial" in said[0]
