"""A new task on an encoder: what learns, when, and at which rate; and what a run of it leaves."""

from __future__ import annotations

import copy
import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from neurofleet import checkpoint, supply
from neurofleet import experiment as experiments
from neurofleet.errors import ConfigError, MismatchError
from neurofleet.families._base import Family
from neurofleet.run import plan, run
from neurofleet.steps import Context, run_chunk
from neurofleet.transfer import base as bases
from neurofleet.transfer.base import Base
from neurofleet.transfer.encoders import Unfilled
from neurofleet.transfer.finetuned import Finetuned

ROOT = Path(__file__).resolve().parents[2]
Make = Callable[..., Any]
CNN = ("family=cnn", "data=digits", "family.channels=[4,6]", "family.hidden=8", "family.dropout=0.2")
DEEP = ("family=mlp", "data=digits", "family.hidden=[12,10,8]")
NEW = ("data=digits", "data.train_rows=60", "data.batch_size=20", "trainer.max_epochs=4", "optimizer.lr=0.01")
NEW += ("optimizer.weight_decay=0.1",)


@pytest.fixture(scope="module")
def cnn(make_base: Make) -> Base:
    return make_base(*CNN)


@pytest.fixture(scope="module")
def deep(make_base: Make) -> Base:
    return make_base(*DEEP)


def context(num_rows: int, *, step: int = 0, progress: float = 0.0, training: bool = True, seed: int = 0) -> Context:
    return Context(seed, step, progress, torch.arange(num_rows, dtype=torch.int32), training, measure=True)


def batch(experiment: dict[str, Any], num_rows: int = 12) -> tuple[Tensor, Tensor]:
    inputs, targets = experiments.build_data(experiment).rows("train")
    inputs, targets = inputs[:num_rows], targets[:num_rows]
    return (inputs.double() if inputs.is_floating_point() else inputs), (
        targets.double() if targets.is_floating_point() else targets
    )


def weights(folder: Path) -> dict[str, Tensor]:
    return checkpoint.decode((folder / "weights.safetensors").read_bytes())[0]


def distance(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    assert set(left) == set(right)
    return max(float((left[name].double() - right[name].double()).abs().max()) for name in left)


def encoder_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("encoder."): one for name, one in state.items() if name.startswith("encoder.")}


# Where it starts.


def test_it_begins_with_the_bases_weights_and_a_new_head(cnn: Base, finetuning: Make, begun: Make) -> None:
    experiment = finetuning(cnn, *NEW)
    family = begun(experiment)
    kept, dropped, new = family.origins()
    assert all(torch.equal(one.float(), cnn.weights[name]) for name, one in encoder_of(kept).items())
    assert {name.removeprefix("encoder.") for name in dropped} | set(encoder_of(kept)) == set(cnn.weights)
    assert set(new) == {"readout.weight", "readout.bias"}
    other = begun(finetuning(cnn, *NEW, "seed=1"))
    assert not torch.equal(other.readout.weight, family.readout.weight)
    assert distance(encoder_of(family.state_dict()), encoder_of(other.state_dict())) == 0


def test_a_random_start_is_the_same_architecture(cnn: Base, finetuning: Make, begun: Make) -> None:
    family, control = begun(finetuning(cnn, *NEW)), begun(finetuning(cnn, *NEW, random_start=True))
    mine, theirs = family.state_dict(), control.state_dict()
    assert {name: one.shape for name, one in mine.items()} == {name: one.shape for name, one in theirs.items()}
    assert distance(encoder_of(mine), encoder_of(theirs)) > 0.01
    assert torch.equal(mine["readout.weight"], theirs["readout.weight"])
    kept, _, new = control.origins()
    assert (kept, set(new)) == ({}, set(theirs))


def test_weights_that_do_not_belong_are_refused(cnn: Base, finetuning: Make, begun: Make) -> None:
    name = next(name for name in cnn.weights if name.endswith("weight"))
    lacking = {key: value for key, value in cnn.weights.items() if key != name}
    for wrong in (lacking, cnn.weights | {"more": torch.zeros(1)}, cnn.weights | {name: torch.zeros(1)}):
        experiment = finetuning(dataclasses.replace(cnn, weights=wrong), *NEW)
        with pytest.raises(ConfigError, match=r"(?s)needs the weights of its own network.*(missing|extra|misfit)"):
            begun(experiment)


