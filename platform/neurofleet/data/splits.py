"""Which row goes to train, val or test, and the statistics of the training rows.

A split is a pure function of (row, stratum, split number): nothing is drawn.  Each row gets a key, a bijective
64-bit mix of its number and the split's (the finaliser of SplitMix64: Steele, Lea, Flood, "Fast splittable
pseudorandom number generators", 2014).  Within its stratum (its class, or the tenth of the targets it lies in) a row
stands at (rank of its key + 1/2) / (size of the stratum); sorting all rows by that number interleaves the strata in
proportion, so test is the first stretch of the order, val the next, train the rest.  Sizes are exact, each stretch
holds each stratum in proportion, and so does any prefix of a file, which lists its rows in this order.

The statistics are sums that are rounded once (integers for pixels, `math.fsum` for tables): they have the same bits
on every machine, whatever its vector unit, since `spec.json` is part of a dataset's digest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from neurofleet.spec import Kind, Task

STAGES = ("train", "val", "test")
NUM_QUANTILES = 10


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser on uint64: a bijection, so different rows never share a key."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def keys(rows: np.ndarray, split: int) -> np.ndarray:
    """One uint64 key for each row number [N] under one split number."""
    salt = _mix(np.array([split + 1], dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return _mix(np.asarray(rows).astype(np.uint64) + salt)


def strata(targets: np.ndarray, task: Task) -> np.ndarray:
    """Targets [N,T] to the stratum [N] of each row.

    A class, a combination of labels, or the tenth of the rows that a regression's first target falls in.
    """
    if task == "regression":
        # The rank of equal values is that of the first of them, so the order of the rows does not matter.
        ranks = np.searchsorted(np.sort(targets[:, 0]), targets[:, 0])
        return ranks * NUM_QUANTILES // max(len(targets), 1)
    return np.unique(targets, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)


def default_sizes(num_rows: int) -> dict[str, int]:
    """A fifth (rounded up, as scikit-learn does) for test, an eighth of the rest for val: 70/10/20."""
    test = math.ceil(num_rows / 5)
    val = round((num_rows - test) / 8)
    return {"train": num_rows - test - val, "val": val, "test": test}


def assign(rows: np.ndarray, row_strata: np.ndarray, sizes: Mapping[str, int], split: int) -> dict[str, np.ndarray]:
    """Positions (into `rows`) of each stage's rows.

    In: `rows` [N] row numbers, `row_strata` [N] the stratum of each, `sizes` rows per stage that add up to N.
    The order in which the rows are given does not matter: only their numbers do.
    """
    if sum(sizes.values()) != len(rows):
        raise ValueError(f"the sizes of the stages need to add up to the rows, got {dict(sizes)} for {len(rows)} rows")
    order = _interleaved(keys(rows, split), row_strata)
    test, val = sizes["test"], sizes["val"]
    return {"train": order[test + val :], "val": order[test : test + val], "test": order[:test]}


def part(row_strata: np.ndarray, size: int) -> np.ndarray:
    """Positions of `size` rows, those that come first in each stratum, and each stratum in proportion."""
    return np.sort(_interleaved(np.arange(len(row_strata)), row_strata)[:size])


def _interleaved(row_keys: np.ndarray, row_strata: np.ndarray) -> np.ndarray:
    """Positions in an order of which any stretch holds each stratum in proportion; within one they follow the keys."""
    by_stratum = np.lexsort((row_keys, row_strata))
    _, starts, counts = np.unique(row_strata[by_stratum], return_index=True, return_counts=True)
    ranks = np.arange(len(row_keys)) - np.repeat(starts, counts)
    places = (2 * ranks + 1) / np.repeat(2 * counts, counts)
    return by_stratum[np.lexsort((row_keys[by_stratum], places))]


def statistics(values: np.ndarray, kind: Kind) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population standard deviation: per column of a table [N,F], per channel of uint8 images [N,C,H,W] and
    of sequences [N,T,C] (over the steps that are there); none for indices and tokens.

    Both are in the units of the values as stored (a pixel is 0 to 255).  A constant column gets std 1, so that
    standardising it gives 0 and not NaN.
    """
    match kind:
        case "text" | "categorical":
            return (), ()
        case "image":
            moments = [_pixel_moments(values[:, index]) for index in range(values.shape[1])]
        case "sequence":
            channels = values.reshape(-1, values.shape[-1]).T
            moments = [_column_moments(channel[~np.isnan(channel)]) for channel in channels]
        case _:
            moments = [_column_moments(values[:, index]) for index in range(values.shape[1])]
    return tuple(mean for mean, _ in moments), tuple(std or 1.0 for _, std in moments)


def _pixel_moments(pixels: np.ndarray) -> tuple[float, float]:
    counts = [int(count) for count in np.bincount(pixels.reshape(-1), minlength=256)]
    total = sum(counts)
    first = sum(level * count for level, count in enumerate(counts))
    second = sum(level * level * count for level, count in enumerate(counts))
    return first / total, math.sqrt((second * total - first * first) / (total * total))


def _column_moments(column: np.ndarray) -> tuple[float, float]:
    numbers = column.astype(np.float64).tolist()
    if min(numbers) == max(numbers):
        return numbers[0], 0.0
    mean = math.fsum(numbers) / len(numbers)
    return mean, math.sqrt(math.fsum((number - mean) * (number - mean) for number in numbers) / len(numbers))
