"""What a row of the quality table is, and how it is measured: one run of `neurofleet train` for each variant.

One thread; CPU seconds are those of a whole `run`: reading, training, testing, saving.  The references learn from the
same rows of the same splits.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import pyarrow as pa
import pyarrow.parquet
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from neurofleet import checkpoint, paths
from neurofleet import experiment as experiments
from neurofleet.data import ParquetDataModule
from neurofleet.data.splits import STAGES
from neurofleet.experiment import Experiment
from neurofleet.families._base import Family
from neurofleet.run import Result, run
from neurofleet.spec import DataSpec

SEEDS = tuple(f"seed={seed}" for seed in range(3))
SPLITS = tuple(f"data.split={split}" for split in range(10))
SLACK = 1e-6  # scores are float32

Reference = Callable[[ParquetDataModule], float]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    overrides, variants: of `neurofleet train`; one run for each variant
    metric:              `test/<metric>` of the run, or the name of what `score` gives
    reach:               the least mean over the variants; or the largest, if `lower` is better
    references:          (name, score) of classical methods and trivial baselines, on the data of a variant
    score:               what a run's own metrics do not say, from its result
    centre:              of the variants' scores
    write:               datasets of the row's own, to a folder that holds the prepared ones
    run:                 (result, CPU seconds) of overrides that are not those of `neurofleet train`
    """

    overrides: tuple[str, ...]
    variants: tuple[str, ...]
    metric: str
    reach: float
    references: tuple[tuple[str, Reference], ...] = ()
    lower: bool = False
    score: Callable[[Result], float] | None = None
    centre: Callable[[Sequence[float]], float] = mean
    write: Callable[[Path], None] | None = None
    run: Callable[[tuple[str, ...]], tuple[Result, float]] | None = None

    def met(self, score: float) -> bool:
        return score <= self.reach + SLACK if self.lower else score >= self.reach - SLACK


def measure(row: Row, variant: str) -> tuple[float, float]:
    """(the score on test rows, CPU seconds) of one run."""
    result, seconds = (row.run or finished)((*row.overrides, variant))
    return result.metrics[f"test/{row.metric}"] if row.score is None else row.score(result), seconds


@functools.cache
def written(write: Callable[[Path], None]) -> None:
    """Have a row's own datasets written, once."""
    write(_datasets())


@functools.cache
def _datasets() -> Path:
    """From now on the folder of all datasets: links to those that are prepared, and what is written beside them."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    for prepared in paths.data().iterdir():
        (folder / prepared.name).symlink_to(prepared.resolve())
    os.environ["NEUROFLEET_DATA"] = str(folder)
    return folder


def stored(folder: Path) -> tuple[dict[str, pa.Table], DataSpec]:
    """The rows of each stage of a prepared dataset, and its spec."""
    tables = {stage: pyarrow.parquet.read_table(folder / f"{stage}.parquet") for stage in STAGES}
    return tables, DataSpec.load(folder / "spec.json")


def store(folder: Path, tables: Mapping[str, pa.Table], spec: DataSpec) -> None:
    """Write a dataset of other rows; its statistics stay those of `spec`, unless val is trained on too."""
    folder.mkdir()
    for stage, table in tables.items():
        pyarrow.parquet.write_table(table, folder / f"{stage}.parquet")
    num_rows = {stage: table.num_rows for stage, table in tables.items()}
    replace(spec, name=folder.name, num_rows=num_rows).save(folder / "spec.json")


@functools.cache
def finished(overrides: tuple[str, ...]) -> tuple[Result, float]:
    """A run and its CPU seconds; rows that ask different things of the same run share it."""
    return trained(experiments.compose([*overrides, "trainer.num_threads=1"]))


def trained(experiment: Experiment) -> tuple[Result, float]:
    """A run and its CPU seconds; its folder lasts as long as this process."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    begin = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        result = run(experiment, folder=Path(folder))
    return result, time.process_time() - begin


def network(result: Result) -> Family:
    """The trained network of a finished run."""
    spec = DataSpec.load(result.folder / "spec.json")
    family = experiments.build_family(experiments.load(result.folder / "experiment.yaml"), spec)
    weights, _ = checkpoint.decode((result.folder / "weights.safetensors").read_bytes())
    family.load_state_dict(weights)
    return family.eval()


def reference(row: Row, score: Reference) -> float:
    """The mean score of a reference over the variants' data; seeds share one."""
    variants = row.variants[:1] if row.variants[0].startswith("seed=") else row.variants
    composed = (experiments.compose([*row.overrides, variant]) for variant in variants)
    return mean(score(experiments.build_data(experiment)) for experiment in composed)


def fitted(make: Callable[[], Any]) -> Reference:
    """The score of a scikit-learn estimator (accuracy, or r2), fitted to the flattened training rows."""

    def score(data: ParquetDataModule) -> float:
        flat = [tensor.flatten(1).squeeze(-1) if tensor.ndim > 1 else tensor for tensor in data.rows("train")]
        test = [tensor.flatten(1).squeeze(-1) if tensor.ndim > 1 else tensor for tensor in data.rows("test")]
        estimator = make().fit(*(tensor.nan_to_num().numpy() for tensor in flat))
        return float(estimator.score(*(tensor.nan_to_num().numpy() for tensor in test)))

    return score


def auroc(data: ParquetDataModule) -> float:
    """Of logistic regression on two classes."""
    train, test = data.rows("train"), data.rows("test")
    model = LogisticRegression(max_iter=3000).fit(train.inputs.numpy(), train.targets[:, 0].numpy())
    return float(roc_auc_score(test.targets[:, 0].numpy(), model.predict_proba(test.inputs.numpy())[:, 1]))


def above_logistic(result: Result) -> float:
    """AUROC above that of logistic regression on the rows of the same split."""
    data = experiments.build_data(experiments.load(result.folder / "experiment.yaml"))
    return result.metrics["test/auroc"] - auroc(data)
