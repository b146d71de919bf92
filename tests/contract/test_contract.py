"""What every family keeps to, on every dataset that it accepts; a new family inherits these tests by its config."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from neurofleet import checkpoint, paths
from neurofleet import experiment as experiments
from neurofleet.data import EnvironmentDataModule
from neurofleet.data.acting import acting_loader
from neurofleet.data.catalog import NEEDS
from neurofleet.families._base import Family, Objective
from neurofleet.families._supervised import SupervisedFamily
from neurofleet.schedule import Constant, Linear
from neurofleet.spec import DataSpec
from neurofleet.steps import Batch, Context

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
NUM_ROWS = 16
NUM_STEPS = 100
# Two of these days are nearly alike and of different seasons, and two of these messages differ by a tenth in one
# number: it takes that many times the steps to tell them apart.
TWINS = {
    ("rnn", "italy_power_demand"): 2,
    ("transformer", "italy_power_demand"): 3,
    ("mlp", "spam7"): 16,
    ("dbn", "spam7"): 6,
    ("gan", "orl_faces"): 2,
    ("gan", "textures"): 4,
}
# Two players that answer each other overshoot at a rate that suits one; and what they start with is the unit of their
# score, the rows' own distance, not something learnt.  (Of faces and textures, noise is a good guess at first.)
GAMES = {"gan": 1e-3}
NUM_TOKENS = 64
# A first batch after few steps: those of a car in traffic take a while.
ACTING = {
    "dqn": ["data.num_environments=4", "family.replay={capacity: 256, warmup: 64, steps_per_update: 4}"],
    "ppo": ["data.num_environments=4", "family.rollout={num_steps: 16, num_epochs: 1}", "data.batch_size=32"],
}


def fitting() -> list[tuple[str, str]]:
    families = sorted(path.stem for path in (CONFIGS / "family").glob("*.yaml"))
    datasets = sorted(path.stem for path in (CONFIGS / "data").glob("*.yaml"))
    datasets = [data for data in datasets if data not in NEEDS]  # a machine may lack what they are made from
    datasets += sorted(f"env/{path.stem}" for path in (CONFIGS / "data" / "env").glob("*.yaml"))
    pairs = []
    for data in datasets:
        fits = experiments.fitting_families(spec_of(data))
        pairs += [(family, data) for family in families if family in fits]
    return pairs


def spec_of(data: str) -> DataSpec:
    if data.startswith("env/"):  # it follows from the environment
        return experiments.build_data(experiments.compose([f"data={data}"])).spec
    return DataSpec.load(paths.data() / data / "spec.json")


@functools.cache
def prepared(family: str, data: str) -> tuple[dict[str, Any], DataSpec, Batch]:
    """The experiment, its spec, and the first training rows, in float64; an untrained agent makes them."""
    experiment = experiments.compose([f"family={family}", f"data={data}", *ACTING.get(family, [])])
    module = experiments.build_data(experiment)
    dtype = torch.float64
    if isinstance(module, EnvironmentDataModule):
        agent = experiments.build_family(experiment, module.spec).double()
        where: dict[str, Any] = {"device": torch.device("cpu"), "rank": 0, "world_size": 1}
        when = {"seed": 0, "max_epochs": 1, "epochs_per_round": 1, "cut_every": None}
        (first,) = next(iter(acting_loader(module, agent, dtype=dtype, **when, **where))).batches
        return experiment, module.spec, tuple(tensor[:NUM_ROWS] for tensor in first)
    spec, rows = module.spec, tuple(tensor[:NUM_ROWS].clone() for tensor in module.rows("train"))
    if spec.kind == "text":  # what holds of their beginnings holds of texts, in a fraction of the time
        spec, rows = dataclasses.replace(spec, shape=(NUM_TOKENS,)), (rows[0][:, :NUM_TOKENS], *rows[1:])
    return experiment, spec, tuple(tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in rows)


class Case:
    """One family on one dataset."""

    def __init__(self, family: str, data: str) -> None:
        self.names = family, data
        self.experiment, self.spec, self.batch = prepared(family, data)

    def build(self, seed: int = 0, *, start: bool = True) -> Family:
        family = experiments.build_family(copy.deepcopy(self.experiment) | {"seed": seed}, self.spec).double()
        family.recipe = experiments.build_recipe(
            self.experiment, num_steps=NUM_STEPS, log_every_n_steps=1, gradient_clip_val=None
        )
        if start:
            family.start(self.batch)
        return family

    def context(
        self, *, seed: Any = 0, step: Any = 0, progress: float = 0.0, training: bool = True, num_rows: int = NUM_ROWS
    ) -> Context:
        return Context(seed, step, progress, torch.arange(num_rows, dtype=torch.int32), training, measure=True)

    def train(
        self, family: Family, num_steps: int, *, seed: int = 0, lr: float = 3e-3, enough: float | None = None
    ) -> Family:
        """enough: a loss of the batch below which training need not go on"""
        optimizer = torch.optim.Adam([one for one in family.parameters() if one.requires_grad], lr=lr)
        for step in range(num_steps):
            optimizer.zero_grad()
            objective = family.objective(self.batch, self.context(seed=seed, step=step, progress=step / num_steps))
            objective.loss.backward()
            optimizer.step()
            family.update_buffers(objective.buffers)
            if enough is not None and step % 10 == 9 and self.loss(family) < enough:
                break
        return family

    def loss(self, family: Family) -> float:
        with torch.no_grad():
            return family.objective(self.batch, self.context(training=False)).loss.item()


@pytest.fixture(params=fitting(), ids="-".join)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(*request.param)


def assert_equal(first: nn.Module, second: nn.Module) -> None:
    left, right = first.state_dict(), second.state_dict()
    assert list(left) == list(right)
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_it_learns_one_batch(case: Case) -> None:
    """By heart, where there are targets; what learns from inputs alone has to get better at what it is scored by.
    What `start` learns counts."""
    family = case.build()
    num_steps, game = NUM_STEPS * TWINS.get(case.names, 1), case.names[0] in GAMES
    before = case.loss(case.build(start=game))
    enough = (0.1 if isinstance(family, SupervisedFamily) else 0.9) * before
    after = case.loss(case.train(family, num_steps, lr=GAMES.get(case.names[0], 1e-2), enough=enough))
    assert after < enough


def test_the_same_seed_gives_the_same_weights(case: Case) -> None:
    first, again = case.train(case.build(), 3), case.train(case.build(), 3)
    assert_equal(first, again)
    pairs = zip(*(case.build(seed, start=False).parameters() for seed in (0, 1)), strict=True)
    assert any(not torch.equal(left, right) for left, right in pairs), "`start` may leave nothing to chance"


def test_the_state_makes_the_round(case: Case) -> None:
    """Through a file, into a network built from another seed: the same outputs and the same next step."""
    family = case.train(case.build(), 3)
    tensors, _ = checkpoint.decode(checkpoint.encode(family.state_dict(), {}))
    copied = case.build(seed=1)
    copied.load_state_dict(tensors)
    assert_equal(family, copied)
    assert case.loss(family) == case.loss(copied)
    assert_equal(case.train(family, 2), case.train(copied, 2))


def test_the_objective_is_a_pure_function(case: Case) -> None:
    family = case.build()
    tensors = copy.deepcopy(family.state_dict())
    batch = tuple(tensor.clone() for tensor in case.batch)
    attributes = {
        name: value for name, value in vars(family).items() if isinstance(value, int | float | str | type(None))
    }
    generator = torch.random.get_rng_state()
    results: list[Objective] = []
    for training in (True, True, False, False):
        torch.manual_seed(len(results))
        results.append(family.objective(case.batch, case.context(training=training)))
    torch.random.set_rng_state(generator)
    family.objective(case.batch, case.context())
    assert torch.equal(torch.random.get_rng_state(), generator), "it draws from the context alone"
    for first, again in ((results[0], results[1]), (results[2], results[3])):
        assert torch.equal(first.loss, again.loss)
        assert set(first.metrics) == set(again.metrics)
        assert all(torch.equal(first.metrics[name], again.metrics[name]) for name in first.metrics)
    assert results[0].loss.shape == ()
    assert results[0].loss.dtype is torch.float64
    for metric in results[0].metrics.values():  # a scalar, or a value (or one a label) for every row
        assert metric.shape == () or len(metric) == len(case.batch[0])
        assert not metric.requires_grad
    torch.testing.assert_close(batch, case.batch, rtol=0, atol=0, equal_nan=True)
    after = family.state_dict()
    assert all(torch.equal(tensors[name], after[name]) for name in tensors)
    assert all(parameter.grad is None for parameter in family.parameters())
    same = {name: value for name, value in vars(family).items() if isinstance(value, int | float | str | type(None))}
    assert same == attributes, "nothing is counted or remembered"
    for name, value in results[0].buffers.items():
        assert not value.requires_grad
        assert value.shape == family.get_buffer(name).shape
        assert torch.equal(value, results[1].buffers[name])


def test_new_buffers_do_not_depend_on_the_rows(case: Case) -> None:
    """So they are equal on all workers, whatever part of the batch each has."""
    family = case.build()
    whole = family.objective(case.batch, case.context()).buffers
    part = family.objective(tuple(tensor[:5] for tensor in case.batch), case.context(num_rows=5)).buffers
    assert set(whole) == set(part)
    assert all(torch.equal(whole[name], part[name]) for name in whole)


def test_a_context_that_does_not_measure_gets_the_same_loss(case: Case) -> None:
    family, context = case.build(), case.context()
    quiet = Context(context.seed, context.step, context.progress, context.rows, training=True, measure=False)
    silent = family.objective(case.batch, quiet)
    assert silent.metrics == {}
    assert torch.equal(silent.loss, family.objective(case.batch, context).loss)


def test_half_the_bits_do_not_end_in_nan(case: Case) -> None:
    """Ten steps of bf16-mixed precision, whose numbers have eight bits: nothing random may be rounded to infinity."""
    family = case.build(start=False).float()
    batch = tuple(tensor.float() if tensor.is_floating_point() else tensor for tensor in case.batch)
    family.start(batch)
    optimizer = torch.optim.Adam([one for one in family.parameters() if one.requires_grad], lr=1e-3)
    for step in range(10):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            objective = family.objective(batch, case.context(step=step, progress=step / 10))
        assert bool(torch.isfinite(objective.loss))
        objective.loss.backward()
        optimizer.step()
        family.update_buffers(objective.buffers)
    assert all(bool(torch.isfinite(one).all()) for one in family.parameters())


def test_every_parameter_learns(case: Case) -> None:
    """At some time in training: a deep belief network's layers have theirs one after another."""
    family = case.build()
    for progress in torch.linspace(0, 0.99, 12).tolist():
        family.objective(case.batch, case.context(progress=progress)).loss.backward()
    assert [name for name, one in family.named_parameters() if one.requires_grad and one.grad is None] == []


