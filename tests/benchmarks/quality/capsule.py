"""Capsules on mnist5k, and on its test digits distorted, beside a CNN of the same stages, schedule and augmentation.

The distortions are a function of the row: affine (up to 20 degrees to either side, sizes of 0.8 to 1.2, a shear of up
to 0.2, shifts of up to 2 pixels), and a turn of 30 degrees, to the left and to the right in turns.  The settings were
chosen on a quarter of the training and validation rows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from statistics import mean

import numpy as np
import torch
from rows import SEEDS, Reference, Row, finished, network
from sklearn.svm import SVC
from torch import Tensor
from torch.nn import functional as F

from neurofleet import experiment as experiments
from neurofleet.data import ParquetDataModule
from neurofleet.run import Result

OVERRIDES = ("experiment=mnist5k_capsule",)
CNN = (*OVERRIDES, "family=cnn")
Distortion = Callable[[Tensor], Tensor]


def warp(images: Tensor, radians: np.ndarray, scales: np.ndarray, shears: np.ndarray, shifts: np.ndarray) -> Tensor:
    """Images [N, C, Y, X], each turned, resized, sheared and shifted (in pixels); the border fills what comes in."""
    turns = np.stack([np.cos(radians), -np.sin(radians), np.sin(radians), np.cos(radians)], axis=1).reshape(-1, 2, 2)
    stretches = np.stack([1 / scales, shears, 0 * shears, 1 / scales], axis=1).reshape(-1, 2, 2)
    matrices = np.concatenate([turns @ stretches, 2 / images.shape[-1] * shifts[:, :, None]], axis=2)
    grid = F.affine_grid(torch.from_numpy(matrices).to(images.dtype), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def affine(images: Tensor) -> Tensor:
    draws = np.random.default_rng(0).uniform(-1, 1, (len(images), 5))
    return warp(images, np.deg2rad(20 * draws[:, 0]), 1 + 0.2 * draws[:, 1], 0.2 * draws[:, 2], 2 * draws[:, 3:])


def rotated(images: Tensor) -> Tensor:
    left_or_right = 1.0 - 2.0 * (np.arange(len(images)) % 2)
    none = np.zeros(len(images))
    return warp(images, np.deg2rad(30) * left_or_right, none + 1, none, np.zeros((len(images), 2)))


@functools.cache
def test_rows() -> tuple[Tensor, Tensor]:
    rows = experiments.build_data(experiments.compose(list(OVERRIDES))).rows("test")
    return rows.inputs, rows.targets


def accuracy(result: Result, distortion: Distortion) -> float:
    inputs, targets = test_rows()
    with torch.inference_mode():
        family = network(result)
        outputs = torch.cat([family(batch) for batch in distortion(inputs).split(250)])
    return (outputs.argmax(dim=1) == targets).double().mean().item()


def of(distortion: Distortion) -> Callable[[Result], float]:
    return lambda result: accuracy(result, distortion)


@functools.cache
def cnn(distortion: Distortion) -> float:
    return mean(accuracy(finished((*CNN, seed))[0], distortion) for seed in SEEDS)


def above(distortion: Distortion) -> Callable[[Result], float]:
    return lambda result: accuracy(result, distortion) - cnn(distortion)


def support_vectors(distortion: Distortion) -> Reference:
    def score(data: ParquetDataModule) -> float:
        (train, labels), (test, truth) = data.rows("train"), data.rows("test")
        machine = SVC(C=10.0).fit(train.flatten(1).numpy(), labels.numpy())
        return float(machine.score(distortion(test).flatten(1).numpy(), truth.numpy()))

    return score


def references(distortion: Distortion) -> tuple[tuple[str, Reference], ...]:
    return (
        ("CNN, same stages and schedule", lambda _: cnn(distortion)),
        ("support vectors, RBF", support_vectors(distortion)),
    )


ROWS = (
    Row(OVERRIDES, SEEDS, "accuracy", 0.975, references(lambda images: images)),
    Row(OVERRIDES, SEEDS, "accuracy, affine", 0.902, references(affine), score=of(affine)),
    Row(OVERRIDES, SEEDS, "affine: above that CNN", 1e-4, score=above(affine)),
    Row(OVERRIDES, SEEDS, "accuracy, 30 degrees", 0.725, references(rotated), score=of(rotated)),
    Row(OVERRIDES, SEEDS, "30 degrees: above that CNN", 1e-4, score=above(rotated)),
)
