"""768 crops of 32x32 pixels from three photographs: brick, grass or gravel?

The photographs (512x512, grey) are cut into squares that do not overlap.  They are divided by place, since neighbours
look alike: of the 16 rows of squares the upper ten are train, the next two val, the lowest four test.
"""

from __future__ import annotations

import numpy as np

from neurofleet.data.sources import packaged, read_grey
from neurofleet.data.write import Raw

CLASSES = ("brick", "grass", "gravel")
SIZE = 32
BORDERS = (10, 12)  # rows of squares before which val and test begin


def crops(image: np.ndarray) -> np.ndarray:
    """[H,W] to squares [H/S,W/S,S,S]."""
    height, width = (length // SIZE for length in image.shape)
    return image.reshape(height, SIZE, width, SIZE).swapaxes(1, 2)


def load() -> Raw:
    squares = np.stack([crops(read_grey(packaged("skimage", f"data/{name}.png"))) for name in CLASSES])
    num_rows = np.prod(squares.shape[:3])
    labels, heights, _ = np.unravel_index(np.arange(num_rows), squares.shape[:3])
    stage_of = np.digitize(heights, BORDERS)
    return Raw(
        kind="image",
        task="multiclass",
        inputs={"image": squares.reshape(-1, 1, SIZE, SIZE)},
        targets={"texture": labels},
        classes=CLASSES,
        stages={stage: np.flatnonzero(stage_of == index) for index, stage in enumerate(("train", "val", "test"))},
        source="scikit-image brick, grass, gravel (CC0 Textures)",
    )