class Objectives(nn.Module):
    """The objective as a forward, for `functional_call`."""

    def __init__(self, family: Family) -> None:
        super().__init__()
        self.family = family

    def forward(self, batch: Batch, context: Context) -> Tensor:
        return self.family.objective(batch, context).loss


def test_a_stack_of_trials_learns_what_each_learns_alone(case: Case) -> None:
    """Losses and gradients of three trials, each with weights, a seed and a step of its own."""
    families = [case.build(seed=seed) for seed in range(3)]
    seeds, steps = torch.tensor([5, 6, 7], dtype=torch.int32), torch.tensor([0, 31, 2], dtype=torch.int32)
    networks = [Objectives(family) for family in families]
    parameters, buffers = torch.func.stack_module_state(networks)  # type: ignore[arg-type]
    # vmap cannot copy channels-last tensors yet (torch 2.13); a layout is not a value, so a stack takes the plain one.
    parameters = {name: tensor.contiguous() for name, tensor in parameters.items()}
    skeleton = copy.deepcopy(networks[0]).to("meta")

    def loss(weights: Any, others: Any, seed: Tensor, step: Tensor) -> Tensor:
        context = case.context(seed=seed, step=step)
        return torch.func.functional_call(skeleton, (weights, others), (case.batch, context))

    gradients, losses = torch.func.vmap(torch.func.grad_and_value(loss))(parameters, buffers, seeds, steps)
    for place, network in enumerate(networks):
        context = case.context(seed=int(seeds[place]), step=int(steps[place]))
        alone = network(case.batch, context)
        alone.backward()
        torch.testing.assert_close(losses[place], alone, rtol=1e-12, atol=1e-12)
        for name, parameter in network.named_parameters():
            if parameter.grad is not None:
                torch.testing.assert_close(gradients[name][place], parameter.grad, rtol=1e-10, atol=1e-12)


