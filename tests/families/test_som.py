"""The self-organizing map: its gradient step is Kohonen's update, written by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from neurofleet import experiment as experiments
from neurofleet.errors import ConfigError
from neurofleet.families.som import SOM, grid_places, principal_spans
from neurofleet.spec import DataSpec
from neurofleet.steps import Context

MakeSpec = Callable[..., DataSpec]
MakeContext = Callable[..., Context]


def make(spec: DataSpec, **settings: Any) -> SOM:
    chosen: dict[str, Any] = {
        "rows": 4,
        "columns": 5,
        "grid": "rectangular",
        "neighbourhood": "gaussian",
        "start_radius": 2.0,
        "end_radius": 0.5,
    }
    return SOM(spec=spec, **chosen | settings).double()


def rows(num_rows: int, *shape: int) -> Tensor:
    return torch.randn(num_rows, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def place(unit: int, columns: int, grid: str) -> np.ndarray:
    row, column = divmod(unit, columns)
    return np.array([row * np.sqrt(3) / 2, column + 0.5 * (row % 2)] if grid == "hexagonal" else [row, column])


@pytest.mark.parametrize("grid", ["rectangular", "hexagonal"])
@pytest.mark.parametrize("neighbourhood", ["gaussian", "bubble"])
def test_a_step_of_plain_descent_is_kohonens_update(
    grid: str, neighbourhood: str, make_spec: MakeSpec, make_context: MakeContext
) -> None:
    """Row after row in numpy: every unit moves towards it by rate / B times the neighbourhood to the winner."""
    family, inputs = make(make_spec(shape=(3,)), grid=grid, neighbourhood=neighbourhood), rows(7, 3)
    units = family.units.detach().numpy().copy()
    radius = 1.0  # half way of the exponential decay from 2 to 0.5
    moved = units.copy()
    for row in inputs.numpy():
        winner = int(np.argmin([np.linalg.norm(row - unit) for unit in units]))
        for unit in range(20):
            apart = np.linalg.norm(place(winner, 5, grid) - place(unit, 5, grid))
            near = np.exp(-(apart**2) / (2 * radius**2)) if neighbourhood == "gaussian" else float(apart <= 1.0 + 1e-6)
            moved[unit] += 0.8 / 7 * near * (row - units[unit])
    optimizer = torch.optim.SGD(family.parameters(), lr=0.8)
    family.objective((inputs, torch.zeros(7)), make_context(7)).loss.backward()
    optimizer.step()
    np.testing.assert_allclose(family.units.detach().numpy(), moved, rtol=1e-10, atol=1e-12)


def test_where_all_units_win_alike_a_step_is_the_batch_map(make_spec: MakeSpec, make_context: MakeContext) -> None:
    """w = sum(h x) / sum(h): here bubbles of radius below 1 and two rows for every unit, lr = B / 2."""
    family = make(make_spec(shape=(3,)), neighbourhood="bubble", start_radius=0.9, end_radius=0.9)
    units = family.units.detach().clone()
    inputs = torch.cat([units + 1e-3 * rows(20, 3), units - 1e-3 * rows(20, 3).flip(0)])
    optimizer = torch.optim.SGD(family.parameters(), lr=20.0)
    family.objective((inputs, torch.zeros(40)), make_context(40)).loss.backward()
    optimizer.step()
    torch.testing.assert_close(family.units.detach(), (inputs[:20] + inputs[20:]) / 2, rtol=1e-9, atol=1e-12)


def test_held_out_rows_are_seen_with_the_last_radius(make_spec: MakeSpec) -> None:
    family, batch, row_numbers = make(make_spec(shape=(3,))), (rows(7, 3), torch.zeros(7)), torch.arange(7)
    losses = [
        family.objective(batch, Context(0, 0, progress, row_numbers, training, measure=True)).loss.item()
        for progress, training in ((0.0, True), (0.5, True), (1.0, True), (0.0, False))
    ]
    assert losses[0] > losses[1] > losses[2] == losses[3]


@pytest.mark.parametrize(("grid", "numbers"), [("rectangular", [3, 5, 8]), ("hexagonal", [2, 3, 4, 5, 6])])
def test_direct_neighbours(grid: str, numbers: list[int], make_spec: MakeSpec) -> None:
    family = make(make_spec(shape=(3,)), grid=grid)
    reach = {"rectangular": 2.1, "hexagonal": 1.1}[grid]
    near = ((family.steps_UU < reach) & (family.steps_UU > 0)).sum(1)
    assert sorted({*near.tolist()}) == numbers
    assert grid_places(4, 5, grid).shape == (20, 2)


def test_errors_by_hand(make_spec: MakeSpec) -> None:
    """A line of four units that is folded: the ends lie side by side among the inputs, not on the grid."""
    family = make(make_spec(shape=(1,)), rows=1, columns=4)
    with torch.no_grad():
        family.units.copy_(torch.tensor([[0.0], [5.0], [9.0], [1.0]]))
    errors = family.errors(torch.tensor([[0.25], [6.0], [9.5]], dtype=torch.float64))
    assert errors["quantization_error"].tolist() == pytest.approx([0.25, 1.0, 0.5])
    assert errors["topographic_error"].tolist() == [True, False, False]
    assert family(torch.tensor([[6.0]], dtype=torch.float64)).tolist()[0] == pytest.approx([0.0, 1.0, 1.0])


def test_features_by_hand(make_spec: MakeSpec) -> None:
    """Nearer than the mean, in deviations; neither the scale of the inputs nor the row's place on a unit matters."""
    family, inputs = make(make_spec(shape=(3,))), rows(6, 3)
    distances = np.linalg.norm(inputs.numpy()[:, None] - family.units.detach().numpy(), axis=2)
    nearer = (distances.mean(1, keepdims=True) - distances) / distances.std(1, keepdims=True)
    features = family.features(inputs).detach()
    np.testing.assert_allclose(features.numpy(), np.maximum(nearer, 0), rtol=1e-4, atol=1e-12)
    with torch.no_grad():
        family.units.mul_(100)
    torch.testing.assert_close(family.features(100 * inputs), features, rtol=1e-4, atol=1e-12)
    family.features(family.units.detach()).sum().backward()
    assert family.units.grad is not None
    assert bool(torch.isfinite(family.units.grad).all())


