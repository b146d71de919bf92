"""1,797 handwritten digits, 8x8, grey levels 0 to 16."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from neurofleet.data.write import Raw


def load() -> Raw:
    bunch = load_digits()
    return Raw(
        kind="image",
        task="multiclass",
        inputs={"image": bunch.images[:, None].astype(np.uint8)},
        targets={"digit": bunch.target},
        classes=tuple("0123456789"),
        source="scikit-learn load_digits: UCI Optical Recognition of Handwritten Digits, test set",
    )
