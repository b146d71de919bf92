"""The adversarial network on mnist5k: Frechet distance and recall of 5,000 samples against the 1,000 test images.

The features are the 84 of a LeNet-5's penultimate layer, trained here on the 4,000 training images; the distance is
that of Heusel et al. 2017 between Gaussians fitted to them.  Recall (Kynkaanniemi et al. 2019, k = 3) is the share of
test images that lie no farther from some sample than this sample's third nearest neighbour among the samples.  The
settings were chosen on features and images of the training and validation rows alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import scipy.linalg
import torch
from rows import SEEDS, Row, network
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn
from torch.nn import functional as F

from neurofleet import counter
from neurofleet import experiment as experiments
from neurofleet.data import ParquetDataModule
from neurofleet.families._layers import RandomAffine
from neurofleet.families.gan import GAN
from neurofleet.run import Result
from neurofleet.steps import Context

NUM_SAMPLES = 5000
NEIGHBOURS = 3
OVERRIDES = ("experiment=mnist5k_gan",)


def lenet() -> nn.Sequential:
    """LeNet-5 (LeCun et al. 1998) with rectifiers and max-pooling; its last layer but two gives 84 features."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


@functools.lru_cache(maxsize=1)
def judge() -> nn.Sequential:
    """The features of a LeNet-5 that was trained on distorted images of the training rows."""
    inputs, targets = data().rows("train")
    distort = RandomAffine(degrees=10.0, scale=0.1, translation=0.08, site=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = lenet()
    num_epochs, size = 24, 64
    num_steps = num_epochs * -(-len(targets) // size)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, num_steps)
    orders = counter.permutations(torch.arange(num_epochs, dtype=torch.int32), len(targets))
    for step, rows in enumerate(batch for order in orders for batch in order.split(size)):
        context = Context(0, step, 0.0, torch.arange(len(rows), dtype=torch.int32), training=True, measure=False)
        F.cross_entropy(network(distort(inputs[rows], context)), targets[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return network.eval()


@functools.lru_cache(maxsize=1)
def data() -> ParquetDataModule:
    return experiments.build_data(experiments.compose(list(OVERRIDES)))


def features(images: Tensor) -> np.ndarray:
    """Standardised images [N, 1, 28, 28] -> [N, 84]."""
    network = judge()[:-1]
    with torch.no_grad():
        return network(images.float()).double().numpy()


def frechet(first: np.ndarray, second: np.ndarray) -> float:
    """The squared Frechet distance between the Gaussians of two sets of features [N, 84]."""
    gap = first.mean(0) - second.mean(0)
    covariances = np.cov(first.T), np.cov(second.T)
    # The trace of the root of a product of two covariances is that of the roots of its eigenvalues.
    roots = np.sqrt(np.clip(scipy.linalg.eigvals(covariances[0] @ covariances[1]).real, 0, None))
    return float(gap @ gap + sum(np.trace(one) for one in covariances) - 2 * roots.sum())


def recall(real: np.ndarray, made: np.ndarray) -> float:
    real_NF, made_SF = torch.from_numpy(real), torch.from_numpy(made)
    radii_S = torch.cat([torch.cdist(part, made_SF).kthvalue(NEIGHBOURS + 1).values for part in made_SF.split(500)])
    return (torch.cdist(real_NF, made_SF) <= radii_S).any(dim=1).double().mean().item()


def samples(result: Result) -> np.ndarray:
    """Features of what the network of a finished run makes."""
    family = network(result)
    assert isinstance(family, GAN)
    spec = data().spec
    return features((family.sample(NUM_SAMPLES, seed=1) - spec.input_mean[0]) / spec.input_std[0])


@functools.lru_cache(maxsize=1)
def mixture() -> np.ndarray:
    """Features of what 20 Gaussians on 50 principal components make, fitted to the training rows."""
    flat = data().rows("train").inputs.flatten(1).double().numpy()
    components = PCA(50, random_state=0).fit(flat)
    gaussians = GaussianMixture(20, random_state=0).fit(components.transform(flat))
    made = components.inverse_transform(gaussians.sample(NUM_SAMPLES)[0])
    return features(torch.from_numpy(made).view(-1, 1, 28, 28).clamp(float(flat.min()), float(flat.max())))


@functools.lru_cache(maxsize=2)
def real(stage: str) -> np.ndarray:
    return features(data().rows(stage).inputs)


def row(metric: str, reach: float, measure: Callable[[np.ndarray, np.ndarray], float], *, lower: bool) -> Row:
    references = (
        ("20 Gaussians on 50 components", lambda _: measure(real("test"), mixture())),
        ("the training images themselves", lambda _: measure(real("test"), real("train"))),
    )
    score = lambda result: measure(real("test"), samples(result))  # noqa: E731
    return Row(OVERRIDES, SEEDS, metric, reach, references, lower=lower, score=score)


ROWS = (row("Frechet distance", 90.0, frechet, lower=True), row("recall", 0.75, recall, lower=False))
