"""Gaussian units by hand, and where they start: k-means, nearest neighbours, the closed form of ridge regression."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from neurofleet.errors import ConfigError, MismatchError
from neurofleet.families._base import Recipe
from neurofleet.families.rbf import RBF, k_means, nearest_distances
from neurofleet.schedule import Constant
from neurofleet.spec import DataSpec

MakeSpec = Callable[..., DataSpec]


def make(spec: DataSpec, seed: int = 0, **settings: Any) -> RBF:
    chosen: dict[str, Any] = {
        "centres": 5,
        "width": 1.5,
        "shared_width": False,
        "ridge": 1e-3,
        "margin": 8.0,
        "sample": 1000,
        "label_smoothing": 0.0,
    }
    family = RBF(spec=spec, **chosen | settings).double()
    family.recipe = Recipe(torch.optim.SGD, Constant(warmup=0.0), seed, 1, 1, None)  # type: ignore[arg-type]
    return family


def rows(num_rows: int, *shape: int, seed: int = 1) -> Tensor:
    return torch.randn(num_rows, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_forward_by_hand(make_spec: MakeSpec) -> None:
    family, inputs = make(make_spec(shape=(4,))), rows(3, 4)
    expected = torch.zeros(3, 3, dtype=torch.float64)
    for row in range(3):
        units = [
            torch.exp(-((inputs[row] - family.centres[unit]) ** 2).sum() / (2 * family.log_widths[unit].exp() ** 2))
            for unit in range(5)
        ]
        expected[row] = family.readout.weight @ torch.stack(units) + family.readout.bias
    torch.testing.assert_close(family(inputs), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("task", ["multiclass", "binary", "multilabel", "regression"])
def test_the_readout_starts_at_the_closed_form(task: str, make_spec: MakeSpec) -> None:
    """Ridge regression with an intercept that is not penalised, as one least-squares problem of numpy."""
    spec = make_spec(task=task, shape=(4,), num_outputs=1 if task == "binary" else 3)
    family, inputs = make(spec), rows(5000, 4)  # more rows than one part of the sums holds
    if task == "multiclass":
        targets = torch.arange(5000) % 3
        aims = torch.where(torch.eye(3, dtype=torch.float64)[targets] > 0, 4.0, -4.0)
    elif task == "regression":
        targets = aims = rows(5000, 3, seed=2)
    else:
        targets = (rows(5000, spec.num_outputs, seed=2) > 0.3).double()
        aims = torch.where(targets > 0, 4.0, -4.0)
    family.start((inputs, targets))
    with torch.no_grad():
        units = family.units(inputs).numpy()
    design = np.hstack([units, np.ones((5000, 1))])
    penalty = np.sqrt(1e-3 * 5000) * np.eye(5, 6)
    solution, *_ = np.linalg.lstsq(
        np.vstack([design, penalty]), np.vstack([aims.numpy(), np.zeros((5, spec.num_outputs))]), rcond=None
    )
    np.testing.assert_allclose(family.readout.weight.detach().numpy(), solution[:5].T, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(family.readout.bias.detach().numpy(), solution[5], rtol=1e-7, atol=1e-9)


def test_widths_start_at_the_distance_of_the_nearest_centre(make_spec: MakeSpec) -> None:
    family, inputs = make(make_spec(shape=(4,)), width=1.7), rows(50, 4)
    family.start((inputs, torch.arange(50) % 3))
    between = torch.cdist(family.centres.detach(), family.centres.detach()) + torch.diag(torch.full((5,), 1e9))
    torch.testing.assert_close(family.log_widths.detach().exp(), 1.7 * between.min(1).values.double())


def test_a_shared_width_starts_at_the_mean(make_spec: MakeSpec) -> None:
    family, inputs = make(make_spec(shape=(4,)), width=1.7, shared_width=True), rows(50, 4)
    family.start((inputs, torch.arange(50) % 3))
    expected = 1.7 * nearest_distances(family.centres.detach()).mean()
    torch.testing.assert_close(family.log_widths.detach().exp(), expected.expand(5))


def test_twins_get_a_width() -> None:
    twins = torch.tensor([[0.0], [0.0], [10.0]], dtype=torch.float64)
    assert nearest_distances(twins).tolist() == pytest.approx([1 / 3, 1 / 3, 10.0])
    assert nearest_distances(torch.zeros(3, 2)).tolist() == [1.0, 1.0, 1.0]


def test_k_means_finds_clusters_and_rests() -> None:
    middles = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0], [9.0, 9.0]], dtype=torch.float64)
    points = (middles.unsqueeze(1) + rows(30, 2)).flatten(0, 1)
    for seed in range(5):
        centres = k_means(points, 4, seed)
        nearest = torch.cdist(points, centres).argmin(1)
        assert len({*nearest[::30].tolist()}) == 4, "one centre in each"
        for unit in range(4):  # the fixed point of Lloyd's algorithm: each centre is the mean of its rows
            torch.testing.assert_close(centres[unit], points[nearest == unit].mean(0))


def test_few_rows_are_filled_up_with_points_between_them(make_spec: MakeSpec) -> None:
    inputs = torch.tensor([[0.0] * 4, [1.0] * 4], dtype=torch.float64)
    family = make(make_spec(shape=(4,)), centres=8)
    family.start((inputs, torch.tensor([0, 1])))
    centres = family.centres.detach()
    torch.testing.assert_close(centres, centres[:, :1].expand(-1, 4))
    assert centres.min() == 0.0
    assert centres.max() == 1.0
    assert len({*centres[:, 0].tolist()}) > 4
    assert bool(torch.isfinite(family(inputs)).all())
    alone = make(make_spec(shape=(4,)), centres=8)
    alone.start((inputs[:1], torch.tensor([0])))
    assert bool(torch.isfinite(alone(inputs)).all())


def test_a_start_is_decided_by_the_seed_and_sees_a_sample(make_spec: MakeSpec) -> None:
    batch = rows(200, 4), torch.arange(200) % 3
    first, again, other = (make(make_spec(shape=(4,)), seed=seed, sample=20) for seed in (1, 1, 2))
    for family in (first, again, other):
        family.start(batch)
    assert torch.equal(first.centres, again.centres)
    assert not torch.equal(first.centres, other.centres)
    seen = first._sample(batch[0], 1)
    assert seen.shape == (20, 4)
    assert all(bool((batch[0] == row).all(1).any()) for row in seen)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"centres": 2}, r"RBF needs centres >= classes, got centres=2, classes=3; raise family\.centres to .* 3"),
        ({"centres": 20, "sample": 10}, r"needs sample >= centres, got sample=10; raise family\.sample to 20"),
        ({"width": 0.0}, r"family\.width needs a number above 0, got 0"),
        ({"ridge": 0.0}, r"family\.ridge needs a number above 0, got 0"),
        ({"margin": -1.0}, r"family\.margin needs a number above 0, got -1"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str, make_spec: MakeSpec) -> None:
    with pytest.raises(ConfigError, match=message):
        make(make_spec(shape=(4,)), **settings)


def test_one_centre_has_no_neighbour(make_spec: MakeSpec) -> None:
    with pytest.raises(ConfigError, match=r"needs a neighbour for each centre, got centres=1; set family\.centres=2"):
        make(make_spec(task="regression", shape=(4,)), centres=1)


def test_text_is_refused(make_spec: MakeSpec) -> None:
    spec = make_spec(shape=(4,), kind="text", tokenizer="words", vocabulary=("a",))
    with pytest.raises(MismatchError, match="RBF needs data of kind image or sequence or tabular, got made"):
        make(spec)
