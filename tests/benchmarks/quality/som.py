"""The map on digits, whose pixels count from 0 to 16: distances are in units of 16.

A map is judged on the rows that it was laid over, where the wanted 1.19 with 0.08 comes from, and on test rows.
 MiniSom (10x10, PCA start, Gaussian neighbourhood of 1.5, rate 0.5) makes as many passes over the same
rows.  Radius and rate were chosen on other splits of the rows.
"""

from collections.abc import Callable

import torch
from minisom import MiniSom
from rows import SPLITS, Reference, Row

from neurofleet import checkpoint
from neurofleet import experiment as experiments
from neurofleet.data import ParquetDataModule
from neurofleet.run import Result

EXPERIMENT = ("experiment=digits_som",)
PASSES = 20


def errors(stage: str, name: str) -> Callable[[Result], float]:
    def score(result: Result) -> float:
        experiment = experiments.load(result.folder / "experiment.yaml")
        data = experiments.build_data(experiment)
        family = experiments.build_family(experiment, data.spec)
        tensors, _ = checkpoint.decode((result.folder / "weights.safetensors").read_bytes())
        family.load_state_dict(tensors)
        with torch.no_grad():
            mean = family.errors(data.rows(stage).inputs)[name].double().mean().item()
        return mean * data.spec.input_std[0] / 16 if name == "quantization_error" else mean

    return score


def minisom(stage: str, name: str) -> Reference:
    def score(data: ParquetDataModule) -> float:
        scale = data.spec.input_std[0] / 16
        rows = {key: data.rows(key).inputs.flatten(1).double().numpy() * scale for key in ("train", stage)}
        grid = MiniSom(10, 10, 64, sigma=1.5, learning_rate=0.5, random_seed=0)
        grid.pca_weights_init(rows["train"])
        grid.train(rows["train"], PASSES * len(rows["train"]), random_order=True)
        return float(getattr(grid, name)(rows[stage]))

    return score


def row(stage: str, name: str, reach: float) -> Row:
    reference = ("MiniSom, 20 passes", minisom(stage, name))
    return Row(EXPERIMENT, SPLITS, f"{stage} {name}", reach, (reference,), lower=True, score=errors(stage, name))


ROWS = (
    row("train", "quantization_error", 1.19),
    row("train", "topographic_error", 0.08),
    row("test", "quantization_error", 1.25),
    row("test", "topographic_error", 0.13),
)
