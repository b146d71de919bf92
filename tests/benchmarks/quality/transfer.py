"""Transfer: what a start is worth on test rows, against the same network from a random one on the same budget.

`gain` rows give the lower end of the interval, pooled over the seeds, each run paired with its control.  Settings were
chosen on validation rows.  Bases that are runs of ours are trained here first, by the experiments that configs name.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

from rows import SEEDS, Row, finished, trained

from neurofleet import experiment as experiments
from neurofleet.experiment import Experiment
from neurofleet.release import bases
from neurofleet.run import Result, plan
from neurofleet.spec import DataSpec
from neurofleet.transfer import evidence, order

MADE_BY = {
    "models:/mnist5k-cnn/latest": "mnist5k_cnn",
    "models:/mnist5k-autoencoder/latest": "mnist5k_autoencoder",
    "models:/mnist5k-siamese/latest": "mnist5k_siamese_views",
}


@functools.cache
def start(uri: str) -> order.Start:
    if uri in MADE_BY:
        uri = str(finished((f"experiment={MADE_BY[uri]}", SEEDS[0]))[0].folder)
    return order.Start(bases.resolve(uri))


def ordered(overrides: tuple[str, ...]) -> tuple[Experiment, str, float | None]:
    """The experiment of `neurofleet finetune OVERRIDES`, the kind of its control, and that one's learning rate."""
    settings = experiments.plain(experiments.composed("finetune", [*overrides, "trainer.num_threads=1"]))
    return start(settings["base"]).order(settings).experiment, settings["control"], settings["control_lr"]


@functools.cache
def fine_tuned(overrides: tuple[str, ...]) -> tuple[Result, float]:
    return trained(ordered(overrides)[0])


@functools.cache
def control(overrides: tuple[str, ...]) -> Result:
    return trained(order.control(*ordered(overrides)))[0]


@functools.cache
def pooled(overrides: tuple[str, ...], against: tuple[str, ...] | None = None) -> evidence.Gain:
    """Over all seeds; against their controls, or what other overrides give."""
    pairs = []
    for seed in SEEDS:
        ours = fine_tuned((*overrides, seed))[0]
        other = control((*overrides, seed)) if against is None else fine_tuned((*against, seed))[0]
        pairs.append((evidence.read_predictions(ours.folder), evidence.read_predictions(other.folder)))
    found = evidence.pooled(pairs, DataSpec.load(ours.folder / "spec.json"), seed=0)
    print(f"{' '.join(overrides)}: {found}", file=sys.stderr, flush=True)
    return found


def lowest(overrides: tuple[str, ...]) -> Callable[[Result], float]:
    return lambda _: pooled(overrides).low


def share(result: Result) -> float:
    """Of the parameters that learn."""
    family = plan(experiments.load(result.folder / "experiment.yaml")).family
    sizes = [(one.numel(), one.requires_grad) for one in family.parameters()]
    return sum(size for size, learns in sizes if learns) / sum(size for size, _ in sizes)


def row(name: str, metric: str, reach: float, score: Callable[[Result], float] | None = None, **more: bool) -> Row:
    return Row((f"experiment={name}",), SEEDS, metric, reach, score=score, run=fine_tuned, **more)


MINILM, FULL = ("experiment=food_reviews_minilm",), ("method=full", "optimizer.lr=1e-4")
ABOVE = 1e-4  # zero
ROWS = (
    row("textures_efficientnet", "accuracy", 0.99),
    row("textures_efficientnet", "gain, at least", ABOVE, lowest(("experiment=textures_efficientnet",))),
    row("food_reviews_minilm", "auroc", 0.80),
    row("food_reviews_minilm", "gain, at least", ABOVE, lowest(MINILM)),
    row("food_reviews_minilm", "share that learns", 0.02, share, lower=True),
    row("food_reviews_minilm", "above full", -0.01, lambda _: pooled(MINILM, (*MINILM, *FULL)).difference),
    row("digits_from_mnist5k", "gain, at least", ABOVE, lowest(("experiment=digits_from_mnist5k",))),
    row(
        "mnist5k_from_autoencoder", "gain", 0.10, lambda _: pooled(("experiment=mnist5k_from_autoencoder",)).difference
    ),
    row("mnist5k_from_views", "gain", 0.10, lambda _: pooled(("experiment=mnist5k_from_views",)).difference),
)
