"""Evidence: what a start was worth, against the same training from scratch, and what it cost of the old task.

The rows of the test set are drawn anew 2,000 times, the same ones for both networks (a paired bootstrap, Efron and
Tibshirani 1993), and the middle 95 % of the differences are the interval.  Several paired runs are pooled: each
resample also draws runs with replacement, so that the interval tells of both, other rows and other seeds.

An interval says how far these rows and runs bear out a difference, no more: where one network alone is right on four
rows and the other on none, it excludes zero, whereas an exact test would ask for six such rows.

N rows, R resamples, S runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from neurofleet import checkpoint
from neurofleet.errors import CheckpointError, ConfigError, DataError
from neurofleet.spec import DataSpec

NUM_RESAMPLES = 2000
FEWEST_ROWS = 10  # of fewer an interval is no evidence: three rows that differ would already exclude zero
LARGEST_CHUNK = 1 << 22  # numbers at once
FILE = "predictions.safetensors"
METRICS = {"multiclass": "accuracy", "multilabel": "accuracy", "binary": "auroc", "regression": "r2"}
"""A task's main score; all of them are the better the higher."""
Scorer = Callable[[Tensor], Tensor]
"""How often each row counts, float64 [R, N] -> score [R]."""


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a network says of test rows: `outputs` [N, spec.num_outputs] and `targets`, as its loss takes them."""

    outputs: Tensor
    targets: Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gain:
    """A score against another one on the same test rows.

    metric:         of `METRICS`
    ours, control:  scores, means over the runs
    difference:     ours - control; 95 % of the resamples lie from `low` to `high`
    num_rows, num_runs: what it rests on: test rows of a run, paired runs
    against, on:    words for the control and, where it is not the run's own, the data
    """

    metric: str
    ours: float
    control: float
    difference: float
    low: float
    high: float
    num_rows: int
    num_runs: int
    against: str = "from scratch"
    on: str = ""

    @property
    def is_outside(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        """`accuracy 0.954 against 0.871 from scratch: +0.083 [+0.061, +0.106]`"""
        what = f"{self.metric} on {self.on}" if self.on else self.metric
        runs = f", {self.num_runs} pairs of runs" if self.num_runs > 1 else ""
        return (
            f"{what} {self.ours:.3f} against {self.control:.3f} {self.against}: "
            f"{self.difference:+.3f} [{self.low:+.3f}, {self.high:+.3f}]{runs}"
        )


def read_predictions(folder: Path) -> Predictions:
    """The predictions of the test rows that a finished run left in its folder.

    Raises:
        ConfigError: there are none, or they are not of the targets (an autoencoder's say).
        CheckpointError: the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        raise ConfigError(
            f"evidence needs the predictions of a finished run, got no {path}; wait for it or train again"
        )
    try:
        tensors, _ = checkpoint.decode(path.read_bytes())
    except CheckpointError as error:
        raise CheckpointError(f"{path} is damaged: {error}; train the run again") from error
    lacking = [name for name in ("outputs", "targets") if name not in tensors]
    if lacking:
        raise ConfigError(
            f"evidence needs predictions of the targets, and {path} lacks {' and '.join(lacking)} "
            f"(it has {', '.join(sorted(tensors))}); take a run of a supervised family"
        )
    return Predictions(tensors["outputs"], tensors["targets"])


def gain(ours: Predictions, control: Predictions, spec: DataSpec, *, seed: int) -> Gain:
    """What a start was worth: the task's main score of both, on the same test rows, and the interval.

    Raises:
        DataError: a task without main score, other rows than the control's, too few rows or classes for an interval.
    """
    return pooled([(ours, control)], spec, seed=seed)


def forgetting(before: Predictions, after: Predictions, spec: DataSpec, *, seed: int) -> Gain:
    """What fine-tuning cost of the old task: negative where it was forgotten.

    The network's head is a new one, so that the question needs a definition: `before` are the base's predictions of
    the old test rows, `after` those of the base's own head on the features of the fine-tuned encoder.  The head did
    not move along: retrained on the old data, it would make up for some of the loss.

    spec: of the old data
    """
    return dataclasses.replace(gain(after, before, spec, seed=seed), against="before fine-tuning", on=spec.name)


def pooled(pairs: Sequence[tuple[Predictions, Predictions]], spec: DataSpec, *, seed: int) -> Gain:
    """The gain over several runs, each (ours, its control): scores are means over the runs.

    Where all runs were tested on the same rows, a resample is of the same rows in each: a row that is hard for one is
    hard for all, and does not count as several.
    """
    if not pairs:
        raise ConfigError("a gain needs at least one run and its control, got none")
    scorers = [(_scorer(ours, spec), _scorer(control, spec)) for ours, control in pairs]
    targets = [_shared_targets(ours, control) for ours, control in pairs]
    alike = all(torch.equal(one, targets[0]) for one in targets)
    generator = torch.Generator().manual_seed(seed)
    chunks = []
    for size in _chunks(max(map(len, targets))):
        counts = [_draw(one, spec, size, generator) for one in (targets[:1] if alike else targets)]
        rows_of_runs = zip(scorers, counts * len(pairs) if alike else counts, strict=True)
        chunks.append(torch.stack([ours(rows) - control(rows) for (ours, control), rows in rows_of_runs]))
    low, high = _interval(torch.cat(chunks, dim=1), alike, generator)
    means = [sum(score(pair[place], spec) for pair in pairs) / len(pairs) for place in (0, 1)]
    return Gain(
        metric=METRICS[spec.task],
        ours=means[0],
        control=means[1],
        difference=means[0] - means[1],
        low=low,
        high=high,
        num_rows=len(pairs[0][0].targets),
        num_runs=len(pairs),
    )


def score(predictions: Predictions, spec: DataSpec) -> float:
    """The task's main score, of `METRICS`.

    Raises:
        DataError: as `gain`.
    """
    every_row = torch.ones(1, len(predictions.targets), dtype=torch.float64)
    return float(_scorer(predictions, spec)(every_row))


def _scorer(predictions: Predictions, spec: DataSpec) -> Scorer:
    outputs, targets = _checked(predictions, spec)
    match spec.task:
        case "multiclass":
            return _accuracy((outputs.argmax(dim=1) == targets).unsqueeze(1))
        case "multilabel":
            return _accuracy((outputs > 0) == (targets > 0.5))
        case "binary":
            return _auroc(outputs[:, 0], targets[:, 0] > 0.5)
        case _:
            return _r2(outputs, targets)


def _accuracy(right: Tensor) -> Scorer:
    """The share of right answers [N, L]; sums of whole numbers, so that what is equal differs by zero."""
    each, num_answers = right.sum(dim=1).double(), right.shape[1]
    return lambda counts: counts @ each / (counts.sum(dim=1) * num_answers)


def _auroc(scores: Tensor, positive: Tensor) -> Scorer:
    """The share of pairs of a positive and a negative row in which the positive has the higher score; ties are half.

    The order of the rows is the same in all resamples: one sort, and cumulated counts along it.
    """
    order = scores.argsort()
    _, tie, sizes = scores[order].unique_consecutive(return_inverse=True, return_counts=True)
    ends = sizes.cumsum(0)
    first, last, is_positive = (ends - sizes)[tie], ends[tie], positive[order]

    def scored(counts: Tensor) -> Tensor:
        sorted_counts = counts[:, order]
        negatives = F.pad((sorted_counts * ~is_positive).cumsum(dim=1), (1, 0))
        positives = sorted_counts * is_positive
        won = (positives * (negatives[:, first] + negatives[:, last])).sum(dim=1) / 2
        return won / (positives.sum(dim=1) * negatives[:, -1])

    return scored


def _r2(outputs: Tensor, targets: Tensor) -> Scorer:
    """Mean over the target columns of the share of variance that the predictions explain."""
    errors, centred = (outputs - targets) ** 2, targets - targets.mean(dim=0)

    def scored(counts: Tensor) -> Tensor:
        variance = counts @ centred**2 - (counts @ centred) ** 2 / counts.sum(dim=1, keepdim=True)
        defined = variance > 1e-12 * (centred**2).sum(dim=0)
        return torch.where(defined, 1 - counts @ errors / variance, torch.nan).mean(dim=1)

    return scored


def _interval(differences: Tensor, alike: bool, generator: torch.Generator) -> tuple[float, float]:
    """The middle 95 % of the means over runs that are drawn anew, of differences [S, R]."""
    runs = torch.randint(len(differences), differences.shape, generator=generator)
    # A run that is drawn twice is so with other rows of its own, but with the same ones where all runs share them.
    drawn = [
        (differences if alike else differences.roll(place, dims=1)).gather(0, chosen.unsqueeze(0))
        for place, chosen in enumerate(runs)
    ]
    # Of a resample with one target value alone r2 is not defined: left out.
    low, high = torch.cat(drawn).mean(dim=0).nanquantile(torch.tensor([0.025, 0.975]).double()).tolist()
    return low, high


def _draw(targets: Tensor, spec: DataSpec, size: int, generator: torch.Generator) -> Tensor:
    """How often each row is drawn, [size, N]; of a binary task within each class, so that none is empty."""
    drawn = torch.zeros(size, len(targets), dtype=torch.float64)
    classes = [targets[:, 0] > 0.5, targets[:, 0] <= 0.5] if spec.task == "binary" else [torch.ones(len(targets)) > 0]
    for rows in (members.nonzero()[:, 0] for members in classes):
        places = rows[torch.randint(len(rows), (size, len(rows)), generator=generator)]
        drawn.scatter_add_(1, places, torch.ones(1, 1, dtype=torch.float64).expand_as(places))
    return drawn


def _chunks(num_rows: int) -> list[int]:
    """Resamples at once, as many as memory is meant for."""
    size = max(1, LARGEST_CHUNK // num_rows)
    whole, rest = divmod(NUM_RESAMPLES, size)
    return [size] * whole + [rest] * (rest > 0)


def _shared_targets(ours: Predictions, control: Predictions) -> Tensor:
    first, second = (one.targets.cpu().double() for one in (ours, control))
    if not torch.equal(first, second):
        raise DataError(
            f"a gain needs both runs tested on the same rows, got {len(first)} and {len(second)} rows with different "
            "targets; train the control on the same data and data.split"
        )
    return first


def _checked(predictions: Predictions, spec: DataSpec) -> tuple[Tensor, Tensor]:
    outputs, targets = (one.detach().cpu().double() for one in (predictions.outputs, predictions.targets))
    if spec.task not in METRICS:
        raise DataError(f"evidence needs data of task {', '.join(METRICS)}, got {spec.name}, which is {spec.task}")
    wide = () if spec.task == "multiclass" else (spec.num_outputs,)
    if outputs.shape != (len(targets), spec.num_outputs) or targets.shape[1:] != wide:
        raise DataError(
            f"predictions for {spec.name} ({spec.task}) need outputs [N, {spec.num_outputs}] and targets "
            f"[{', '.join(['N', *map(str, wide)])}], got {list(outputs.shape)} and {list(targets.shape)}; "
            "take runs on that data"
        )
    if len(targets) < FEWEST_ROWS:
        raise DataError(
            f"a gain needs at least {FEWEST_ROWS} test rows for its interval, got {len(targets)} of {spec.name}; "
            "give it more, or leave the control out: control=off"
        )
    if not outputs.isfinite().all():
        bad = int((~outputs.isfinite()).any(dim=1).sum())
        raise DataError(f"a score needs finite predictions, got NaN or infinity in {bad} of {len(outputs)} rows")
    if spec.task in ("binary", "regression") and (targets == targets[0]).all(dim=0).any():
        what = "both classes" if spec.task == "binary" else "targets that differ"
        raise DataError(f"{METRICS[spec.task]} needs {what} among the test rows, got {spec.name} with one value alone")
    return outputs, targets
