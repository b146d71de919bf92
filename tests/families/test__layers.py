"""The random layers that families share."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from neurofleet import counter
from neurofleet.families._layers import Dropout, RandomAffine, RandomErasing, fingerprints, squared_distances
from neurofleet.spec import DataSpec
from neurofleet.steps import Context

MakeContext = Callable[..., Context]


def fixed(monkeypatch: pytest.MonkeyPatch, *draws: float) -> None:
    """Every row draws these: rotation, scale, shift along x, shift along y, from -1 to 1."""
    row = (torch.tensor(draws, dtype=torch.float64) + 1) / 2
    monkeypatch.setattr(counter, "uniform", lambda key, rows, shape, dtype: row.to(dtype).expand(len(rows), 4))


def picture() -> torch.Tensor:
    return torch.randn(3, 2, 8, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_affine_at_zero_or_outside_training_is_the_identity(
    make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = picture()
    still = RandomAffine(degrees=0.0, scale=0.0, translation=0.0, site=0)
    moving = RandomAffine(degrees=30.0, scale=0.2, translation=0.2, site=0)
    assert still(images, make_context(3)) is images
    assert moving(images, make_context(3, training=False)) is images
    fixed(monkeypatch, 0, 0, 0, 0)
    torch.testing.assert_close(moving(images, make_context(3)), images, rtol=1e-12, atol=1e-12)


def test_affine_shifts_by_whole_pixels(make_context: MakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    images = picture()
    fixed(monkeypatch, 0, 0, 0, -1)
    moved = RandomAffine(degrees=0.0, scale=0.0, translation=0.25, site=0)(images, make_context(3))
    torch.testing.assert_close(moved[:, :, 2:], images[:, :, :-2], rtol=1e-12, atol=1e-12)
    fixed(monkeypatch, 0, 0, 1, 0)
    moved = RandomAffine(degrees=0.0, scale=0.0, translation=0.2, site=0)(images, make_context(3))
    torch.testing.assert_close(moved[..., :8], images[..., 2:], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(moved[..., 8:], images[..., -1:].expand(-1, -1, -1, 2), rtol=1e-12, atol=1e-12)


def test_affine_turns_a_square_by_a_right_angle(make_context: MakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    images = picture()[..., :8]
    fixed(monkeypatch, 1, 0, 0, 0)
    turned = RandomAffine(degrees=90.0, scale=0.0, translation=0.0, site=0)(images, make_context(3))
    torch.testing.assert_close(turned, images.rot90(1, (2, 3)), rtol=1e-10, atol=1e-10)


def test_affine_turns_wide_images_without_shear(make_context: MakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ring stays a ring: distances are measured in pixels, whatever the image's proportions."""
    y, x = torch.meshgrid(torch.arange(40.0) - 19.5, torch.arange(80.0) - 39.5, indexing="ij")
    ring = torch.exp(-((x.square() + y.square()).sqrt() - 10).square() / 8).double().expand(1, 1, 40, 80)
    fixed(monkeypatch, 1, 0, 0, 0)
    turned = RandomAffine(degrees=45.0, scale=0.0, translation=0.0, site=0)(ring, make_context(1))
    assert (turned - ring).abs().max() < 0.05


def test_affine_draws_of_rows_stay_in_bounds_and_differ(make_context: MakeContext) -> None:
    images = torch.arange(32.0).view(1, 1, 1, 32).expand(500, 1, 32, 32)
    moved = RandomAffine(degrees=0.0, scale=0.0, translation=0.125, site=4)(images, make_context(500))
    shifts = moved[:, 0, 16, 16] - 16  # the pixel's value is its x
    assert float(shifts.abs().max()) <= 4
    assert float(shifts.max()) > 3.8
    assert float(shifts.min()) < -3.8
    assert abs(float(shifts.mean())) < 5 * 4 / math.sqrt(3 * 500)
    parts = [
        RandomAffine(degrees=0.0, scale=0.0, translation=0.125, site=4)(images[:n], make_context(n, first_row=first))
        for first, n in ((0, 200), (200, 300))
    ]
    assert torch.equal(torch.cat(parts), moved)


def test_erasing_leaves_all_but_a_square(make_context: MakeContext, make_spec: Callable[..., DataSpec]) -> None:
    images = picture().abs()[:1].expand(200, -1, -1, -1) + 0.1
    erase = RandomErasing(0.5, make_spec(shape=(2, 8, 10)), site=3)
    assert erase(images, make_context(200, training=False)) is images
    seen = erase(images, make_context(200))
    gone = seen == 0
    assert torch.equal(seen[~gone], images[~gone])
    assert torch.equal(gone[:, 0], gone[:, 1]), "of all channels"
    down, across = gone[:, 0].any(2), gone[:, 0].any(1)
    assert torch.equal(gone[:, 0], down.unsqueeze(2) & across.unsqueeze(1)), "a rectangle"
    for side in (down, across):
        assert side.sum(1).max() == 4, "half of the shorter side"
        assert side.sum(1).min() == 2, "half of the square where its middle lies on the border"
        assert side.any(0).all(), "anywhere"
    assert len({tuple(one.flatten().tolist()) for one in gone}) > 50


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.9])
def test_dropout_keeps_the_mean(rate: float, make_context: MakeContext) -> None:
    inputs = torch.ones(200, 500, dtype=torch.float64)
    outputs = Dropout(rate, site=1)(inputs, make_context(200))
    assert set(outputs.unique().tolist()) <= {0.0, 1 / (1 - rate)}
    assert float(outputs.mean()) == pytest.approx(1, abs=5 * (rate / (1 - rate) / 1e5) ** 0.5 + 1e-15)
    for context in (None, make_context(200, training=False)):
        assert Dropout(rate, site=1)(inputs, context) is inputs


def test_rows_have_numbers_of_their_own() -> None:
    inputs = torch.randn(2000, 3, 4, generator=torch.Generator().manual_seed(0))
    inputs[5, 1:] = torch.nan
    found = fingerprints(inputs)
    assert found.dtype is torch.int32
    assert len(found.unique()) == 2000
    assert torch.equal(fingerprints(inputs[3:9]), found[3:9])
    assert torch.equal(fingerprints(inputs.double()), found)
    tokens = torch.randint(0, 50, (500, 6), generator=torch.Generator().manual_seed(0))
    assert len(fingerprints(tokens).unique()) > 495


def test_distances_are_not_rounded_away_under_autocast() -> None:
    rows = 100 + torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    wanted = torch.cdist(rows.double(), rows.double()).square()
    with torch.autocast("cpu", torch.bfloat16):
        found = squared_distances(rows, rows)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=0.2)  # of squares that are 80,000
