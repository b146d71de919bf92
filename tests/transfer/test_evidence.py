from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sklearn.metrics import r2_score, roc_auc_score
from torch import Tensor

from neurofleet import checkpoint
from neurofleet.errors import CheckpointError, ConfigError, DataError
from neurofleet.spec import DataSpec, Task
from neurofleet.transfer import evidence
from neurofleet.transfer.evidence import Predictions, forgetting, gain, pooled, read_predictions, score

MakeSpec = Callable[..., DataSpec]


@pytest.fixture
def make_spec() -> MakeSpec:
    def make(task: Task, classes: tuple[str, ...] = (), targets: tuple[str, ...] = ("kind",)) -> DataSpec:
        return DataSpec(
            name="made",
            kind="tabular",
            task=task,
            shape=(2,),
            inputs=("x", "y"),
            targets=targets,
            classes=classes,
            vocabulary=(),
            tokenizer="",
            cardinalities=(),
            input_mean=(0.0, 0.0),
            input_std=(1.0, 1.0),
            target_mean=(0.0,) * len(targets),
            target_std=(1.0,) * len(targets),
            split="hashed",
            num_rows={"train": 8, "val": 1, "test": 1},
            source="made for this test",
        )

    return make


@pytest.fixture
def three_classes(make_spec: MakeSpec) -> DataSpec:
    return make_spec("multiclass", ("a", "b", "c"))


def classified(right: Tensor) -> Predictions:
    """Rows of three classes, of which those marked are predicted as what they are."""
    targets = torch.arange(len(right)) % 3
    return Predictions(torch.nn.functional.one_hot((targets + ~right) % 3, 3).float(), targets)


def first(count: int, of: int) -> Tensor:
    return torch.arange(of) < count


def test_the_interval_is_the_one_known_for_shares(three_classes: DataSpec) -> None:
    """900 against 850 of 1,000, the control right on no other rows: how many rows of a resample differ is
    Binomial(1000, 0.05), whose middle 95 % are 37 to 64."""
    found = gain(classified(first(900, 1000)), classified(first(850, 1000)), three_classes, seed=0)
    assert (found.metric, found.num_rows, found.num_runs) == ("accuracy", 1000, 1)
    assert (found.ours, found.control) == (0.9, 0.85)
    assert found.difference == pytest.approx(0.05)
    assert (found.low, found.high) == pytest.approx((0.037, 0.064), abs=0.0011)
    assert found.is_outside
    assert str(found).startswith("accuracy 0.900 against 0.850 from scratch: +0.050 [+0.03")


def test_rows_are_paired(three_classes: DataSpec) -> None:
    """The same scores on opposite rows: the difference of a row is +1 or -1, not 0."""
    right = first(500, 1000)
    same, opposite = (gain(classified(right), classified(one), three_classes, seed=0) for one in (right, ~right))
    assert (same.low, same.high) == (0, 0)
    assert not same.is_outside
    assert not opposite.is_outside
    assert opposite.high - opposite.low == pytest.approx(2 * 1.96 / math.sqrt(1000), rel=0.06)


