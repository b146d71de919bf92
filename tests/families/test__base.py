"""What the base class gives every family besides its objective: a start, buffers, exhibits."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from neurofleet import checkpoint
from neurofleet import experiment as experiments
from neurofleet.errors import ConfigError
from neurofleet.families._base import Objective
from neurofleet.families._supervised import embedding_spec
from neurofleet.families.mlp import MLP
from neurofleet.launch import record
from neurofleet.run import run
from neurofleet.steps import Batch, Context

AVERAGE = "average"
PLAIN: dict[str, Any] = {"hidden": [], "activation": "relu", "dropout": 0.0, "embedding": 1, "label_smoothing": 0.0}
PLAIN["augmentation"] = {"degrees": 0.0, "scale": 0.0, "translation": 0.0}


class Averaged(MLP):
    """A perceptron that starts from zero biases of the data's choice, and keeps a running average of its readout."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.register_buffer(AVERAGE, torch.zeros_like(self.readout.weight))
        self.starts = 0

    def start(self, batch: Batch) -> None:
        self.starts += 1
        with torch.no_grad():
            self.readout.bias.fill_(len(batch[0]))

    def objective(self, batch: Batch, context: Context) -> Objective:
        found = super().objective(batch, context)
        average = self.get_buffer(AVERAGE) * 0.5 + self.readout.weight.detach() * 0.5
        return dataclasses.replace(found, buffers={AVERAGE: average})

    def exhibits(self, batch: Batch) -> dict[str, dict[str, Tensor]]:
        seen = {"confidences": torch.ones(len(batch[0])), "correct": torch.ones(len(batch[0]))}
        return super().exhibits(batch) | {"reliability": seen}


@pytest.fixture
def averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """`family=mlp` builds the class above."""
    monkeypatch.setattr("neurofleet.families.mlp.MLP", Averaged)


SHORT = ["family=mlp", "data=digits", "trainer.max_epochs=1", "data.batch_size=500", "family.hidden=[4]"]


@pytest.mark.usefixtures("averaged")
def test_a_run_starts_once_and_keeps_buffers(tmp_path: Path) -> None:
    composed = experiments.compose([*SHORT, "optimizer.lr=0.0", "optimizer.weight_decay=0.0"])
    run(composed, folder=tmp_path)
    weights, _ = checkpoint.decode((tmp_path / "weights.safetensors").read_bytes())
    assert weights["readout.bias"].tolist() == [1257.0] * 10, "it saw all training rows"
    torch.testing.assert_close(weights[AVERAGE], weights["readout.weight"] * (1 - 0.5**3))
    before = weights["readout.bias"]
    (tmp_path / "weights.safetensors").unlink()
    run(composed, folder=tmp_path, resume=True)
    weights, _ = checkpoint.decode((tmp_path / "weights.safetensors").read_bytes())
    assert torch.equal(weights["readout.bias"], before)


@pytest.mark.usefixtures("averaged")
def test_exhibits_become_pictures(tmp_path: Path) -> None:
    run(experiments.compose(SHORT), folder=tmp_path)
    stored, _ = checkpoint.decode((tmp_path / "exhibits.safetensors").read_bytes())
    assert {name.split("/")[0] for name in stored} == {"reliability", "worst_mistakes"}
    assert stored["reliability/correct"].tolist() == [1.0] * 360
    drawn = [path.name for path in record.draw(tmp_path)]
    assert drawn == ["learning_curves.png", "confusion_matrix.png", "reliability.png", "worst_mistakes.png"]
    assert all((tmp_path / "figures" / name).stat().st_size > 5000 for name in drawn)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:The number of training batches")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning", "ignore:You defined a `validation_step`")
def test_a_stock_trainer_starts_and_keeps_buffers(make_spec: Any) -> None:
    family = Averaged(spec=make_spec(), **PLAIN)
    family.recipe = experiments.build_recipe(
        experiments.compose(["optimizer.lr=0.0", "optimizer.weight_decay=0.0"]),
        num_steps=4, log_every_n_steps=1, gradient_clip_val=None,
    )  # fmt: skip
    rows: Any = torch.utils.data.TensorDataset(torch.randn(16, 4), torch.arange(16) % 3)
    loader: Any = torch.utils.data.DataLoader(rows, batch_size=8)
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, max_epochs=2,
    )  # fmt: skip
    trainer.fit(family, loader)
    assert family.starts == 1
    assert family.readout.bias.tolist() == [16.0] * 3
    torch.testing.assert_close(family.get_buffer(AVERAGE), family.readout.weight.detach() * (1 - 0.5**4))


def test_a_config_within_a_config_is_a_function_that_builds(make_spec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEUROFLEET_TARGETS", "argparse.Namespace")
    inner = experiments.compose(["family=mlp", "family.hidden=[7]"])["family"]
    given = experiments.build({"_target_": "argparse.Namespace", "encoder": inner, "size": 3})
    assert given.size == 3
    assert isinstance(given.encoder(spec=make_spec()), MLP)
    with pytest.raises(ConfigError, match="allowed"):
        experiments.build({"_target_": "argparse.Namespace", "encoder": {"_target_": "os.system"}})


def test_an_encoder_ends_in_an_embedding(make_spec: Any) -> None:
    spec = embedding_spec(make_spec(), 5)
    assert MLP(spec=spec, **PLAIN)(torch.zeros(2, 4)).shape == (2, 5)
