"""Autoencoders on mnist5k; their settings were chosen on the 400 validation rows, then trained on all 4,000.

Anomalies: ten datasets, each of one digit to learn from and all test rows to tell apart (one class, the others).
Errors are of pixels in [0, 1].
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from rows import SEEDS, Reference, Row, store, stored
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score

from neurofleet.data import ParquetDataModule


def pixels(data: ParquetDataModule, stage: str) -> np.ndarray:
    flat = data.rows(stage).inputs.flatten(1).double().numpy()
    return (flat * data.spec.input_std[0] + data.spec.input_mean[0]) / 255


def residuals(data: ParquetDataModule, size: int) -> np.ndarray:
    """[N], the mean squared error of each test row through that many principal components."""
    pca, test = PCA(size).fit(pixels(data, "train")), pixels(data, "test")
    return np.square(pca.inverse_transform(pca.transform(test)) - test).mean(axis=1)


def pca_error(size: int) -> tuple[str, Reference]:
    return f"PCA-{size}", lambda data: float(residuals(data, size).mean())


def pca_auroc(data: ParquetDataModule) -> float:
    return float(roc_auc_score(data.rows("test").targets.numpy(), residuals(data, 30)))


def mean_image(data: ParquetDataModule) -> float:
    """Nats of an image whose pixels are independent, each as probable as in training."""
    mean, test = pixels(data, "train").mean(axis=0).clip(1e-3, 1 - 1e-3), pixels(data, "test")
    return float(-(test * np.log(mean) + (1 - test) * np.log(1 - mean)).sum(axis=1).mean())


def linear_denoiser(data: ParquetDataModule) -> float:
    """The best linear map from disturbed pixels to clean ones, fitted to eight disturbed copies of each image."""
    generator, clean, test = np.random.default_rng(0), pixels(data, "train"), pixels(data, "test")
    copies = np.concatenate([clean] * 8)
    ridge = Ridge(100.0).fit((copies + 0.5 * generator.normal(size=copies.shape)).clip(0, 1), copies)
    said = ridge.predict((test + 0.5 * generator.normal(size=test.shape)).clip(0, 1)).clip(0, 1)
    return float(np.square(said - test).mean())


def write_digits(into: Path) -> None:
    """mnist5k as ten datasets: one digit in train and val, every test row, and whether it is another digit."""
    tables, spec = stored(into / "mnist5k")
    (target,) = spec.targets
    for digit in range(10):
        chosen = {}
        for stage, table in tables.items():
            other = table.column(target).to_numpy() != digit
            column = table.column_names.index(target)
            table = table.set_column(column, target, pa.array(other.astype(np.int64)))
            chosen[stage] = table if stage == "test" else table.filter(pa.array(~other))
        one = replace(spec, task="binary", classes=(spec.classes[digit], "another"))
        store(into / f"mnist5k_{digit}", chosen, one)


DIGITS = tuple(f"data.name=mnist5k_{digit}" for digit in range(10))
# One linear layer each way finds the subspace of a digit's principal components; what leaves it is another digit.
# (Deeper ones learn to say other digits too: a denoising one with 256 and 128 hidden units had 0.9546.)
ONE_CLASS = (
    "experiment=mnist5k_autoencoder",
    "family.hidden=[]",
    "family.code=30",
    "family.squash_pixels=false",
    "family.augmentation={degrees: 0.0, scale: 0.0, translation: 0.0}",
    "data.batch_size=32",
    "trainer.max_epochs=80",
)
ROWS = (
    *(
        Row(("experiment=mnist5k_autoencoder", f"family.code={code}"), SEEDS, "mse", reach, (pca_error(code),), True)
        for code, reach in ((2, 0.040), (8, 0.019), (32, 0.012))
    ),
    Row(("experiment=mnist5k_vae",), SEEDS, "negative_elbo", 112.0, (("mean image", mean_image),), True),
    Row(("experiment=mnist5k_denoising",), SEEDS, "denoising_mse", 0.0165, (("linear", linear_denoiser),), True),
    Row(ONE_CLASS, DIGITS, "anomaly_auroc", 0.96, (("PCA-30", pca_auroc),), write=write_digits),
)
