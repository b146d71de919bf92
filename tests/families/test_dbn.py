"""The deep belief network: its gradient is contrastive divergence as written by hand."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from neurofleet import counter
from neurofleet import experiment as experiments
from neurofleet.errors import ConfigError
from neurofleet.families.dbn import DBN, GIBBS_SITE
from neurofleet.spec import DataSpec
from neurofleet.steps import Context

MakeSpec = Callable[..., DataSpec]
STILL = {"degrees": 0.0, "scale": 0.0, "translation": 0.0}
KEY = counter.fold(3, 9, GIBBS_SITE)


def make(spec: DataSpec, **settings: Any) -> DBN:
    chosen: dict[str, Any] = {
        "hidden": [5, 4],
        "pretraining": 0.5,
        "pretraining_weight": 1.0,
        "gibbs_steps": 1,
        "num_chains": 0,
        "sample_visible": False,
        "dropout": 0.0,
        "label_smoothing": 0.0,
        "augmentation": STILL,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        family = DBN(spec=spec, **chosen | settings).double()
        for parameter in family.parameters():
            nn.init.normal_(parameter, std=0.7)
        family.centre.uniform_(0, 1)
    return family


def spec_of(kind: str, make_spec: MakeSpec) -> DataSpec:
    if kind == "image":
        return make_spec(shape=(1, 2, 3), input_mean=(100.0,), input_std=(50.0,))
    return make_spec(shape=(6,))


def rows_of(spec: DataSpec, num_rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if spec.kind != "image":
        return torch.randn(num_rows, *spec.shape, dtype=torch.float64, generator=generator)
    return (torch.randint(0, 256, (num_rows, *spec.shape), generator=generator).double() - 100) / 50


def context(num_rows: int, progress: float, *, training: bool = True) -> Context:
    return Context(3, 9, progress, torch.arange(num_rows, dtype=torch.int32), training, measure=True)


def sigmoid(values: Any) -> Any:
    return 1 / (1 + np.exp(-values))


def layer_by_hand(family: DBN, index: int) -> tuple[Any, Any, Any]:
    layer = family.layers[index]
    assert isinstance(layer, nn.Linear)
    return tuple(one.detach().numpy() for one in (layer.weight, layer.bias, family.visible_biases[index]))


def centre_by_hand(family: DBN, index: int) -> Any:
    """Hidden units are measured from a half, the lowest ones from their mean."""
    return 0.5 if index else family.centre.numpy()


def data_by_hand(family: DBN, inputs: Tensor, index: int) -> Any:
    """What the layer sees: pixels or standardised inputs, then the means of the layers below."""
    flat = inputs.flatten(1).numpy()
    values = (flat * 50 + 100) / 255 if family.is_image else flat
    for below in range(index):
        weight, bias, _ = layer_by_hand(family, below)
        values = sigmoid((values - centre_by_hand(family, below)) @ weight.T + bias)
    return values


def gibbs_by_hand(family: DBN, index: int, visible: Any, steps: int) -> Any:
    """Hidden units drawn, visible ones drawn or their means, by the numbers of the counter."""
    weight, bias, visible_bias = layer_by_hand(family, index)
    rows, gaussian = torch.arange(len(visible), dtype=torch.int32), index == 0 and not family.is_image
    for step in range(steps):
        draws = counter.uniform(counter.fold(KEY, 2 * step), rows, (len(bias),), torch.float64).numpy()
        drive = (visible - centre_by_hand(family, index)) @ weight.T + bias
        hidden = (draws < sigmoid(drive)).astype(float)
        visible = (hidden - 0.5) @ weight + visible_bias
        visible = visible if gaussian else sigmoid(visible)
        key, shape = counter.fold(KEY, 2 * step + 1), (len(visible_bias),)
        if family.sample_visible and gaussian:
            visible = visible + counter.normal(key, rows, shape, torch.float64).numpy()
        elif family.sample_visible:
            visible = (counter.uniform(key, rows, shape, torch.float64).numpy() < visible).astype(float)
    return visible


def assert_contrastive_divergence(family: DBN, index: int, positive: Any, negative: Any, factor: float) -> None:
    """Hinton 2002: the change of each weight is <v h> of the data less that of the chain; the gradient points away."""
    weight, bias, _ = layer_by_hand(family, index)
    centred = [visible - centre_by_hand(family, index) for visible in (positive, negative)]
    hidden = [sigmoid(visible @ weight.T + bias) for visible in centred]
    products = [(h - 0.5).T @ v / len(v) for h, v in zip(hidden, centred, strict=True)]
    layer = family.layers[index]
    expected = {
        "weight": (layer.weight, products[1] - products[0]),
        "hidden bias": (layer.bias, hidden[1].mean(axis=0) - hidden[0].mean(axis=0)),
        "visible bias": (family.visible_biases[index], negative.mean(axis=0) - positive.mean(axis=0)),
    }
    for name, (parameter, gradient) in expected.items():
        assert isinstance(parameter, nn.Parameter)
        assert parameter.grad is not None
        np.testing.assert_allclose(
            parameter.grad.numpy(), factor * gradient, rtol=1e-9, atol=1e-13, err_msg=name, verbose=True
        )


@pytest.mark.parametrize(
    ("kind", "index", "steps", "sampled"), [*product(("image", "tabular"), (0, 1), (1, 3), (0, 1))]
)
def test_the_gradient_is_contrastive_divergence(
    kind: str, index: int, steps: int, sampled: int, make_spec: MakeSpec
) -> None:
    spec = spec_of(kind, make_spec)
    family = make(spec, gibbs_steps=steps, sample_visible=bool(sampled), pretraining_weight=0.25)
    inputs = rows_of(spec, 7)
    objective = family.objective((inputs, torch.zeros(7).long()), context(7, 0.1 + 0.25 * index))
    objective.loss.backward()
    positive = data_by_hand(family, inputs, index)
    assert_contrastive_divergence(family, index, positive, gibbs_by_hand(family, index, positive, steps), 0.25 * 0.64)
    others = [*family.layers[1 - index].parameters(), family.visible_biases[1 - index], *family.readout.parameters()]
    assert all(one.grad is None for one in others), "one layer has its turn"
    assert objective.buffers == {}


@pytest.mark.parametrize("index", [0, 1])
def test_persistent_chains_go_on_from_step_to_step(index: int, make_spec: MakeSpec) -> None:
    spec = spec_of("image", make_spec)
    family, inputs = make(spec, num_chains=11, gibbs_steps=2, sample_visible=True), rows_of(spec, 7)
    before = family.get_buffer(f"chains_{index}").numpy().copy()
    assert set(np.unique(before)) == {0.0, 1.0}
    objective = family.objective((inputs, torch.zeros(7).long()), context(7, 0.1 + 0.25 * index))
    objective.loss.backward()
    negative = gibbs_by_hand(family, index, before, 2)
    assert_contrastive_divergence(family, index, data_by_hand(family, inputs, index), negative, 0.64)
    assert set(objective.buffers) == {f"chains_{index}"}
    np.testing.assert_allclose(objective.buffers[f"chains_{index}"].numpy(), negative)
    family.update_buffers(objective.buffers)
    np.testing.assert_allclose(family.get_buffer(f"chains_{index}").numpy(), negative)


@pytest.mark.parametrize("kind", ["image", "tabular"])
def test_differences_of_free_energy_are_those_of_the_machine(kind: str, make_spec: MakeSpec) -> None:
    """exp(-free energy) is the sum of exp(-energy) over all hidden states."""
    spec = spec_of(kind, make_spec)
    family, inputs = make(spec), rows_of(spec, 4)
    weight, bias, visible_bias = layer_by_hand(family, 0)
    visible = data_by_hand(family, inputs, 0)
    states = np.array(list(product((0.0, 1.0), repeat=5)))
    alone = np.square(visible - visible_bias).sum(axis=1) / 2 if kind == "tabular" else -visible @ visible_bias
    drive = (visible - centre_by_hand(family, 0)) @ weight.T + bias
    energies = alone[:, None] - drive @ (states - 0.5).T
    found = family.free_energy(0, family.visible(inputs)).detach().numpy()
    np.testing.assert_allclose(found, -np.log(np.exp(-energies).sum(axis=1)), rtol=1e-10)


def test_layers_have_their_turns_then_all_are_tuned(make_spec: MakeSpec) -> None:
    family = make(make_spec(), hidden=[3, 3, 3], pretraining=0.6)
    turns = [family.turn(context(1, progress)) for progress in (0, 0.15, 0.25, 0.35, 0.45, 0.55)]
    expected_turns = [(0, 0.0), (0, 0.75), (1, 0.25), (1, 0.75), (2, 0.25), (2, 0.75)]
    assert turns == [(index, pytest.approx(over)) for index, over in expected_turns]
    assert [family.turn(context(1, progress)) for progress in (0.6, 0.99)] == [None, None]
    assert family.turn(context(1, 0.0, training=False)) is None
    inputs, targets = rows_of(make_spec(), 8), torch.arange(8) % 3
    values = inputs - family.centre
    for layer in family.layers:
        values = torch.sigmoid(layer(values)) - 0.5
    expected = nn.functional.cross_entropy(family.readout(values), targets)
    for given in (context(8, 0.7), context(8, 0.1, training=False)):
        torch.testing.assert_close(family.objective((inputs, targets), given).loss, expected)


def test_a_machine_learns_the_distribution_of_its_data(make_spec: MakeSpec) -> None:
    """Two patterns of six pixels: a chain that starts anywhere ends in one of them."""
    spec = make_spec(shape=(1, 2, 3), input_mean=(0.0,), input_std=(255.0,))
    patterns = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 0]], dtype=torch.float64).view(2, 1, 2, 3)
    rows = patterns.repeat(16, 1, 1, 1)
    family = make(spec, hidden=[6], num_chains=64, sample_visible=True, gibbs_steps=2)
    optimizer = torch.optim.Adam(family.parameters(), lr=0.03)
    hits = torch.zeros(2, dtype=torch.float64)
    for step in range(300):
        given = Context(0, step, 0.0, torch.arange(32, dtype=torch.int32), training=True, measure=False)
        objective = family.objective((rows, torch.zeros(32).long()), given)
        optimizer.zero_grad()
        objective.loss.backward()
        optimizer.step()
        family.update_buffers(objective.buffers)
        if step >= 150:  # persistent chains wander from one to the other
            same = family.get_buffer("chains_0").unsqueeze(1) == patterns.flatten(1)
            hits += same.all(dim=2).double().mean(dim=0) / 150
    assert float(hits.min()) > 0.25
    assert float(hits.sum()) > 0.7


def test_it_trains_with_momentum(make_spec: MakeSpec) -> None:
    """torch's fused SGD cannot begin with some parameters later than with others."""
    family = make(make_spec())
    family.automatic_optimization = False
    experiment = experiments.compose(["family=dbn", "data=wine", "optimizer=sgd"])
    family.recipe = experiments.build_recipe(experiment, num_steps=6, log_every_n_steps=1, gradient_clip_val=None)
    optimizer = family.configure_optimizers()
    inputs, targets = rows_of(make_spec(shape=(4,)), 8), torch.arange(8) % 3
    for step in range(6):
        optimizer.zero_grad()
        family.objective((inputs, targets), context(8, step / 6)).loss.backward()
        before = family.layers[1].weight.clone()  # type: ignore[operator, union-attr]
        optimizer.step()
        assert torch.equal(before, family.layers[1].weight) is (step in (0, 1)), "it waits for its turn"  # type: ignore[arg-type]


