"""The siamese network on digits that it never saw: trained on 0 to 6 of mnist5k, all pairs of the test digits 7 to 9.

The settings were chosen among the digits 0 to 6, three of which were left out in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
from rows import Reference, Row, store, stored
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score, roc_curve

from neurofleet.data import ParquetDataModule

SEEN = range(7)
SEEDS = tuple(f"seed={seed}" for seed in range(5))
NAME = "mnist5k_unseen"


def write_unseen(into: Path) -> None:
    """A dataset of its own, whose test digits do not occur in train and val."""
    tables, spec = stored(into / "mnist5k")
    chosen = {}
    for stage, table in tables.items():
        seen = np.isin(table.column(spec.targets[0]).to_numpy(), SEEN)
        chosen[stage] = table.filter(pa.array(~seen if stage == "test" else seen))
    store(into / NAME, chosen, spec)


def pairs(embed: Callable[[np.ndarray, np.ndarray], np.ndarray], data: ParquetDataModule) -> tuple[np.ndarray, ...]:
    """(whether of one digit, cosine) of all pairs of test rows; `embed(train, test)` gives the test rows' vectors."""
    train, test = (data.rows(stage).inputs.flatten(1).numpy() for stage in ("train", "test"))
    vectors, labels = embed(train, test), data.rows("test").targets.numpy()
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    first, second = np.triu_indices(len(labels), 1)
    return labels[first] == labels[second], (vectors @ vectors.T)[first, second]


def auc(embed: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Reference:
    return lambda data: float(roc_auc_score(*pairs(embed, data)))


def eer(embed: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Reference:
    def score(data: ParquetDataModule) -> float:
        false, true, _ = roc_curve(*pairs(embed, data))
        nearest = np.abs(false - (1 - true)).argmin()
        return float((false[nearest] + 1 - true[nearest]) / 2)

    return score


def components(train: np.ndarray, test: np.ndarray) -> np.ndarray:
    return PCA(32, random_state=0).fit(train).transform(test)


def pixels(train: np.ndarray, test: np.ndarray) -> np.ndarray:
    return test


OVERRIDES = ("experiment=mnist5k_siamese", f"data.name={NAME}")
BASELINES = {"cosine of pixels": pixels, "cosine of 32 principal components": components}
AUCS = tuple((name, auc(embed)) for name, embed in BASELINES.items())
EERS = tuple((name, eer(embed)) for name, embed in BASELINES.items())
ROWS = (
    Row(OVERRIDES, SEEDS, "auc", 0.85, AUCS, write=write_unseen),
    Row(OVERRIDES, SEEDS, "eer", 0.23, EERS, lower=True, write=write_unseen),
)
