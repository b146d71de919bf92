"""The joint objective against two separate passes; penalties by hand; what the average, the grid and the score are."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from neurofleet import counter
from neurofleet.errors import ConfigError, MismatchError
from neurofleet.families import gan
from neurofleet.families._base import Recipe
from neurofleet.families.gan import GAN, LOSSES, MOMENTS, NUM_JUDGED, NUM_SHOWN
from neurofleet.schedule import Constant
from neurofleet.spec import DataSpec
from neurofleet.steps import Context

MakeSpec = Callable[..., DataSpec]
MakeContext = Callable[..., Context]
STILL = {"degrees": 0.0, "scale": 0.0, "translation": 0.0}
SHAPES = [(5,), (4, 2), (2, 9, 8), (1, 12, 16)]
NUM_ROWS = 6


def make(spec: DataSpec, **settings: Any) -> GAN:
    chosen: dict[str, Any] = {
        "loss": "nonsaturating",
        "noise": 7,
        "hidden": [8, 6],
        "channels": [3, 4],
        "patch": 2,
        "norm": "layer",
        "gradient_penalty": 0.0,
        "penalty_every": 1,
        "average_decay": 0.9,
        "augmentation": STILL,
    }
    return GAN(spec=spec, **chosen | settings).double()


def rows(num_rows: int, shape: tuple[int, ...], seed: int = 1) -> Tensor:
    return torch.randn(num_rows, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gradients(family: GAN) -> dict[str, Tensor]:
    return {name: one.grad.clone() for name, one in family.named_parameters() if one.grad is not None}


def critic_by_hand(loss: str, real: Tensor, fake: Tensor) -> Tensor:
    ones, zeros = torch.ones_like(real), torch.zeros_like(fake)
    if loss == "nonsaturating":
        bce = F.binary_cross_entropy_with_logits
        return bce(real, ones) + bce(fake, zeros)
    if loss == "hinge":
        return torch.where(real < 1, 1 - real, zeros).mean() + torch.where(fake > -1, 1 + fake, zeros).mean()
    return fake.mean() - real.mean()


def penalty_by_hand(family: GAN, real: Tensor, fake: Tensor, share: Tensor) -> Tensor:
    """Row by row, by autograd."""
    costs = []
    for index in range(len(real)):
        row = real[index] if family.loss != "wasserstein" else fake[index] + share[index] * (real[index] - fake[index])
        row = row.unsqueeze(0).requires_grad_()
        (slope,) = torch.autograd.grad(family.critic(row).sum(), row, create_graph=True)
        costs.append((slope.norm() - 1) ** 2 if family.loss == "wasserstein" else slope.norm() ** 2 / 2)
    return torch.stack(costs).mean()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("loss", LOSSES)
def test_one_backward_pass_is_two(loss: str, shape: tuple[int, ...], make_spec: MakeSpec, make_context: Any) -> None:
    """The usual loop: the critic learns on detached samples, then the generator through a critic that is held still."""
    family = make(make_spec(shape=shape), loss=loss, gradient_penalty=3.0)
    real, context = rows(NUM_ROWS, shape), make_context(NUM_ROWS)
    family.objective((real,), context).loss.backward()
    joint = gradients(family)
    assert set(joint) == {name for name, _ in family.named_parameters()}

    family.zero_grad()
    noise = (counter.uniform(context.key(gan.NOISE), context.rows, (7,), torch.float64) - 0.5) * math.sqrt(12)
    fake = family.generator(noise)
    share = counter.uniform(context.key(gan.BETWEEN), context.rows, (), torch.float64)
    penalty = penalty_by_hand(family, real, fake.detach(), share)
    (critic_by_hand(loss, family.critic(real), family.critic(fake.detach())) + 3 * penalty).backward()
    separate = {name: one for name, one in gradients(family).items() if name.startswith("critic.")}
    family.zero_grad()
    scores = family.critic(fake)
    (-F.logsigmoid(scores) if loss == "nonsaturating" else -scores).mean().backward()
    separate |= {name: one for name, one in gradients(family).items() if name.startswith("generator.")}
    assert set(separate) == set(joint)
    for name, gradient in joint.items():
        torch.testing.assert_close(gradient, separate[name], rtol=1e-9, atol=1e-12)
    assert any(bool(gradient.abs().max() > 1e-6) for name, gradient in joint.items() if name.startswith("generator."))


def test_some_rows_pay_the_penalty_for_all(make_spec: MakeSpec, make_context: MakeContext) -> None:
    family = make(make_spec(shape=(5,)), gradient_penalty=2.0, penalty_every=3)
    free = make(make_spec(shape=(5,)))
    free.load_state_dict(family.state_dict())
    real, context = rows(NUM_ROWS, (5,)), make_context(NUM_ROWS, first_row=2)  # rows 3 and 6 pay: the second and fifth
    paid = family.objective((real,), context).loss - free.objective((real,), context).loss
    wanted = sum(penalty_by_hand(family, real[[index]], real[[index]], real[:1]) for index in (1, 4)) * 3 * 2 / NUM_ROWS
    torch.testing.assert_close(paid, wanted)


def test_no_critic_trains_without_a_gradient_in_evaluation(make_spec: MakeSpec, make_context: MakeContext) -> None:
    family = make(make_spec(shape=(2, 9, 8)), gradient_penalty=1.0)
    with torch.inference_mode():
        held_out = family.objective((rows(4, (2, 9, 8)),), make_context(4, training=False))
        trained = family.objective((rows(4, (2, 9, 8)),), make_context(4))
    assert bool(torch.isfinite(held_out.loss))
    assert bool(torch.isfinite(trained.loss))
    assert held_out.buffers == {}


def test_the_average_follows_the_weights(make_spec: MakeSpec, make_context: MakeContext) -> None:
    """Fast at first, (1 + step) / (10 + step), then by the set decay; in a stack of trials too."""
    family = make(make_spec(shape=(5,)))
    weight, average = family.generator.layers[0].weight, family.averages.get_buffer("layers_0_weight")
    assert torch.equal(weight, average)
    with torch.no_grad():
        average += 1
    for step, decay in ((0, 0.1), (10, 11 / 20), (1000, 0.9)):
        for at in (step, torch.tensor(step, dtype=torch.int32)):
            context = Context(0, at, 0.5, torch.arange(3, dtype=torch.int32), training=True, measure=False)
            buffers = family.objective((rows(3, (5,)),), context).buffers
            torch.testing.assert_close(buffers["averages.layers_0_weight"], weight + decay)


def test_the_grid_is_written_when_its_moments_come(make_spec: MakeSpec) -> None:
    """And at no other step: there it costs nothing."""
    family = make(make_spec(shape=(1, 12, 16)))
    family.recipe = Recipe(
        lambda parameters: torch.optim.SGD(parameters, lr=0.1), Constant(warmup=0.0), 0, 100, 10, None
    )
    written = {}
    for step in range(100):
        context = Context(0, step, step / 100, torch.arange(3, dtype=torch.int32), training=True, measure=False)
        buffers = family.objective((rows(3, (1, 12, 16)),), context).buffers
        if "grid" in buffers:
            written[step] = buffers["grid"].clone()
            family.update_buffers({"grid": buffers["grid"]})
        family.averages.get_buffer("readout_bias").add_(0.01)  # so that every step's samples are others
    assert list(written) == [math.ceil(moment * 100) for moment in MOMENTS]
    grid = family.grid
    assert grid.shape == (len(MOMENTS), NUM_SHOWN, 1, 12, 16)
    for place, step in enumerate(written):
        assert torch.equal(grid[place], written[step][place])
        assert place == 0 or not torch.equal(grid[place], grid[place - 1])
    shown = family.exhibits((rows(3, (1, 12, 16)),))["sample_grid"]
    assert shown["samples"].shape == (len(MOMENTS) + 1, NUM_SHOWN, 1, 12, 16)


def test_a_short_training_writes_several_moments_at_once(make_spec: MakeSpec) -> None:
    family = make(make_spec(shape=(4, 2)))
    family.recipe = Recipe(lambda parameters: torch.optim.SGD(parameters, lr=0.1), Constant(warmup=0.0), 0, 4, 10, None)
    written = [family._due(step / 4) for step in range(4)]
    assert written == [[0], [1, 2, 3, 4, 5], [6], []]


def test_the_score_is_the_energy_distance(make_spec: MakeSpec, make_context: MakeContext) -> None:
    family = make(make_spec(shape=(5,)))
    batch = rows(40, (5,))
    family.start((batch,))
    loss = family.objective((batch,), make_context(40, training=False)).loss
    samples = family._made(NUM_JUDGED, counter.fold(0, gan.JUDGED))
    to, among, spread = torch.cdist(batch, samples), torch.pdist(samples), torch.pdist(batch).mean()
    torch.testing.assert_close(loss, (2 * to.mean() - among.mean()) / spread - 1)
    torch.testing.assert_close(family.spread, spread)


def test_the_score_of_the_same_distribution_is_nought(make_spec: MakeSpec, make_context: MakeContext) -> None:
    family = make(make_spec(shape=(5,)))
    family._made = lambda num, key: rows(num, (5,), seed=2)  # type: ignore[method-assign]
    family.start((rows(800, (5,)),))
    score = family.objective((rows(900, (5,), seed=3),), make_context(900, training=False)).loss.item()
    assert abs(score) < 0.03  # of 256 samples
    family._made = lambda num, key: rows(num, (5,), seed=2) + 1  # type: ignore[method-assign]
    assert family.objective((rows(900, (5,), seed=3),), make_context(900, training=False)).loss.item() > 0.1


def test_start_knows_the_range_of_pixels(make_spec: MakeSpec) -> None:
    spec = make_spec(shape=(2, 9, 8), input_mean=(10.0, 20.0), input_std=(2.0, 4.0))
    family, batch = make(spec), rows(30, (2, 9, 8))
    batch[:, 1] *= 3
    family.start((batch,))
    samples = (family.sample(50, seed=3) - torch.tensor([10.0, 20.0]).view(2, 1, 1)) / torch.tensor([2.0, 4.0]).view(
        2, 1, 1
    )
    for channel in range(2):
        assert samples[:, channel].min() >= batch[:, channel].min()
        assert samples[:, channel].max() <= batch[:, channel].max()
    before = copy.deepcopy(family.state_dict())
    one = make(spec)
    one.load_state_dict(before)
    one.start((batch[:1],))
    assert torch.equal(one.spread, family.spread), "a single row has no distance to others"


def test_samples_are_a_function_of_weights_and_seed(make_spec: MakeSpec) -> None:
    family = make(make_spec(shape=(5,)))
    assert torch.equal(family.sample(20, seed=1), family.sample(20, seed=1))
    assert torch.equal(family.sample(20, seed=1)[:5], family.sample(5, seed=1))
    assert not torch.equal(family.sample(20, seed=1), family.sample(20, seed=2))


@pytest.mark.parametrize("shape", [(2, 8, 8), (1, 28, 28), (3, 32, 32), (1, 56, 46), (1, 36, 36), (1, 7, 9)])
@pytest.mark.parametrize("channels", [[3], [3, 4], [2, 3]])
def test_images_of_any_size(shape: tuple[int, ...], channels: list[int], make_spec: MakeSpec) -> None:
    family = make(make_spec(shape=shape), channels=channels)
    assert family.sample(2, seed=0).shape == (2, *shape)
    assert family(rows(3, shape)).shape == (3, 1)
    family.critic(family.generator(rows(2, (7,)))).sum().backward()  # every pixel is looked at
    image = rows(1, shape).requires_grad_()
    family.critic(image).sum().backward()
    assert image.grad is not None
    assert bool((image.grad != 0).all())


def test_a_row_does_not_depend_on_its_batch_mates(make_spec: MakeSpec, make_context: MakeContext) -> None:
    family = make(make_spec(shape=(2, 9, 8)))
    batch = rows(5, (2, 9, 8))
    others = batch.clone()
    others[1:] = 100.0
    torch.testing.assert_close(family(batch)[0], family(others)[0], rtol=1e-13, atol=1e-14)


def test_both_kinds_of_images_are_distorted(make_spec: MakeSpec, make_context: MakeContext) -> None:
    family = make(make_spec(shape=(1, 12, 16)), augmentation=STILL | {"translation": 0.3})
    images = rows(4, (1, 12, 16))
    seen = [distort(images, make_context(4)) for distort in family.distortions]
    assert not torch.equal(seen[0], images)
    assert not torch.equal(seen[1], images)
    assert not torch.equal(*seen), "each by a draw of its own"


def test_after_the_end_of_a_sequence_is_the_mean(make_spec: MakeSpec) -> None:
    family, batch = make(make_spec(shape=(4, 2))), rows(3, (4, 2))
    ended, filled = batch.clone(), batch.clone()
    ended[:, 2:], filled[:, 2:] = torch.nan, 0.0
    assert torch.equal(family(ended), family(filled))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "hinges"}, r"family\.loss needs one of nonsaturating, hinge, wasserstein, got 'hinges'.*hinge"),
        ({"gradient_penalty": -1.0}, r"gradient_penalty needs a number >= 0, got -1"),
        ({"loss": "wasserstein"}, r"wasserstein needs a gradient_penalty above 0, got 0; try 10"),
        ({"penalty_every": 0}, r"penalty_every needs a whole number of at least 1, got 0"),
        ({"average_decay": 1.0}, r"average_decay needs 0 <= average_decay < 1, got 1"),
        ({"noise": 0}, r"positive noise.*noise=0"),
        ({"hidden": []}, r"at least one positive entry.*hidden=\[\]"),
        ({"norm": "batch"}, r"family\.norm needs layer or none, got 'batch'"),
        ({"channels": [4] * 4}, r"at least 16 pixels a side, got 8 \(made\); give family.channels at most 3 entries"),
        ({"augmentation": {}}, r"family\.augmentation needs the keys degrees, scale, translation, got none"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str, make_spec: MakeSpec) -> None:
    with pytest.raises(ConfigError, match=message):
        make(make_spec(shape=(2, 9, 8)), **settings)


def test_as_many_stages_as_the_error_allows_do_work(make_spec: MakeSpec) -> None:
    assert make(make_spec(shape=(2, 9, 8)), channels=[4] * 3).sample(1, seed=0).shape == (1, 2, 9, 8)


def test_indices_are_refused(make_spec: MakeSpec) -> None:
    with pytest.raises(MismatchError, match="GAN needs data of kind image or sequence or tabular, got made"):
        make(make_spec(shape=(4,), kind="categorical", cardinalities=(3,) * 4, inputs=("a", "b", "c", "d")))
