"""Python's own help, 465,126 characters, to be continued character by character.

The text is the values of `pydoc_data.topics.topics` of Python 3.11.7 in the order of their keys, parted by empty lines.
Each Python has another text (even a patch release has), so this one lies beside this file: the same bytes for everyone.
It is part of the Python documentation, Copyright (c) 2001-2023 Python Software Foundation, under the PSF License 2.

Divided by place, since a row at random would stand between two rows that tell it: the last tenth is test, the twentieth
before it val.  Rows are windows of 257 characters.  Train's start every 64 characters.  In val and test each window
has 128 characters that are scored, after 129 that are given (taken from before the border where needed): each of their
characters is scored exactly once, with at least 129 before it.
"""

from __future__ import annotations

import hashlib
import lzma
from pathlib import Path

import numpy as np

from neurofleet.data.write import Raw
from neurofleet.errors import DataError

WINDOW, STRIDE, SCORED = 257, 64, 128
NUM_VAL, NUM_TEST = 164, 364  # windows
SHA256 = "71f2ff5d99bdc1f9c48c5c2353ad138201c5ca1c377e0226857ef8fa89b8bcee"


def read() -> str:
    """The whole text."""
    path = Path(__file__).with_name("pydoc_topics.txt.xz")
    content = lzma.decompress(path.read_bytes())
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise DataError(
            f"{path} needs to hold the text of Python 3.11.7's pydoc topics; restore it from the repository"
        )
    return content.decode()


def starts(length: int) -> dict[str, np.ndarray]:
    """Where each stage's windows start, in a text of so many characters."""
    test = length - NUM_TEST * SCORED
    val = test - NUM_VAL * SCORED
    given = WINDOW - SCORED
    return {
        "train": np.arange(0, val - WINDOW + 1, STRIDE),
        "val": np.arange(val, test, SCORED) - given,
        "test": np.arange(test, length, SCORED) - given,
    }


def load() -> Raw:
    text = read()
    places = starts(len(text))
    given = [np.full(len(place), 1 if stage == "train" else WINDOW - SCORED) for stage, place in places.items()]
    ends = np.cumsum([len(place) for place in places.values()])
    windows = [text[start : start + WINDOW] for place in places.values() for start in place]
    unused = len(text) - (NUM_VAL + NUM_TEST) * SCORED - (places["train"][-1] + WINDOW)
    return Raw(
        kind="text",
        task="language",
        inputs={"text": np.array(windows, dtype=object)},
        targets={"given": np.concatenate(given)},
        tokenizer="characters",
        length=WINDOW,
        most_tokens=1000,  # all: there are about a hundred
        stages=dict(zip(places, np.split(np.arange(ends[-1]), ends[:-1]), strict=True)),
        source=(
            "Python 3.11.7 pydoc_data.topics (PSF License 2), divided by place; "
            f"the last {unused} characters before val are in no window of train"
        ),
    )