def test_a_batch_of_one_is_a_batch(case: Case) -> None:
    family = case.build()
    one = tuple(tensor[:1] for tensor in case.batch)
    for training in (False, True):
        loss = family.objective(one, case.context(training=training, num_rows=1)).loss
        assert bool(torch.isfinite(loss))
    loss.backward()


def test_the_loss_of_a_batch_is_the_mean_of_its_parts(case: Case) -> None:
    """What data-parallel training rests on: rows weigh alike, and draw by their place in the global batch."""
    family = case.build()
    whole = family.objective(case.batch, case.context()).loss
    rows, parts = torch.arange(NUM_ROWS, dtype=torch.int32), torch.zeros((), dtype=torch.float64)
    for first, last in ((0, 5), (5, 6), (6, NUM_ROWS)):
        part = tuple(tensor[first:last] for tensor in case.batch)
        context = Context(0, 0, 0.0, rows[first:last], training=True, measure=False)
        parts = parts + family.objective(part, context).loss * (last - first) / NUM_ROWS
    torch.testing.assert_close(parts, whole, rtol=1e-10, atol=1e-12)


def stock_trainer(**settings: Any) -> pl.Trainer:
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(**quiet | settings)


# Lightning advises more loader processes and fewer log calls, which sixteen rows do not need, and calls what torch 2.13
# deprecates.
STOCK = [
    "ignore:.*does not have many workers",
    "ignore:The number of training batches",
    "ignore:.*LeafSpec.* is deprecated:FutureWarning",
    "ignore:No positive samples found in target",  # sixteen rows lack some label of ten
    "ignore:You defined a `validation_step` but have no `val_dataloader`",
]


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.filterwarnings(*STOCK)
def test_a_stock_trainer_with_a_stock_loader_fits_it(case: Case, validate: bool) -> None:
    family = case.build()
    recipe = {**vars(family.recipe), "num_steps": 8, "schedule": Linear(warmup=0.0, final=0.0)}
    family.recipe = type(family.recipe)(**recipe)
    before = copy.deepcopy(family.state_dict())
    dataset: Any = torch.utils.data.TensorDataset(*case.batch)
    loader: Any = torch.utils.data.DataLoader(dataset, batch_size=4)
    trainer = stock_trainer(max_epochs=2, precision="64-true")
    trainer.fit(family, loader, loader if validate else None)
    assert trainer.global_step == 8
    after = family.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    (group,) = trainer.optimizers[0].param_groups
    assert group["lr"] == pytest.approx(0.0, abs=1e-12), "the schedule has come to its end"
    assert {"train/loss"} <= set(trainer.callback_metrics)
    assert ("val/loss" in trainer.callback_metrics) is validate
    if validate:
        assert trainer.callback_metrics["val/loss"].item() == pytest.approx(case.loss(family), rel=1e-6)


@pytest.mark.filterwarnings(*STOCK)
def test_a_stock_trainer_takes_the_steps_of_a_loop_by_hand(case: Case) -> None:
    family, twin = case.build(), case.build()
    recipe = {**vars(family.recipe), "num_steps": 8, "schedule": Constant(warmup=0.5)}
    family.recipe = type(family.recipe)(**recipe)
    loader: Any = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*case.batch), batch_size=4)
    stock_trainer(max_epochs=2, precision="64-true").fit(family, loader)
    make: Callable[..., torch.optim.Optimizer] = family.recipe.optimizer
    optimizer = make(list(twin.parameters()))
    base = optimizer.param_groups[0]["lr"]
    for step in range(8):
        part = tuple(tensor[step % 4 * 4 : step % 4 * 4 + 4] for tensor in case.batch)
        optimizer.param_groups[0]["lr"] = base * max(step / 8 / 0.5, 1e-3) if step < 4 else base
        optimizer.zero_grad()
        context = Context(0, step, step / 8, torch.arange(4, dtype=torch.int32), training=True, measure=True)
        objective = twin.objective(part, context)
        objective.loss.backward()
        optimizer.step()
        twin.update_buffers(objective.buffers)
    for left, right in zip(family.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)