def test_without_pretraining_nothing_generative_is_trained(make_spec: MakeSpec) -> None:
    family = make(make_spec(), pretraining=0.0)
    assert [name for name, one in family.named_parameters() if not one.requires_grad] == [
        "visible_biases.0",
        "visible_biases.1",
    ]
    assert family.turn(context(1, 0.0)) is None


def test_a_start_knows_how_often_a_pixel_is_on(make_spec: MakeSpec) -> None:
    spec = spec_of("image", make_spec)
    family, inputs = make(spec), rows_of(spec, 40)
    family.start((inputs, torch.zeros(40).long()))
    brightest = (inputs * 50 + 100).max()
    expected = ((inputs * 50 + 100) / brightest).flatten(1).mean(dim=0)
    torch.testing.assert_close(torch.sigmoid(family.visible_biases[0]), expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(family.centre, expected)
    shown = family.exhibits((inputs, torch.zeros(40).long()))
    assert torch.equal(shown["weight_filters"]["filters"].flatten(1), family.layers[0].weight)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden": []}, r"family\.hidden needs at least one layer of at least one unit, got \[\]"),
        ({"pretraining": 1.0}, r"family\.pretraining .* needs 0 <= pretraining < 1, got 1\.0"),
        ({"pretraining_weight": 0.0}, r"family\.pretraining_weight needs a number above 0, got 0\.0"),
        ({"gibbs_steps": 0}, r"gibbs_steps=0, num_chains=0; try gibbs_steps=1 and num_chains=0"),
        ({"augmentation": STILL | {"degrees": 5.0}}, r"family\.augmentation needs images, got made"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str, make_spec: MakeSpec) -> None:
    with pytest.raises(ConfigError, match=message):
        make(make_spec(), **settings)
