"""What an unsupervised family leaves behind is no prediction of the targets."""

from __future__ import annotations

from pathlib import Path

from neurofleet import checkpoint
from neurofleet import experiment as experiments
from neurofleet.launch.record import draw
from neurofleet.run import run


def test_codes_as_many_as_classes_are_not_taken_for_predictions(tmp_path: Path) -> None:
    """Eight codes and a score, for nine speakers: no confusion matrix."""
    overrides = ["family=autoencoder", "data=japanese_vowels", "family.code=8", "trainer.max_epochs=1"]
    run(experiments.compose([*overrides, "trainer.num_threads=1", "family.hidden=[8]"]), folder=tmp_path)
    tensors, _ = checkpoint.decode((tmp_path / "predictions.safetensors").read_bytes())
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "named_outputs": (370, 9),
        "targets": (370,),
    }
    assert {path.stem for path in draw(tmp_path)} == {"learning_curves", "reconstructions", "code_map"}
