"""The counter-based generator: the same numbers everywhere, and numbers that look random along every coordinate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from neurofleet import counter

ROWS = torch.arange(64, dtype=torch.int32)


def as_tensor(key: int) -> Tensor:
    return torch.tensor(key, dtype=torch.int32)


def correlation(first: Tensor, second: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([first.flatten().double(), second.flatten().double()]))[0, 1])


# One function, however its key is given.


@pytest.mark.parametrize("key", [0, 1, 7, 2**31 - 1, -1, -(2**31)])
@pytest.mark.parametrize("words", [(), (0,), (3, 2), (123_456_789, 5), (-1, 0)])
def test_a_tensor_key_gives_what_an_int_key_gives(key: int, words: tuple[int, ...]) -> None:
    folded = counter.fold(key, *words)
    assert isinstance(folded, int)
    assert -(2**31) <= folded < 2**31
    assert int(counter.fold(as_tensor(key), *words)) == folded
    assert int(counter.fold(key, *(as_tensor(word) for word in words))) == folded
    for draw in (counter.uniform, lambda *args: counter.bernoulli(*args, 0.3)):
        assert torch.equal(draw(as_tensor(folded), ROWS, (3, 5)), draw(folded, ROWS, (3, 5)))


def test_a_stack_of_trials_draws_what_each_draws_alone() -> None:
    seeds = [0, 1, 41, 2**31 - 1]
    steps = [5, 5, 9, 0]
    rates = [0.9, 0.5, 1e-3, 1.0]

    def trial(seed: Tensor, step: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
        key = counter.fold(seed, step, 2)
        return counter.uniform(key, ROWS, (33,)), counter.bernoulli(key, ROWS, (33,), rate)

    stacked = torch.func.vmap(trial)(
        torch.tensor(seeds, dtype=torch.int32),
        torch.tensor(steps, dtype=torch.int32),
        torch.tensor(rates, dtype=torch.float64),
    )
    for place, (seed, step, rate) in enumerate(zip(seeds, steps, rates, strict=True)):
        key = counter.fold(seed, step, 2)
        assert torch.equal(stacked[0][place], counter.uniform(key, ROWS, (33,)))
        assert torch.equal(stacked[1][place], counter.bernoulli(key, ROWS, (33,), rate))


def test_what_is_cached_under_vmap_or_inference_serves_training() -> None:
    counter._columns.cache_clear()
    with torch.inference_mode():
        inside = counter.uniform(3, ROWS, (17,))
    stacked = torch.func.vmap(lambda seed: counter.uniform(seed, ROWS, (18,)))(torch.tensor([3], dtype=torch.int32))
    weight = torch.ones(17, requires_grad=True)
    (weight * counter.uniform(3, ROWS, (17,))).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, inside.sum(0))
    assert torch.equal(stacked[0], counter.uniform(3, ROWS, (18,)))


def test_rows_drawn_in_parts_equal_the_whole() -> None:
    whole = counter.uniform(11, ROWS, (4, 3))
    parts = [counter.uniform(11, part, (4, 3)) for part in ROWS.split([1, 20, 43])]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(counter.uniform(11, ROWS.flip(0), (4, 3)), whole.flip(0))
    assert whole.shape == (64, 4, 3)


def test_first_values_are_pinned() -> None:
    """Stored runs resume, and golden losses hold, only while these numbers stay."""
    assert [counter.fold(0, 0, 0), counter.fold(1, 2, 3), counter.fold(7)] == [-1919694373, -940239664, 7]
    assert (counter.uniform(7, ROWS[:2], (3,)) * 2**24).int().tolist() == [
        [6847077, 8664937, 6612192],
        [11042037, 9590059, 1484091],
    ]
    assert orders(7, size=8)[0].tolist() == [7, 2, 0, 5, 6, 1, 4, 3]


def orders(*keys: Any, size: int) -> Tensor:
    return counter.permutations(torch.tensor(keys, dtype=torch.int32), size)


# What the numbers look like.


def chi_square(counts: Tensor) -> float:
    """Standard score of Pearson's statistic against equal probabilities."""
    expected = counts.sum() / counts.numel()
    degrees = counts.numel() - 1
    return float(((counts - expected).square() / expected).sum() - degrees) / (2 * degrees) ** 0.5