SETTINGS = {
    "layer_decay": ({"layer_decay": 0.0}, "0 < layer_decay <= 1"),
    "rank": ({"rank": 0}, "rank needs at least 1"),
    "hidden": ({"hidden": [0]}, "hidden needs numbers of at least 1"),
    "l2_sp": ({"l2_sp": -1.0}, "l2_sp needs a number of at least 0"),
    "mixup": ({"mixup": 0.6}, "0 <= mixup <= 0.5"),
    "share": ({"share": 1.0}, "0 <= share < 1"),
    "method": ({"method": "froze"}, "'froze'; did you mean frozen"),
    "statistics": ({"statistics": "mine"}, "one of data, base, got 'mine'"),
    "frozen": ({"method": "frozen", "layer_decay": 0.5}, "a method that moves the encoder's weights, got frozen"),
    "adapted": ({"method": "lora", "l2_sp": 0.1}, "a method that moves the encoder's weights, got lora"),
    "held": ({"random_start": True, "l2_sp": 0.1}, "got 0.1 with a random start"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_a_wrong_setting_is_named(case: str, cnn: Base, finetuning: Make) -> None:
    settings, message = SETTINGS[case]
    experiment = finetuning(cnn, *NEW, **settings)
    with pytest.raises(ConfigError, match=message):
        experiments.build_family(experiment, cnn.spec)


def test_data_that_the_base_cannot_take(cnn: Base, finetuning: Make) -> None:
    with pytest.raises(MismatchError, match=r"no bridge leads from tabular to image"):
        plan(finetuning(cnn, "data=wine"))


# Every family.

ENCODERS = {
    "autoencoder": "digits",
    "capsule": "digits",
    "cnn": "digits",
    "dbn": "digits",
    "gan": "wine",
    "mlp": "movielens",
    "rbf": "wine",
    "rnn": "japanese_vowels",
    "siamese": "digits",
    "som": "wine",
    "spiking": "digits",
    "transformer": "food_reviews",
}


@pytest.mark.parametrize("family", ENCODERS)
def test_a_head_and_an_encoder_of_any_family_learn_one_batch(
    family: str, make_base: Make, finetuning: Make, begun: Make
) -> None:
    base = make_base(f"family={family}", f"data={ENCODERS[family]}")
    experiment = finetuning(base, f"data={ENCODERS[family]}", method="full")
    network, rows = begun(experiment), batch(experiment)
    first = network.objective(rows, context(12)).loss.item()
    optimizer = torch.optim.Adam([one for one in network.parameters() if one.requires_grad], lr=3e-3)
    for _ in range(10):
        network.objective(rows, context(12)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert network.objective(rows, context(12)).loss.item() < 0.99 * first
    assert network.blocks or family in ("som",), "nothing of the encoder learns"


def test_an_encoder_without_parameters_has_a_head_alone(make_base: Make, finetuning: Make, begun: Make) -> None:
    base = make_base("family=mlp", "data=wine", "family.hidden=[]")
    for method in ("full", "frozen", "gradual"):
        family = begun(finetuning(base, "data=wine", method=method))
        assert (family.blocks, family.readout.in_features) == ([], 13)


# What learns, and when.


def test_frozen_never_moves_the_encoder_and_settled_features_are_those_of_each_step(
    cnn: Base, finetuning: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = finetuning(cnn, *NEW, method="frozen", mixup=0.3, hidden=[5], dropout=0.1)
    settled = run(experiment, folder=tmp_path / "settled")
    assert distance(encoder_of(weights(settled.folder)), encoder_of_base(cnn, settled.folder)) < 1e-7
    monkeypatch.setattr(Finetuned, "settled_key", None)
    plain = run(experiment, folder=tmp_path / "plain")
    assert distance(weights(settled.folder), weights(plain.folder)) < 1e-12
    assert settled.metrics == pytest.approx(plain.metrics, rel=1e-6)


def encoder_of_base(base: Base, folder: Path) -> dict[str, Tensor]:
    return {name: base.weights[name] for name in encoder_of(weights(folder))}


def test_features_are_computed_once_for_all_trials_and_one_encoder_is_kept(
    cnn: Base, finetuning: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    settle = Finetuned.settle
    monkeypatch.setattr(Finetuned, "settle", lambda self, inputs: (asked.append(len(inputs)), settle(self, inputs))[1])
    made = [finetuning(cnn, *NEW, f"seed={seed}", method="frozen") for seed in range(3)]
    data = experiments.build_data(made[0])
    plans = [plan(one, data) for one in made]
    for one in plans:
        rows = one.supply.tensors("train", torch.device("cpu"))  # type: ignore[attr-defined]
        assert rows[0].shape == (60, one.family.readout.in_features)  # type: ignore[union-attr]
        assert {name.split(".")[0] for name in one.family.state_dict()} == {"readout"}
    assert sum(asked) == 60
    assert max(asked) <= supply.SETTLED_ROWS
    assert len({id(one.family._features[0]) for one in plans}) == 1  # type: ignore[union-attr]
    keys = {one.family.settled_key for one in plans}
    others = [
        finetuning(cnn, *NEW, method="frozen", statistics="data"),
        finetuning(cnn, *NEW, method="frozen", random_start=True),
        finetuning(cnn, *NEW, "trainer.precision=32-true", method="frozen"),
    ]
    keys |= {plan(one, data).family.settled_key for one in others}
    assert len(keys) == 4
    distorted = finetuning(cnn, *NEW, method="frozen", augmentation={"degrees": 9.0, "scale": 0.0, "translation": 0.0})
    assert plan(distorted, data).family.settled_key is None  # it sees other images at every step


def test_each_worker_computes_its_share_of_the_features(
    cnn: Base, finetuning: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = finetuning(cnn, *NEW, "data.train_rows=200", method="frozen")
    cpu = torch.device("cpu")
    whole = plan(experiment).supply.tensors("train", cpu)[0]  # type: ignore[attr-defined]
    asked: list[int] = []
    settle = Finetuned.settle
    monkeypatch.setattr(Finetuned, "settle", lambda self, inputs: (asked.append(len(inputs)), settle(self, inputs))[1])
    shares: dict[int, dict[int, Tensor]] = {}
    for rank in (1, 0):
        mine = plan(experiment).supply
        monkeypatch.setattr(
            supply, "_together", lambda parts, world_size, rank=rank: shares.setdefault(rank, parts) and parts
        )
        mine.settle(cpu, lambda *_: None, rank=rank, world_size=2)
        if rank == 1:
            assert asked[:2] == [64, 8]  # of 64, 64, 64, 8
    assert sorted([*shares[0], *shares[1]]) == [0, 64, 128, 192]
    together = shares[0] | shares[1]
    assert torch.equal(torch.cat([together[begin] for begin in sorted(together)]), whole)


def test_the_head_begins_alike_with_a_base_and_from_a_random_start(cnn: Base, finetuning: Make, begun: Make) -> None:
    heads = [
        {name: one for name, one in begun(finetuning(cnn, *NEW, **settings)).state_dict().items() if "readout" in name}
        for settings in ({"method": "full"}, {"method": "full", "random_start": True}, {"method": "frozen"})
    ]
    assert [sorted(head) for head in heads] == [["readout.bias", "readout.weight"]] * 3
    assert all(distance(head, heads[0]) == 0 for head in heads)
    assert heads[0]["readout.weight"].std() > 0


def test_a_network_whose_weights_are_put_in_afterwards_is_not_initialised_first() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with Unfilled():
        norm, layer = torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 3)
        torch.nn.init.kaiming_normal_(layer.weight)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(norm.running_var, torch.ones(4))  # type: ignore[arg-type]  # statistics are no weights
    assert torch.nn.Linear(4, 3).weight.std() > 0
    assert not torch.equal(torch.get_rng_state(), before)
    assert layer.weight.shape == (3, 4)


def moves(before: dict[str, Tensor], family: Family) -> set[str]:
    return {name for name, one in family.named_parameters() if not torch.equal(before[name], one)}


def step(family: Family, rows: tuple[Tensor, ...], optimizer: torch.optim.Optimizer, progress: float) -> set[str]:
    """The names of what a step moves."""
    before = {name: one.detach().clone() for name, one in family.named_parameters()}
    family.objective(rows, context(len(rows[0]), progress=progress)).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return moves(before, family)


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
@pytest.mark.parametrize("method", ["gradual", "probe_then_full", "full"])
def test_what_waits_for_its_turn_does_not_move_at_all(
    method: str, layer_decay: float, deep: Base, finetuning: Make, begun: Make
) -> None:
    experiment = finetuning(deep, *NEW, method=method, share=0.6, layer_decay=layer_decay)
    family, rows = begun(experiment), batch(experiment)
    head = {"readout.weight", "readout.bias"}
    layers = [[f"layers.{index}.{part}" for part in ("weight", "bias")] for index in range(3)]
    has_order = method == "gradual" or layer_decay != 1
    assert family.blocks == (layers if has_order else [[name for layer in layers for name in layer]])
    bottom, middle, top = ({f"encoder.{name}" for name in layer} for layer in layers)
    optimizer = family.make_optimizer()  # whose decay moves all that has a gradient
    turns = {0.0: head, 0.25: head | top, 0.45: head | top | middle, 0.65: head | top | middle | bottom}
    if method == "probe_then_full":
        turns |= {0.25: head, 0.45: head}
    for progress, expected in turns.items():
        expected = set(turns[0.65]) if method == "full" else expected
        assert step(family, rows, optimizer, progress) == expected, progress


def test_layers_have_rates_of_their_own_which_the_schedule_multiplies(
    deep: Base, finetuning: Make, tmp_path: Path
) -> None:
    schedule = ("schedule=linear", "optimizer=sgd", "optimizer.lr=0.1", "optimizer.nesterov=false")
    schedule += ("optimizer.weight_decay=0.0",)
    experiment = finetuning(deep, *NEW, *schedule, layer_decay=0.5, method="full")
    experiment["trainer"]["max_epochs"] = 2
    family = plan(experiment).family
    optimizer = family.make_optimizer()
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.05, 0.025, 0.0125]
    assert [group["initial_lr"] for group in optimizer.param_groups] == [0.1, 0.05, 0.025, 0.0125]
    names = {id(one): name for name, one in family.named_parameters()}
    grouped = [[names[id(one)] for one in group["params"]] for group in optimizer.param_groups]
    assert grouped[0] == ["readout.weight", "readout.bias"]
    assert grouped[1:] == [[f"encoder.{name}" for name in block] for block in reversed(family.blocks)]  # type: ignore[union-attr]
    # The first step of a run: each group's own rate times the schedule's factor times the gradient.
    planned = plan(experiment)
    loader = planned.supply.loader(
        torch.device("cpu"), seed=0, max_epochs=2, epochs_per_round=1, cut_every=1, rank=0, world_size=1
    )
    chunk = loader.chunk(0, 1)  # type: ignore[attr-defined]
    rows = next(iter(chunk.batches))
    planned.family.start(loader.tensors)
    before = {name: one.detach().clone() for name, one in planned.family.named_parameters()}
    where = Context(0, 0, 0.0, chunk.rows[0], True, measure=False)
    gradients = torch.autograd.grad(planned.family.objective(rows, where).loss, list(planned.family.parameters()))
    factor = planned.family.recipe.schedule(0.0)
    rates = {name: group["lr"] for group, names in zip(optimizer.param_groups, grouped, strict=True) for name in names}
    run_chunk(planned.family, chunk, planned.family.make_optimizer())
    for (name, one), gradient in zip(planned.family.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(one, before[name] - rates[name] * factor * gradient, rtol=1e-12, atol=1e-14)


def test_the_pull_to_the_start_has_the_gradient_of_half_a_square(deep: Base, finetuning: Make, begun: Make) -> None:
    held, free = (begun(finetuning(deep, *NEW, l2_sp=l2_sp)) for l2_sp in (0.3, 0.0))
    rows = batch(finetuning(deep, *NEW))
    assert held.objective(rows, context(12)).loss.item() == free.objective(rows, context(12)).loss.item()
    with torch.no_grad():
        for family in (held, free):
            for one in family.parameters():
                one.add_(0.01)
    losses = [family.objective(rows, context(12)).loss for family in (held, free)]
    count = sum(one.numel() for one in held.encoder.parameters())
    assert (losses[0] - losses[1]).item() == pytest.approx(0.5 * 0.3 * count * 0.01**2, rel=1e-9)
    gradients = [
        torch.autograd.grad(loss, list(family.parameters())) for loss, family in zip(losses, (held, free), strict=True)
    ]
    for (name, _), mine, plain in zip(held.named_parameters(), *gradients, strict=True):
        pull = 0.3 * 0.01 if name.startswith("encoder.") else 0.0
        torch.testing.assert_close(mine - plain, torch.full_like(plain, pull), rtol=0, atol=1e-12)
    evaluated = [family.objective(rows, context(12, training=False)).loss.item() for family in (held, free)]
    assert evaluated[0] == evaluated[1]  # held-out rows are scored by the task alone


# Mixup, and what is random.


def test_mixup_is_a_function_of_seed_step_and_row(cnn: Base, finetuning: Make, begun: Make) -> None:
    experiment = finetuning(cnn, *NEW, mixup=0.4, dropout=0.2, hidden=[6], label_smoothing=0.1)
    family, rows = begun(experiment), batch(experiment)
    generator, state = torch.random.get_rng_state(), copy.deepcopy(family.state_dict())
    whole = family.objective(rows, context(12, step=3))
    assert whole.loss.item() == family.objective(rows, context(12, step=3)).loss.item()
    assert whole.loss.item() != family.objective(rows, context(12, step=4)).loss.item()
    assert whole.loss.item() != family.objective(rows, context(12, step=3, seed=1)).loss.item()
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert distance(state, family.state_dict()) == 0
    parts = []  # as two workers share the batch
    for part in (slice(0, 5), slice(5, 12)):
        own = dataclasses.replace(context(12, step=3), rows=torch.arange(12, dtype=torch.int32)[part])
        parts.append(family.objective((rows[0][part], rows[1][part]), own).loss.item())
    assert (5 * parts[0] + 7 * parts[1]) / 12 == pytest.approx(whole.loss.item(), rel=1e-12)
    untrained = experiments.build_family(experiment, cnn.spec)
    with pytest.raises(ConfigError, match=r"call family.start\(rows\)"):
        untrained.objective((rows[0].float(), rows[1]), context(12))


def test_mixup_by_hand(deep: Base, finetuning: Make, begun: Make) -> None:
    from neurofleet import counter
    from neurofleet.transfer.finetuned import PARTNER_SITE, SHARE_SITE

    experiment = finetuning(deep, *NEW, mixup=0.4)
    family, (inputs, targets), where = begun(experiment), batch(experiment), context(12, step=7)
    everything = experiments.build_data(experiment).rows("train")
    places = (counter.uniform(where.key(PARTNER_SITE), where.rows, ()) * 60).long()
    assert len(places.unique()) > 6
    zero = torch.zeros(1, dtype=torch.int32)
    share = 0.4 * counter.uniform(where.key(SHARE_SITE), zero, ()).item()
    mixed = (1 - share) * family.features(inputs) + share * family.features(everything.inputs[places].double())
    outputs = family.readout(mixed)
    losses = [torch.nn.functional.cross_entropy(outputs, one) for one in (targets, everything.targets[places])]
    expected = (1 - share) * losses[0] + share * losses[1]
    torch.testing.assert_close(family.objective((inputs, targets), where).loss, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("method", ["frozen", "full", "gradual", "probe_then_full", "lora"])
def test_the_objective_is_pure(method: str, cnn: Base, finetuning: Make, begun: Make) -> None:
    experiment = finetuning(cnn, *NEW, method=method, share=0.5 if method != "frozen" else 0.0, dropout=0.2)
    family, rows = begun(experiment), batch(experiment)
    generator, state = torch.random.get_rng_state(), copy.deepcopy(family.state_dict())
    found = [family.objective(rows, context(12, step=2, progress=0.3)) for _ in range(2)]
    assert found[0].loss.item() == found[1].loss.item()
    assert found[0].loss.item() != family.objective(rows, context(12, step=3, progress=0.3)).loss.item()
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert distance(state, family.state_dict()) == 0


# Adapters.


@pytest.mark.parametrize("method", ["lora", "ia3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adapters_learn_beside_weights_that_stay_and_are_merged_in_the_end(
    method: str, dtype: torch.dtype, cnn: Base, finetuning: Make, begun: Make
) -> None:
    experiment = finetuning(cnn, *NEW, method=method)
    family, rows = begun(experiment, dtype), batch(experiment)
    rows = rows[0].to(dtype), rows[1]
    learning = {name for name, one in family.named_parameters() if one.requires_grad}
    assert {"readout.weight", "readout.bias"} < learning
    adapters = {name for name in learning if not name.startswith("readout")}
    marks = ("lora_A", "lora_B") if method == "lora" else ("ia3_l",)
    assert all(any(mark in name for mark in marks) for name in adapters)
    assert family(rows[0]).allclose(begun(finetuning(cnn, *NEW), dtype)(rows[0]), atol=1e-6)  # they begin as nothing
    optimizer = family.make_optimizer()
    moved: set[str] = set()
    for number in range(5):
        moved |= step(family, rows, optimizer, number / 5)
    assert moved == learning
    released = family.released(family.state_dict())
    served = experiments.build_family(experiment, family.spec).to(dtype)
    served.load_state_dict(released, strict=True)
    bound = 1e-5 if dtype is torch.float32 else 1e-10
    with torch.no_grad():
        assert float((served(rows[0]) - family(rows[0])).abs().max()) < bound
        assert float((served(rows[0]) - begun(finetuning(cnn, *NEW), dtype)(rows[0])).abs().max()) > 1e-3
    kept, _, new = family.origins()
    assert adapters <= set(new)
    assert not adapters & set(kept)


def test_adapters_need_layers_to_adapt(make_base: Make, finetuning: Make, begun: Make) -> None:
    base = make_base("family=rbf", "data=wine")
    with pytest.raises(ConfigError, match=r"needs linear layers to adapt, got RBF .*take method=full"):
        begun(finetuning(base, "data=wine", method="lora"))


# Runs.

WAYS: dict[str, dict[str, Any]] = {
    "frozen": {"method": "frozen", "hidden": [6], "mixup": 0.2},
    "full": {"method": "full", "l2_sp": 0.1, "dropout": 0.1},
    "gradual": {"method": "gradual", "share": 0.6, "layer_decay": 0.7, "mixup": 0.2},
    "lora": {"method": "lora"},
    "probe_then_full": {"method": "probe_then_full", "share": 0.5},
}
CUT = "trainer.checkpoint.every_n_steps=2"


@pytest.fixture(scope="module")
def alone(cnn: Base, finetuning: Make, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Path]]:
    folder = tmp_path_factory.mktemp("alone")

    def trained(way: str) -> tuple[Any, Path]:
        experiment = finetuning(cnn, *NEW, CUT, **WAYS[way])
        if not (folder / way).exists():
            run(experiment, folder=folder / way)
        return experiment, folder / way

    return trained


@pytest.mark.parametrize("way", WAYS)
def test_a_seed_decides_all_and_a_cut_run_ends_as_a_whole_one(way: str, alone: Make, tmp_path: Path) -> None:
    experiment, whole = alone(way)
    again = run(experiment, folder=tmp_path / "again")
    assert distance(weights(again.folder), weights(whole)) == 0
    index = json.loads((whole / "checkpoints" / "index.json").read_text())
    assert len(index) > 4
    for place in (0, len(index) // 2):
        folder = again.folder
        (folder / "weights.safetensors").unlink()
        (folder / "checkpoints" / "index.json").write_text(json.dumps(index[: place + 1]))
        run(experiment, folder=folder, resume=True)
        assert distance(weights(folder), weights(whole)) == 0


@pytest.mark.parametrize("way", WAYS)
def test_what_a_run_leaves_is_all_that_serving_takes(way: str, alone: Make) -> None:
    experiment, folder = alone(way)
    data = experiments.build_data(experiment)
    served = experiments.build_family(experiment, data.spec).double()
    served.load_state_dict(weights(folder), strict=True)
    said = checkpoint.decode((folder / "predictions.safetensors").read_bytes())[0]["outputs"]
    with torch.no_grad():
        torch.testing.assert_close(served(data.rows("test").inputs.double()), said, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_two_workers_end_with_the_weights_of_one(alone: Make, tmp_path: Path) -> None:
    jobs = [{"experiment": alone(way)[0], "folder": str(tmp_path / way), "num_workers": 2} for way in WAYS]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, str(ROOT / "tests" / "run_groups.py"), str(tmp_path / "jobs.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    for way in WAYS:
        assert distance(weights(tmp_path / way), weights(alone(way)[1])) < 1e-9, way


def test_a_fine_tuned_network_is_a_base_again(alone: Make, finetuning: Make, begun: Make, tmp_path: Path) -> None:
    from neurofleet.transfer.stored import stored

    _, folder = alone("lora")
    base = stored(folder, uri="runs:/1")
    family = begun(finetuning(base, *NEW, method="full"))
    expected = encoder_of(weights(folder))
    assert distance(encoder_of(family.state_dict()), expected) == 0
    assert bases.keep(base) == bases.keep(base)


TEXT = ("family=transformer", "data=food_reviews", "family.width=8", "family.num_layers=2", "family.num_heads=2")
TEXT += ("family.ngram_buckets=32",)


def test_texts_speak_the_bases_tokens(make_base: Make, finetuning: Make, begun: Make) -> None:
    base = make_base(*TEXT, "data=pydoc_topics", shape=(24,))
    experiment = finetuning(base, "data=food_reviews", method="frozen")
    data = experiments.build_data(experiment)
    assert data.spec.vocabulary == base.spec.vocabulary
    assert data.rows("test").inputs.shape[1:] == (24,)
    family = begun(experiment)
    assert family(data.rows("test").inputs[:3]).shape == (3, family.spec.num_outputs)
