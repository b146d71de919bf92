"""The figures of a finished run, whatever its data are called."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from neurofleet import checkpoint
from neurofleet import experiment as experiments
from neurofleet.figures import learning_curves
from neurofleet.launch.record import draw
from neurofleet.spec import DataSpec


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """What a classifier of incomes leaves; dollars stand in pairs, as in a formula."""
    spec = DataSpec(
        name="income",
        kind="tabular",
        task="multiclass",
        shape=(2,),
        inputs=("$ 5 % off", "age"),
        targets=("earns $ ^",),
        classes=("<$50k $#", ">$50k $_"),
        vocabulary=(),
        tokenizer="",
        cardinalities=(),
        input_mean=(0.0, 0.0),
        input_std=(1.0, 1.0),
        target_mean=(),
        target_std=(),
        split="hashed",
        num_rows={"train": 3, "val": 3, "test": 3},
        source="by hand",
    )
    spec.save(tmp_path / "spec.json")
    experiments.save(experiments.compose(["data=wine", "data.name=income"]), tmp_path / "experiment.yaml")
    history = [{"step": 3, "epoch": 1, "train/loss_epoch": 0.5, "val/loss": 0.6}]
    (tmp_path / "history.json").write_text(json.dumps(history))
    outputs, targets = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 0.0]]), torch.tensor([0, 1, 1])
    checkpoint.save_weights(tmp_path / "predictions.safetensors", {"outputs": outputs, "targets": targets})
    mistakes = {
        "examined": torch.tensor([3]),
        "inputs": torch.zeros(1, 2),
        "rows": torch.tensor([2]),
        "targets": torch.tensor([1]),
        "predictions": torch.tensor([0]),
        "probabilities": torch.tensor([0.73]),
    }
    exhibits = {f"worst_mistakes/{name}": tensor for name, tensor in mistakes.items()}
    checkpoint.save_weights(tmp_path / "exhibits.safetensors", exhibits)
    return tmp_path


def exhibit(folder: Path, **tensors: torch.Tensor) -> None:
    before, _ = checkpoint.decode((folder / "exhibits.safetensors").read_bytes())
    checkpoint.save_weights(folder / "exhibits.safetensors", before | tensors)


def test_dollars_are_no_formulas(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = draw(finished)
    assert [path.name for path in drawn] == ["learning_curves.png", "confusion_matrix.png", "worst_mistakes.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
    assert capsys.readouterr().err == ""


def test_learning_curves_say_what_learnt(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles = []
    monkeypatch.setattr(learning_curves, "learning_curves", lambda history, path, *, title: titles.append(title))
    draw(finished)
    assert titles == ["mlp on income: learning curves"]


def test_a_picture_that_cannot_be_drawn_costs_the_others_nothing(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exhibit(finished, **{"worst_mistakes/colour": torch.zeros(1), "hitmap/counts": torch.tensor(np.eye(2))})
    assert [path.name for path in draw(finished)] == ["learning_curves.png", "confusion_matrix.png"]
    told = capsys.readouterr().err
    assert "there is no figure 'hitmap'; did you mean hit_map?" in told
    assert "figure worst_mistakes was not drawn: TypeError" in told