@pytest.mark.parametrize("shape", [(1000,), (7,), (1,)], ids=str)
def test_uniform_is_uniform(shape: tuple[int, ...]) -> None:
    rows = torch.arange(200_000 // shape[0], dtype=torch.int32)
    for key in (0, 1, 123_456):
        draws = counter.uniform(key, rows, shape, torch.float64).flatten()
        assert float(draws.min()) >= 0
        assert float(draws.max()) < 1
        deviations = 5 / draws.numel() ** 0.5  # five standard errors of the standardised moments
        assert abs(float(draws.mean()) - 0.5) * 12**0.5 < deviations
        assert abs(float(draws.var()) * 12 - 1) < deviations
        assert abs(chi_square(torch.histc(draws, bins=256, min=0, max=1))) < 5
        low_bits = (draws * 2**24).long() % 256  # the least significant of the 24 bits are random too
        assert abs(chi_square(torch.bincount(low_bits, minlength=256).double())) < 5


def test_pairs_are_independent_along_every_coordinate() -> None:
    """Neighbours in row, column, site, step and seed, as many pairs as 256x256 draws; 0.02 is five standard errors."""
    rows = torch.arange(256, dtype=torch.int32)
    draws = counter.uniform(counter.fold(5, 10, 0), rows, (256,))
    assert abs(correlation(draws[:-1], draws[1:])) < 0.02
    assert abs(correlation(draws[:, :-1], draws[:, 1:])) < 0.02
    assert abs(correlation(draws[:-1, 1:], draws[1:, :-1])) < 0.02
    for coordinates in [(6, 10, 0), (5, 11, 0), (5, 10, 1), (10, 5, 0), (0, 5, 10)]:
        other = counter.uniform(counter.fold(*coordinates), rows, (256,))
        assert abs(correlation(draws, other)) < 0.02, coordinates
        joint = torch.histogramdd(torch.stack([draws.flatten(), other.flatten()], 1), bins=[16, 16]).hist
        assert abs(chi_square(joint)) < 5, coordinates


def test_no_two_seeds_share_a_step() -> None:
    """Keys of (seed, step) are all different; one hash in 2**32 may still collide by chance, 1.5 of 160,000 do."""
    keys = [counter.fold(seed, step) for seed in range(40) for step in range(4000)]
    assert len(keys) - len(set(keys)) < 12
    words = {(counter.fold(seed, step), (seed, step)) for seed in range(8) for step in range(1000)}
    assert len({key for key, _ in words}) == 8000


# What is made of them.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_is_equal_in_every_dtype(dtype: torch.dtype) -> None:
    exact = counter.uniform(9, ROWS, (500,), torch.float64)
    draws = counter.uniform(9, ROWS, (500,), dtype)
    assert draws.dtype is dtype
    assert torch.equal(draws.double(), exact)


EDGES = [-(2**31), -(2**31) + 255, -(2**31) + 256, -1, 0, 255, 256, 2**31 - 257, 2**31 - 256, 2**31 - 1]
PROBABILITIES = [0.0, 2**-25, 2**-24, 1e-7, 0.1, 0.5, 0.5 + 2**-30, 0.9, 1 - 2**-23, 1 - 2**-24, 1 - 2**-25, 1.0]


@pytest.mark.parametrize("probability", PROBABILITIES)
def test_bernoulli_is_the_comparison_of_uniform(probability: float, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = torch.tensor(probability, dtype=torch.float64)
    draws = counter.uniform(4, ROWS, (5000,), torch.float64)
    assert torch.equal(counter.bernoulli(4, ROWS, (5000,), probability), draws < probability)
    assert torch.equal(counter.bernoulli(4, ROWS, (5000,), exact), draws < probability)
    # The words that chance hardly meets: around both ends, the middle, and the threshold itself.
    edge = round((probability - 0.5) * 2**32)
    words = [word for word in [*EDGES, edge - 257, edge - 1, edge, edge + 1, edge + 256] if -(2**31) <= word < 2**31]
    monkeypatch.setattr(counter, "_words", lambda *_: torch.tensor(words, dtype=torch.int32))
    draws = counter.uniform(0, ROWS, (), torch.float64)
    assert torch.equal(counter.bernoulli(0, ROWS, (), probability), draws < probability)
    assert torch.equal(counter.bernoulli(0, ROWS, (), exact), draws < probability)


def test_bernoulli_happens_as_often_as_it_says() -> None:
    rows = torch.arange(1000, dtype=torch.int32)
    for probability in (0.001, 0.25, 0.8):
        rate = float(counter.bernoulli(1, rows, (1000,), probability).double().mean())
        assert abs(rate - probability) < 5 * (probability * (1 - probability) / 1e6) ** 0.5


@pytest.mark.parametrize("size", [1, 2, 1257, 65_537])
def test_permutation_is_one(size: int) -> None:
    found = orders(*(counter.fold(0, -1, epoch) for epoch in range(3)), size=size)
    for index, order in enumerate(found):
        assert torch.equal(order, orders(counter.fold(0, -1, index), size=size)[0]), (
            "each is a function of its key alone"
        )
        assert order.dtype is torch.int64
        assert torch.equal(order.sort().values, torch.arange(size))
    if size > 2:
        assert not torch.equal(found[0], found[1])
        # Neither order says anything of the other, or of the rows' own order; five standard errors.
        for first, second in [(found[0], found[1]), (found[0], torch.arange(size)), (found[1], found[2])]:
            assert abs(correlation(first, second)) < 5 / size**0.5


def test_every_row_comes_first_about_as_often() -> None:
    first = orders(*(counter.fold(3, -1, epoch) for epoch in range(4000)), size=10)[:, 0]
    assert abs(chi_square(torch.bincount(first, minlength=10).double())) < 5


# Normal numbers.


def test_normal_numbers_have_the_moments_and_tails_of_the_normal_distribution() -> None:
    rows = torch.arange(4000, dtype=torch.int32)
    draws = counter.normal(5, rows, (250,), torch.float64)
    assert draws.shape == (4000, 250)
    for power, expected in ((1, 0), (2, 1), (3, 0), (4, 3)):
        tolerance = 5 * (draws**power).std() / draws.numel() ** 0.5
        assert abs(float((draws**power).mean()) - expected) < tolerance
    for bound, share in ((1.0, 0.158655), (2.0, 0.0227501), (3.0, 0.0013499)):
        assert float((draws > bound).double().mean()) == pytest.approx(share, rel=5 / (share * 1e6) ** 0.5)
    assert float(draws.abs().max()) < 5.5


def test_normal_numbers_are_those_of_uniform_ones_whatever_the_dtype_or_stack() -> None:
    expected = torch.special.ndtri(counter.uniform(9, ROWS, (7,), torch.float64) + 2.0**-25)
    draws = counter.normal(9, ROWS, (7,), torch.float64)
    torch.testing.assert_close(draws, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(counter.normal(9, ROWS, (7,)).double(), draws, rtol=1e-5, atol=1e-6)
    keys = torch.tensor([9, 11], dtype=torch.int32)
    stacked = torch.func.vmap(lambda key: counter.normal(key, ROWS, (7,), torch.float64))(keys)
    assert torch.equal(stacked[0], draws)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_dtypes_get_numbers_that_they_could_not_hold(dtype: torch.dtype) -> None:
    rows = torch.arange(4096, dtype=torch.int32)
    for draw in (counter.uniform, counter.normal):
        assert torch.equal(draw(7, rows, (5,), dtype), draw(7, rows, (5,)))
    assert counter.uniform(7, rows, (5,), dtype).max() < 1
