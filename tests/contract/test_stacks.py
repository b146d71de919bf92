"""What a stack promises for every family that takes rows: each of its trials is the trial that it would be alone.

Alone is `Single`, which takes the very steps of `neurofleet.run`; that too is compared.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from neurofleet import checkpoint, paths
from neurofleet import experiment as experiments
from neurofleet.data.parquet import ParquetDataModule, Rows
from neurofleet.run import plan, run
from neurofleet.spec import DataSpec
from neurofleet.study import fused
from neurofleet.study.cohort import Row, Trial
from neurofleet.study.fused import Stack
from neurofleet.study.settings import NotStackableError
from neurofleet.study.single import Single
from neurofleet.study.stacking import check, cohorts

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
AGENTS = {"dqn", "ppo"}  # each acts in an environment of its own
A_KIND_EACH = ("digits", "wine", "italy_power_demand", "food_reviews", "movielens")
COMMON = ["trainer.precision=64-true", "trainer.max_epochs=3", "trainer.num_threads=1", "trainer.accelerator=cpu"]
COMMON += ["trainer.log_every_n_steps=2", "data.batch_size=10"]
NUM_ROWS = {"train": 24, "val": 12, "test": 12}  # three steps an epoch, the last a small one
NUM_TOKENS = 32
# Where a gradient is nothing but rounding, Adam makes whole steps of it; these begin where there is little to learn.
AT_ITS_OPTIMUM = {"rbf": ["optimizer=sgd", "optimizer.lr=1e-3"]}
SMALL = {
    "autoencoder": ["family.hidden=[16]"],
    "capsule": ["family.channels=[4,8]", "family.primary_types=2", "family.decoder=[16]"],
    "cnn": ["family.channels=[4,8]", "family.hidden=16"],
    "dbn": ["family.hidden=[16,8]"],
    "gan": ["family.noise=8", "family.hidden=[16]", "family.channels=[4,8]"],
    "rbf": ["family.centres=12"],
    "rnn": ["family.hidden=8", "family.embedding=8"],
    "som": ["family.rows=4", "family.columns=4"],
    "spiking": ["family.hidden=[16]", "family.num_steps=4"],
    "transformer": ["family.width=16", "family.num_layers=1", "family.ngram_buckets=64"],
}
LOOK_AT_VALUES = {"dbn", "gan"}  # phases by how far training is, and by masks
# Ways to learn that differ in what is random, in what is kept beside the weights, or in what is measured.
VARIANTS = {
    "autoencoder-denoising": ["data=digits", "family.variant=denoising"],
    "autoencoder-variational": ["data=digits", "family.variant=variational"],
    "dbn-persistent": ["data=digits", "family.num_chains=6"],
    "gan-wasserstein": ["data=digits", "family.loss=wasserstein", "family.penalty_every=2"],
    "mlp-dropout": ["data=diabetes", "family.dropout=0.3"],
    "mlp-augmented": ["data=digits", "family.augmentation={degrees: 20.0, scale: 0.1, translation: 0.1}"],
    "mlp-labels": ["data=multimnist", "family.hidden=[8]"],
    "siamese-faces": ["data=orl_faces"],
    "siamese-views": [
        *("data=digits", "family.pairs=views", "family.loss=ntxent", "family.erasing=0.3"),
        "family.encoder.augmentation={degrees: 20.0, scale: 0.1, translation: 0.1}",
    ],
    "spiking-rate": ["data=digits", "family.coding=rate"],
    "transformer-language": ["data=pydoc_topics"],
}


def fitting() -> dict[str, list[str]]:
    found = {}
    for path in sorted((CONFIGS / "family").glob("*.yaml")):
        for data in A_KIND_EACH:
            spec = DataSpec.load(paths.data() / data / "spec.json")
            if path.stem in experiments.fitting_families(spec):
                found[f"{path.stem}-{data}"] = [f"data={data}"]
    return found


CASES = fitting() | VARIANTS
pytestmark = pytest.mark.filterwarnings("ignore:No positive samples found in target")  # a dozen rows lack some label


class FewRows(ParquetDataModule):
    """The first rows of a dataset, and of texts their beginnings."""

    def __init__(self, experiment: dict[str, Any]) -> None:
        super().__init__(**{name: value for name, value in experiment["data"].items() if name != "_target_"})
        self._rows = {stage: Rows(*(one[:size] for one in self.rows(stage))) for stage, size in NUM_ROWS.items()}
        if self.spec.kind == "text":
            self.spec = dataclasses.replace(self.spec, shape=(NUM_TOKENS,))
            self._rows = {stage: Rows(inputs[:, :NUM_TOKENS], rest) for stage, (inputs, rest) in self._rows.items()}
        if self.spec.task == "language":  # the place from which a text is scored has to be within
            self._rows = {stage: Rows(one.inputs, one.targets.clamp(max=9)) for stage, one in self._rows.items()}


@functools.cache
def prepared(case: str) -> tuple[dict[str, Any], FewRows]:
    family = case.split("-")[0]
    own = [*SMALL.get(family, []), *AT_ITS_OPTIMUM.get(family, []), *CASES[case]]
    experiment = experiments.compose([f"family={family}", *COMMON, *own])
    return experiment, FewRows(experiment)


def trials(case: str, **trainer: Any) -> list[Trial]:
    """Three that differ in the seed, the learning rate and the decay of weights."""
    experiment, data = prepared(case)
    made = []
    for number in range(3):
        own: Any = copy.deepcopy(experiment)
        own["seed"] = 5 + number
        own["optimizer"]["lr"] *= 1 + number / 2
        own["optimizer"]["weight_decay"] = 0.01 * number
        own["trainer"] |= trainer
        made.append(Trial(number, plan(own, data)))
    return made


@pytest.fixture
def alone(to_the_end: Any) -> Callable[[Sequence[Trial], frozenset[str]], list[Trial]]:
    return lambda trials, wanted: [one for trial in trials for one in to_the_end(Single(trial, wanted))]


def distance(left: Trial, right: Trial) -> float:
    """Of the weights, relative to the largest."""
    states = left.plan.family.state_dict(), right.plan.family.state_dict()
    assert set(states[0]) == set(states[1])
    apart = max(float((states[0][name].double() - states[1][name].double()).abs().max()) for name in states[0])
    return apart / max(float(one.double().abs().max()) for one in states[1].values())


def assert_same(stacked: Trial, single: Trial) -> None:
    assert (stacked.number, stacked.ended, stacked.failure) == (single.number, single.ended, single.failure)
    assert distance(stacked, single) < 1e-12
    assert set(stacked.verdict) == set(single.verdict)
    assert_same_scores(stacked.verdict, single.verdict)
    assert [(step, epoch) for step, epoch, _ in stacked.points] == [(step, epoch) for step, epoch, _ in single.points]
    for (_, _, row), (_, _, other) in zip(stacked.points, single.points, strict=True):
        assert {"train/loss", "val/loss"} & set(row) & set(other)
        assert_same_scores(row, other)


def assert_same_scores(mine: Row, theirs: Row) -> None:
    """Of those in both: a stack leaves out some that nobody asked for.  Counts are averaged in 32 bits."""
    for name in set(mine) & set(theirs):
        exact = name.split("/")[-1] in ("loss", "loss_epoch", "step", "epoch")
        assert mine[name] == pytest.approx(theirs[name], rel=1e-9 if exact else 1e-6, abs=1e-10), name


def assert_quick_scores(stack: Stack) -> None:
    """They are what an evaluation says."""
    names = {f"val/{name}" for name in stack.trials[0].plan.family.quick_scores}
    for place, quick in enumerate(stack._quick_scores()):
        whole = stack._scores(place)
        assert set(quick) == names
        assert names <= set(whole)
        assert_same_scores(quick, whole)


@pytest.fixture(autouse=True)
def _tape_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """These trials are over before a tape repays."""
    monkeypatch.setattr(fused, "BEFORE_TAPE", 0)


@pytest.mark.parametrize("case", CASES)
def test_survivors_of_a_halving_are_the_trials_that_they_are_alone(case: str, to_the_end: Any, alone: Any) -> None:
    wanted = frozenset({"val/loss"})
    together = trials(case)
    started = copy.deepcopy(together[0].plan.family.state_dict())
    stack = Stack(together, wanted)
    check(stack)
    assert stack.round(lambda num_steps: None) == []
    assert_quick_scores(stack)
    assert (stack._tapes is None) == (case.split("-")[0] in LOOK_AT_VALUES)
    [gone] = stack.drop({1})
    survivors = to_the_end(stack)
    assert [trial.number for trial in survivors] == [0, 2]
    singles = alone(trials(case), wanted)
    [row] = gone.history
    assert "val/loss" in row
    assert_same_scores(row, singles[1].history[0])
    for survivor in survivors:
        assert_same(survivor, singles[survivor.number])
    moved = together[0].plan.family.state_dict()
    assert any(not torch.equal(moved[name], started[name]) for name in started), "nothing was learnt"


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_half_as_many_digits_change_metrics_by_little(case: str, to_the_end: Any, alone: Any) -> None:
    wanted = frozenset({"val/loss"})
    stacked = to_the_end(Stack(trials(case, precision="32-true"), wanted))
    for one, single in zip(stacked, alone(trials(case, precision="32-true"), wanted), strict=True):
        assert one.verdict == pytest.approx(single.verdict, rel=1e-4, abs=1e-4)


EARLY = "{monitor: val/loss, mode: min, patience: 1, min_delta: 0.0, restore_best: true}"
LAST = "{monitor: val/loss, mode: min, patience: 1, min_delta: 0.0, restore_best: false}"
WAYS = {
    "mlp-clipped": ["family=mlp", "data=wine", "trainer.gradient_clip_val=0.5", "schedule=cosine", "optimizer.lr=0.05"],
    "gan-warmed": ["family=gan", "data=wine", "schedule=linear", "schedule.warmup=0.4", "optimizer.lr=0.003"],
    "mlp-best": ["family=mlp", "data=wine", f"+trainer.early_stopping={EARLY}", "trainer.max_epochs=30"],
    "mlp-stopped": ["family=mlp", "data=wine", f"+trainer.early_stopping={LAST}", "trainer.max_epochs=30"],
}


@pytest.mark.parametrize("way", WAYS)
def test_a_stack_ends_with_the_weights_that_runs_leave(way: str, tmp_path: Path, to_the_end: Any) -> None:
    made = []
    for number in range(3):
        overrides = [*COMMON, "data.batch_size=50", *WAYS[way], f"seed={number}"]
        own: Any = experiments.compose(overrides)
        if own["trainer"]["early_stopping"] is not None:
            own["optimizer"]["lr"] = 0.1 * (1 + number)  # so that it gets worse, at times of its own
        made.append(Trial(number, plan(own)))
    [stack] = cohorts(made, wanted=frozenset({"val/loss"}), fuse="stack", max_stack=8, say=print)
    ended = to_the_end(stack)
    for trial in ended:
        result = run(trial.plan.experiment, folder=tmp_path / str(trial.number))
        left = checkpoint.decode((result.folder / "weights.safetensors").read_bytes())[0]
        mine = trial.plan.family.state_dict()
        assert max(float((mine[name].double() - left[name].double()).abs().max()) for name in left) < 1e-12
        val = {name: value for name, value in result.metrics.items() if name.startswith("val/")}
        assert set(val) == {name for name in trial.verdict if name.startswith("val/")}
        assert_same_scores(trial.verdict, val)
        assert trial.history[-1]["step"] == result.num_steps
    if "early_stopping" in str(WAYS[way]):
        lengths = [trial.history[-1]["epoch"] for trial in ended]
        assert min(lengths) < 30, "none stopped early"
        assert len(set(lengths)) > 1, "all stopped together"


def test_every_family_stacks_or_says_why() -> None:
    families = {path.stem for path in (CONFIGS / "family").glob("*.yaml")}
    assert {case.split("-")[0] for case in CASES} == families - AGENTS
    said: list[str] = []
    experiment = experiments.compose(["family=ppo", "data=env/cartpole", "trainer.num_threads=1"])
    made = [Trial(number, plan(experiment | {"seed": number})) for number in range(2)]
    one_by_one = cohorts(made, wanted=frozenset(), fuse="auto", max_stack=8, say=said.append)
    assert [type(cohort) for cohort in one_by_one] == [Single, Single]
    assert said == ["2 trials one after another: agents act, each in an environment of its own"]
    for trial in made:
        trial.plan.supply.close()


def test_networks_of_other_sizes_do_not_stack() -> None:
    experiment, data = prepared("mlp-digits")
    made = []
    for number, hidden in enumerate(([8], [9])):
        own: Any = copy.deepcopy(experiment)
        own["family"]["hidden"] = hidden
        made.append(Trial(number, plan(own, data)))
    with pytest.raises(NotStackableError, match="other sizes"):
        Stack(made, frozenset())