def test_the_seed_decides(three_classes: DataSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = classified(first(70, 100)), classified(first(61, 100))
    found = gain(*pair, three_classes, seed=3)
    assert gain(*pair, three_classes, seed=3) == found
    others = [gain(*pair, three_classes, seed=seed) for seed in range(4, 10)]
    assert any((other.low, other.high) != (found.low, found.high) for other in others)
    monkeypatch.setattr(evidence, "LARGEST_CHUNK", 1 << 14)
    chunked = gain(*pair, three_classes, seed=3)
    assert (chunked.low, chunked.high) == pytest.approx((found.low, found.high), abs=0.011)


def test_auroc_is_scikit_learns_with_ties_and_repeated_rows(make_spec: MakeSpec) -> None:
    spec = make_spec("binary", ("no", "yes"))
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randint(8, (200, 1), generator=generator).float()  # many ties
    targets = (torch.rand(200, 1, generator=generator) < 0.3).float()
    predictions = Predictions(outputs, targets)
    assert score(predictions, spec) == pytest.approx(roc_auc_score(targets, outputs))
    counts = evidence._draw(targets.double(), spec, 5, generator)
    assert torch.equal(counts @ targets.double(), targets.sum().double().expand(5, 1)), "drawn within each class"
    for found, row in zip(evidence._scorer(predictions, spec)(counts), counts, strict=True):
        times = row.long()
        drawn = [one[:, 0].repeat_interleave(times) for one in (targets, outputs)]
        assert float(found) == pytest.approx(roc_auc_score(*drawn))


def test_r2_is_scikit_learns(make_spec: MakeSpec) -> None:
    spec = make_spec("regression", targets=("height", "width"))
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(60, 2, generator=generator) + 1000  # far from zero
    outputs = targets + 0.5 * torch.randn(60, 2, generator=generator)
    counts = evidence._draw(targets, spec, 5, generator)
    for found, row in zip(evidence._scorer(Predictions(outputs, targets), spec)(counts), counts, strict=True):
        assert float(found) == pytest.approx(r2_score(targets, outputs, sample_weight=row), rel=1e-6)


def test_a_resample_with_one_target_value_is_left_out(make_spec: MakeSpec) -> None:
    """Drawn so in about (9 / 10)^10 = 35 of 100 resamples."""
    targets = torch.zeros(10, 1).index_fill(0, torch.tensor(0), 1.0)
    spec = make_spec("regression")
    found = gain(Predictions(targets * 0.9, targets), Predictions(targets * 0.1, targets), spec, seed=0)
    assert math.isfinite(found.low)
    assert math.isfinite(found.high)
    assert found.is_outside


def test_labels_count_alike(make_spec: MakeSpec) -> None:
    spec = make_spec("multilabel", ("p", "q"), ("p", "q"))
    targets = torch.tensor([[1.0, 0.0]] * 10)
    outputs = torch.tensor([[2.0, -1.0]] * 5 + [[-2.0, -1.0]] * 3 + [[-2.0, 1.0]] * 2)
    assert score(Predictions(outputs, targets), spec) == pytest.approx((10 + 3) / 20)


def test_several_runs_on_the_same_rows_are_no_more_rows(three_classes: DataSpec) -> None:
    """Three runs that say the same are as sure as one; on other rows each, sqrt(3) times as sure."""
    pair = classified(first(700, 1000)), classified(first(600, 1000))
    one, three = gain(*pair, three_classes, seed=0), pooled([pair] * 3, three_classes, seed=0)
    assert (three.low, three.high) == pytest.approx((one.low, one.high), abs=0.004)
    assert str(three).endswith("3 pairs of runs")
    apart = []
    for shift in range(3):
        targets = (torch.arange(1000) + shift) % 3
        outputs = [one.outputs.roll(shift, dims=1) for one in pair]
        apart.append((Predictions(outputs[0], targets), Predictions(outputs[1], targets)))
    found = pooled(apart, three_classes, seed=0)
    assert found.difference == pytest.approx(0.1)
    assert found.high - found.low == pytest.approx((one.high - one.low) / math.sqrt(3), rel=0.1)


def test_runs_that_disagree_widen_the_interval(three_classes: DataSpec) -> None:
    pairs = [(classified(first(count, 400)), classified(first(200, 400))) for count in (160, 360)]
    found = pooled(pairs, three_classes, seed=0)
    assert found.difference == pytest.approx(0.15)
    assert found.low < -0.05 < 0.35 < found.high, "either run alone may have been drawn twice"


def test_forgetting_is_a_loss_on_the_old_data(three_classes: DataSpec) -> None:
    found = forgetting(classified(first(96, 100)), classified(first(60, 100)), three_classes, seed=0)
    assert found.difference == pytest.approx(-0.36)
    assert found.high < 0
    assert str(found).startswith("accuracy on made 0.600 against 0.960 before fine-tuning: -0.360 [-0.4")


def test_predictions_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"got no .*predictions\.safetensors"):
        read_predictions(tmp_path)
    made = classified(first(8, 12))
    path = tmp_path / "predictions.safetensors"
    checkpoint.save_weights(path, dataclasses.asdict(made))
    found = read_predictions(tmp_path)
    assert torch.equal(found.outputs, made.outputs)
    assert torch.equal(found.targets, made.targets)
    checkpoint.save_weights(path, {"named_outputs": made.outputs, "targets": made.targets})
    with pytest.raises(ConfigError, match=r"lacks outputs \(it has named_outputs, targets\)"):
        read_predictions(tmp_path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(CheckpointError, match=r"predictions\.safetensors is damaged"):
        read_predictions(tmp_path)


def test_what_is_no_evidence_is_refused(make_spec: MakeSpec, three_classes: DataSpec) -> None:
    made, other = classified(first(9, 12)), classified(first(9, 13))
    with pytest.raises(DataError, match="tested on the same rows, got 12 and 13"):
        gain(made, other, three_classes, seed=0)
    with pytest.raises(DataError, match="at least 10 test rows for its interval, got 9"):
        gain(classified(first(9, 9)), classified(first(1, 9)), three_classes, seed=0)
    with pytest.raises(DataError, match=r"need outputs \[N, 2\] and targets \[N\], got \[12, 3\] and \[12\]"):
        gain(made, made, make_spec("multiclass", ("a", "b")), seed=0)
    with pytest.raises(DataError, match=r"of task multiclass, .*made, which is verification"):
        gain(made, made, make_spec("verification", ("a", "b", "c")), seed=0)
    broken = Predictions(made.outputs.index_fill(0, torch.tensor(4), torch.nan), made.targets)
    with pytest.raises(DataError, match="infinity in 1 of 12 rows"):
        gain(broken, made, three_classes, seed=0)
    with pytest.raises(DataError, match="auroc needs both classes"):
        score(Predictions(torch.randn(12, 1), torch.ones(12, 1)), make_spec("binary", ("no", "yes")))
    with pytest.raises(DataError, match="r2 needs targets that differ"):
        score(Predictions(torch.randn(12, 1), torch.ones(12, 1)), make_spec("regression"))
    with pytest.raises(ConfigError, match="at least one run"):
        pooled([], three_classes, seed=0)