def test_it_starts_on_the_plane_of_principal_components(make_spec: MakeSpec) -> None:
    inputs = rows(300, 4) * torch.tensor([1.0, 5.0, 0.1, 2.0]) + 7.0
    family = make(make_spec(shape=(4,)), rows=3, columns=5)
    family.start((inputs, torch.zeros(300)))
    grid = family.units.detach().view(3, 5, 4)
    mean = inputs.mean(0)
    _, singular, right = torch.linalg.svd(inputs - mean, full_matrices=False)
    torch.testing.assert_close(grid[1, 2], mean)
    for corner, middle, component in ((grid[1, 4], grid[1, 2], 0), (grid[2, 2], grid[1, 2], 1)):
        expected = 2 * singular[component] / 300**0.5 * right[component]
        assert torch.allclose(corner - middle, expected) or torch.allclose(corner - middle, -expected)


@pytest.mark.parametrize(("num_rows", "num_columns"), [(1, 5), (5, 1)])
def test_a_line_of_units_starts_on_the_first_component(num_rows: int, num_columns: int, make_spec: MakeSpec) -> None:
    inputs = rows(300, 4) * torch.tensor([1.0, 5.0, 0.1, 2.0]) + 7.0
    family = make(make_spec(shape=(4,)), rows=num_rows, columns=num_columns)
    family.start((inputs, torch.zeros(300)))
    first = principal_spans(inputs - inputs.mean(0))[0]
    wanted = inputs.mean(0) + torch.linspace(-2, 2, 5, dtype=torch.float64).unsqueeze(1) * first
    torch.testing.assert_close(family.units.detach(), wanted)


def test_its_own_optimizer_is_kohonens_rule(make_spec: MakeSpec, make_context: MakeContext) -> None:
    """Twice, since momentum shows in the second step."""
    composed = experiments.compose(["family=som", "data=digits"])
    recipe = experiments.build_recipe(composed, num_steps=2, log_every_n_steps=1, gradient_clip_val=None)
    family, inputs = make(make_spec(shape=(3,))), rows(7, 3)
    optimizer = recipe.optimizer(list(family.parameters()))
    for _ in range(2):
        before = family.units.detach().clone()
        optimizer.zero_grad()
        family.objective((inputs, torch.zeros(7)), make_context(7)).loss.backward()
        gradient = family.units.grad
        assert gradient is not None
        optimizer.step()
        torch.testing.assert_close(family.units.detach(), before - composed["optimizer"]["lr"] * gradient)


def test_few_rows_with_many_features_have_the_same_components() -> None:
    wide = rows(6, 40)
    wide = wide - wide.mean(0)
    _, singular, right = torch.linalg.svd(wide, full_matrices=False)
    spans = principal_spans(wide)
    torch.testing.assert_close(spans.norm(dim=1), singular[:2] / 6**0.5)
    torch.testing.assert_close((spans[0] @ right[0]).abs(), spans[0].norm())
    assert principal_spans(rows(5, 1)).shape == (2, 1)
    assert bool(torch.isfinite(principal_spans(torch.zeros(1, 3))).all())


@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_exhibits_count_and_label(task: str, make_spec: MakeSpec) -> None:
    family = make(make_spec(task=task, shape=(2,), input_mean=(1.0, 0.0), input_std=(2.0, 1.0)), rows=1, columns=3)
    with torch.no_grad():
        family.units.copy_(torch.tensor([[0.0, 0.0], [3.0, 0.0], [3.0, 4.0]]))
    inputs = torch.tensor([[0.1, 0.0], [3.0, 0.1], [3.0, 0.2], [2.9, 0.0]], dtype=torch.float64)
    shown = family.exhibits((inputs, torch.tensor([2, 1, 0, 1])))
    assert shown["hit_map"]["hits"].tolist() == [[1, 3, 0]]
    assert ("labels" in shown["hit_map"]) is (task == "multiclass")
    if task == "multiclass":
        assert shown["hit_map"]["labels"].tolist() == [[2, 1, 0]]
    assert shown["u_matrix"]["distances"].tolist() == [[3.0, 3.5, 4.0]]
    assert shown["component_planes"]["planes"].tolist() == [[[1.0, 7.0, 7.0]], [[0.0, 0.0, 4.0]]]
    assert not shown["u_matrix"]["hexagonal"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rows": 0}, r"SOM needs at least two units, got rows=0, columns=5"),
        ({"rows": 1, "columns": 1}, r"SOM needs at least two units, got rows=1, columns=1"),
        ({"grid": "round"}, r"family\.grid needs rectangular or hexagonal, got 'round'"),
        ({"neighbourhood": "box"}, r"family\.neighbourhood needs gaussian or bubble, got 'box'"),
        ({"end_radius": 3.0}, r"needs 0 < end_radius <= start_radius, got end_radius=3.0, start_radius=2.0"),
        ({"end_radius": 0.0}, r"needs 0 < end_radius <= start_radius, got end_radius=0.0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str, make_spec: MakeSpec) -> None:
    with pytest.raises(ConfigError, match=message):
        make(make_spec(shape=(3,)), **settings)
