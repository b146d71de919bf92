"""What every supervised family shares: the loss and the metrics that follow from the DataSpec's task.

| task       | outputs          | targets                    | loss                                          |
|------------|------------------|----------------------------|-----------------------------------------------|
| multiclass | logits [B, C]    | class indices, long [B]    | softmax cross-entropy                         |
| binary     | logit  [B, 1]    | 0 or 1, float [B, 1]       | binary cross-entropy                          |
| multilabel | logits [B, L]    | 0 or 1, float [B, L]       | binary cross-entropy, mean over the labels    |
| regression | values [B, T]    | standardised, float [B, T] | mean squared error                            |

B batch, C classes, L labels, T target columns.
"""

from __future__ import annotations

import dataclasses
import functools
from abc import abstractmethod
from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric, MetricCollection, classification, regression

from neurofleet.errors import ConfigError
from neurofleet.families._base import Family, Objective
from neurofleet.spec import DataSpec, Task
from neurofleet.steps import Batch, Context

NUM_MISTAKES = 16  # to look at


class SupervisedFamily(Family):
    """Abstract: a subclass gives `forward(inputs, context)`, which ends in `spec.num_outputs` logits or values.

    Loss: see the table of this module; `label_smoothing` (Szegedy et al. 2016) applies to classification in training.
    """

    tasks: ClassVar[frozenset[str]] = frozenset({"multiclass", "binary", "multilabel", "regression"})

    def __init__(self, *, spec: DataSpec, label_smoothing: float) -> None:
        super().__init__(spec=spec)
        if not 0 <= label_smoothing < 1:
            raise ConfigError(f"family.label_smoothing needs 0 <= label_smoothing < 1, got {label_smoothing}")
        self.label_smoothing = label_smoothing
        self._scores: dict[str, MetricCollection] = {}

    @abstractmethod
    def forward(self, inputs: Tensor, context: Context | None = None) -> Tensor:
        """Standardised inputs [batch, *spec.shape] -> outputs [batch, spec.num_outputs]."""

    def augment(self, inputs: Tensor, context: Context) -> Tensor:
        """Inputs as training sees them; a subclass may distort them at random."""
        return inputs

    def answer(self, inputs: Tensor, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        """`forward`, and scores of a family's own that come with it, row by row (spikes)."""
        return self(inputs, context), {}

    def objective(self, batch: Batch, context: Context) -> Objective:
        inputs, targets = batch
        outputs, scores = self.answer(self.augment(inputs, context), context)
        loss = self.loss(outputs, targets, context)
        return Objective(loss, self._quick_metrics(outputs, targets) | scores if context.measure else {})

    def loss(self, outputs: Tensor, targets: Tensor, context: Context) -> Tensor:
        smoothing: float | Tensor = self.label_smoothing if context.training else 0.0
        match self.spec.task:
            case "multiclass":
                if isinstance(smoothing, Tensor):  # torch's own function takes none
                    even = (outputs.logsumexp(dim=1) - outputs.mean(dim=1)).mean()
                    return F.cross_entropy(outputs, targets) * (1 - smoothing) + even * smoothing
                if torch._C._functorch.is_functorch_wrapped_tensor(outputs) and not smoothing:
                    # A stack of trials would take torch's function apart into a dozen operations.  Classes come first:
                    # over a short last dimension the logarithm costs ten times as much.
                    return -F.log_softmax(outputs.T, dim=0).gather(0, targets.unsqueeze(0)).mean()
                return F.cross_entropy(outputs, targets, label_smoothing=smoothing)
            case "regression":
                return F.mse_loss(outputs, targets)
            case _:
                return F.binary_cross_entropy_with_logits(outputs, targets * (1 - smoothing) + smoothing / 2)

    def _quick_metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """A training batch's own score, row by row: cheap enough for every measured step."""
        match self.spec.task:
            case "multiclass":
                return {"accuracy": outputs.argmax(dim=-1) == targets}
            case "regression":
                return {}
            case _:
                return {"accuracy": (outputs > 0) == (targets > 0.5)}

    @property
    def _scored(self) -> tuple[Task, int, int]:
        return self.spec.task, len(self.spec.classes), len(self.spec.targets)

    @property
    def score_names(self) -> list[str]:
        return ["loss", *make_metrics(*self._scored)]

    @property
    def quick_scores(self) -> frozenset[str]:
        own = type(self)._evaluate is SupervisedFamily._evaluate
        return frozenset({"loss", "accuracy"} & set(self.score_names)) if own else super().quick_scores

    # Held-out data: the mean loss, and the scores of torchmetrics.

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        self._scores["val"] = _metrics(*self._scored, self.device)
        self._scores["val"].reset()
        try:
            return super().evaluate(batches)
        finally:
            del self._scores["val"]

    def _evaluate(self, batch: Batch, stage: str) -> None:
        inputs, targets = batch
        context = self._context(batch, 0, training=False)
        outputs, scores = self.answer(inputs, context)
        loss = self.loss(outputs, targets, context)
        self._tally(stage, {"loss": loss} | scores, len(targets))
        if stage not in self._scores:
            self._scores[stage] = make_metrics(*self._scored).to(outputs.device)
        if self.spec.task in ("binary", "multilabel"):
            # torchmetrics takes numbers in [0, 1] for probabilities, and by batch: so logits may not reach it.
            outputs = outputs.double().sigmoid()
        self._scores[stage].update(outputs, targets if self.spec.task == "regression" else targets.long())

    def exhibits(self, batch: Batch) -> dict[str, dict[str, Tensor]]:
        """How sure a classifier is, and where it is surely wrong."""
        if self.spec.task not in ("multiclass", "binary"):
            return {}
        inputs, targets = batch[0], batch[1].flatten().long()
        logits = torch.cat([self(part) for part in inputs.split(512)]).double()
        if self.spec.task == "binary":
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
        probabilities, predictions = logits.softmax(dim=1).max(dim=1)
        correct = predictions == targets
        rows = (probabilities - correct.double()).argsort(descending=True, stable=True)  # right ones lie below zero
        rows = rows[: min(NUM_MISTAKES, int((~correct).sum()))]
        mistakes = {"targets": targets, "predictions": predictions, "probabilities": probabilities, "inputs": inputs}
        return {
            "reliability": {"confidences": probabilities, "correct": correct},
            "worst_mistakes": {"rows": rows, "examined": torch.tensor([len(targets)])}
            | {name: values[rows] for name, values in mistakes.items()},
        }

    def _scores_of(self, stage: str) -> dict[str, Tensor]:
        scores = self._means(stage) | self._scores[stage].compute()
        self._scores[stage].reset()
        for name in {"mae", "rmse"} & set(scores):  # in the target's own units
            scores[name] = scores[name] * self.spec.target_std[0]
        return scores


def embedding_spec(spec: DataSpec, size: int) -> DataSpec:
    """The spec of a network that embeds such inputs: a regression with `size` values.  An encoder is built from it."""
    names = tuple(f"embedding_{index}" for index in range(size))
    zeros, ones = (0.0,) * size, (1.0,) * size
    return dataclasses.replace(spec, task="regression", targets=names, classes=(), target_mean=zeros, target_std=ones)


@functools.lru_cache(maxsize=1)
def _metrics(task: Task, num_classes: int, num_targets: int, device: torch.device) -> MetricCollection:
    """For one whole pass after another: making them takes longer than the pass of a small network."""
    return make_metrics(task, num_classes, num_targets).to(device)


def make_metrics(task: Task, num_classes: int, num_targets: int) -> MetricCollection:
    """The scores of one pass over held-out data, on logits of classes, probabilities of labels, standardised values."""
    metrics: dict[str, Metric | MetricCollection]
    match task:
        case "multiclass":
            metrics = {
                "accuracy": classification.MulticlassAccuracy(num_classes, average="micro"),
                "f1": classification.MulticlassF1Score(num_classes, average="macro"),
            }
        case "binary":
            metrics = {
                "accuracy": classification.BinaryAccuracy(),
                "f1": classification.BinaryF1Score(),
                "auroc": classification.BinaryAUROC(),
            }
        case "multilabel":
            metrics = {
                "accuracy": classification.MultilabelAccuracy(num_targets),
                "f1": classification.MultilabelF1Score(num_targets),
                "average_precision": classification.MultilabelAveragePrecision(num_targets),
            }
        case _:
            metrics = {"r2": regression.R2Score()}
            if num_targets == 1:
                metrics |= {"mae": regression.MeanAbsoluteError(), "rmse": regression.MeanSquaredError(squared=False)}
    return MetricCollection(metrics)
