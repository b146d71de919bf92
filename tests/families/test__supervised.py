"""Each task's loss and scores, by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from neurofleet.families._supervised import make_metrics
from neurofleet.families.mlp import MLP
from neurofleet.spec import DataSpec
from neurofleet.steps import Context

MakeSpec = Callable[..., DataSpec]
MakeContext = Callable[..., Context]
LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 0.0, 1000.0], [-3.0, 0.25, -1000.0]], dtype=torch.float64)
CLASSES = torch.tensor([0, 2, 1])
LABELS = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0]], dtype=torch.float64)


def family(spec: DataSpec, label_smoothing: float = 0.0) -> MLP:
    plain: dict[str, Any] = {"hidden": [], "activation": "relu", "dropout": 0.0, "embedding": 4}
    plain["augmentation"] = {"degrees": 0.0, "scale": 0.0, "translation": 0.0}
    return MLP(spec=spec, label_smoothing=label_smoothing, **plain).double()


def metrics_of(spec: DataSpec) -> Any:
    return make_metrics(spec.task, len(spec.classes), len(spec.targets))


def cross_entropy(logits: Tensor, targets: Tensor, smoothing: float) -> float:
    """-sum of q log p, where q is one-hot mixed with the uniform distribution."""
    total = 0.0
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        log_sum = max(row) + math.log(sum(math.exp(value - max(row)) for value in row))
        wanted = [smoothing / len(row) + (1 - smoothing) * (index == target) for index in range(len(row))]
        total -= sum(q * (value - log_sum) for q, value in zip(wanted, row, strict=True))
    return total / len(logits)


def binary_cross_entropy(logits: Tensor, targets: Tensor, smoothing: float) -> float:
    """-q log p - (1-q) log(1-p), where q is the label mixed with a half; mean over rows and labels."""
    values = []
    for logit, label in zip(logits.flatten().tolist(), targets.flatten().tolist(), strict=True):
        wanted = label * (1 - smoothing) + smoothing / 2
        log_p = -max(-logit, 0) - math.log1p(math.exp(-abs(logit)))
        log_not_p = -max(logit, 0) - math.log1p(math.exp(-abs(logit)))
        values.append(-wanted * log_p - (1 - wanted) * log_not_p)
    return sum(values) / len(values)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("training", [True, False])
def test_losses_of_classification_by_hand(
    smoothing: float, training: bool, make_spec: MakeSpec, make_context: MakeContext
) -> None:
    context = make_context(3, training=training)
    used = smoothing if training else 0.0
    multiclass = family(make_spec("multiclass"), smoothing).loss(LOGITS, CLASSES, context)
    assert float(multiclass) == pytest.approx(cross_entropy(LOGITS, CLASSES, used), rel=1e-12)
    multilabel = family(make_spec("multilabel"), smoothing).loss(LOGITS, LABELS, context)
    assert float(multilabel) == pytest.approx(binary_cross_entropy(LOGITS, LABELS, used), rel=1e-12)
    binary = family(make_spec("binary"), smoothing).loss(LOGITS[:, :1], LABELS[:, :1], context)
    assert float(binary) == pytest.approx(binary_cross_entropy(LOGITS[:, :1], LABELS[:, :1], used), rel=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_the_loss_of_regression_by_hand(training: bool, make_spec: MakeSpec, make_context: MakeContext) -> None:
    outputs, targets = LOGITS[:, :2] / 3, LABELS[:, :2]
    loss = family(make_spec("regression", num_outputs=2), 0.5).loss(
        outputs, targets, make_context(3, training=training)
    )
    expected = np.mean((outputs.numpy() - targets.numpy()) ** 2)
    assert float(loss) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("task", "targets", "expected"),
    [
        ("multiclass", torch.tensor([0, 2, 2]), {"accuracy": 2 / 3}),
        ("multilabel", LABELS, {"accuracy": 7 / 9}),
        ("regression", LABELS, {}),
    ],
)
def test_the_quick_metrics_of_a_batch(
    task: str, targets: Tensor, expected: dict[str, float], make_spec: MakeSpec, make_context: MakeContext
) -> None:
    network = family(make_spec(task))
    with torch.no_grad():  # the identity on its first three inputs
        network.readout.weight.copy_(torch.eye(3, 4))
        network.readout.bias.zero_()
    inputs = torch.cat([LOGITS, torch.zeros(3, 1, dtype=torch.float64)], dim=1)
    if task == "multilabel":  # its predictions: 1 0 1, 0 0 1, 0 1 0
        assert ((LOGITS > 0) == (targets > 0.5)).double().mean() == pytest.approx(7 / 9)
    objective = network.objective((inputs, targets), make_context(3))
    assert {name: float(rows.double().mean()) for name, rows in objective.metrics.items()} == pytest.approx(expected)


def test_a_context_that_does_not_measure_gets_no_metrics(make_spec: MakeSpec) -> None:
    context = Context(0, 0, 0.0, torch.arange(3, dtype=torch.int32), training=True, measure=False)
    assert family(make_spec()).objective((torch.zeros(3, 4).double(), CLASSES), context).metrics == {}


def test_scores_of_held_out_data_by_hand(make_spec: MakeSpec) -> None:
    outputs, targets = torch.tensor([[3.0], [-1.0], [0.5], [-2.0]]), torch.tensor([[1], [1], [0], [0]])
    found = metrics_of(make_spec("binary"))(outputs, targets)
    assert {name: float(value) for name, value in found.items()} == pytest.approx(
        {"accuracy": 0.5, "f1": 0.5, "auroc": 0.75}
    )
    values, wanted = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([[1.0], [3.0], [2.0]])
    found = metrics_of(make_spec("regression", num_outputs=1))(values, wanted)
    expected = {"r2": 1 - 5 / 2, "mae": 1.0, "rmse": math.sqrt(5 / 3)}
    assert {name: float(value) for name, value in found.items()} == pytest.approx(expected)
    found = metrics_of(make_spec("multiclass"))(LOGITS.float(), torch.tensor([0, 2, 2]))
    assert float(found["accuracy"]) == pytest.approx(2 / 3)
    assert float(found["f1"]) == pytest.approx((1 + 0 + 2 / 3) / 3)
    found = metrics_of(make_spec("multilabel"))(LOGITS.float(), LABELS.long())
    assert float(found["accuracy"]) == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)


@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_scores_do_not_depend_on_how_rows_are_batched(task: str, make_spec: MakeSpec) -> None:
    """A batch whose logits all lie between 0 and 1 could be taken for one of probabilities."""
    network = family(make_spec(task))
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 4, generator=generator, dtype=torch.float64)
    targets = (torch.rand(60, network.spec.num_outputs, generator=generator) < 0.5).double()
    logits = network(inputs)[:, 0]
    inputs, targets = inputs[logits.argsort()], targets[logits.argsort()]
    said: list[dict[str, float]] = []
    network._log_scores = lambda stage, scores: said.append({name: float(one) for name, one in scores.items()})  # type: ignore[method-assign]
    for size in (60, 4):
        for part in torch.arange(60).split(size):
            network._evaluate((inputs[part], targets[part]), "test")
        network._log_scores("test", network._scores_of("test"))
    assert said[0] == pytest.approx(said[1], rel=1e-12)
    assert said[0]["accuracy"] == pytest.approx(float(((network(inputs) > 0) == (targets > 0.5)).double().mean()))
