"""Losses of seeded runs, pinned: a change that moves one by more than rounding has to be meant.

After such a change: `.venv/bin/python tests/golden/refresh.py`, and say in the commit why the figures moved.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "platform"))

STORED = Path(__file__).with_name("losses.json")
COMMON = ["data=digits", "trainer.precision=64-true", "trainer.max_epochs=3", "schedule=cosine", "seed=7"]
COMMON += ["trainer.num_threads=1"]
AGENT = [*COMMON[1:], "data=env/cartpole", "data.steps_per_epoch=1024", "data.batch_size=100", "data.animate=false"]
GOLDEN = {
    "mlp-digits": [*COMMON, "family=mlp", "family.dropout=0.2", "optimizer=sgd", "family.label_smoothing=0.1"],
    "cnn-digits": [*COMMON, "family=cnn", "family.channels=[8,16]", "family.kernel_size=3",
                   "family.label_smoothing=0.1", "family.augmentation={degrees: 10.0, scale: 0.1, translation: 0.1}"],
    "autoencoder-digits": [*COMMON, "family=autoencoder", "family.variant=variational", "family.reconstruction=bce",
                           "family.architecture=convolutional", "family.channels=[8,16]"],
    "capsule-digits": [*COMMON, "family=capsule", "family.augmentation={degrees: 10.0, scale: 0.1, translation: 0.1}"],
    "dbn-digits": [*COMMON, "family=dbn", "family.num_chains=20", "family.gibbs_steps=2", "family.dropout=0.1"],
    "dqn-cartpole": [*AGENT, "family=dqn", "family.num_steps=2", "family.target_rate=0.5", "family.target_every=10"],
    "ppo-cartpole": [*AGENT, "family=ppo", "family.entropy_weight=0.01"],
    "rbf-digits": [*COMMON, "family=rbf", "family.centres=30"],
    "som-digits": [*COMMON, "family=som", "family.rows=5", "family.grid=hexagonal"],
    "spiking-digits": [*COMMON, "family=spiking", "family.architecture=convolutional", "family.channels=[8]",
                       "family.kernel_size=3", "family.hidden=[16]", "family.num_steps=4", "family.coding=rate"],
    "siamese-digits": [*COMMON, "family=siamese", "family@family.encoder=cnn", "family.turns=2",
                       "family.halves=0.5", "family.loss=triplet"],
    "rnn-digits": [*COMMON, "family=rnn", "family.bidirectional=true", "family.num_layers=2", "family.hidden=32",
                   "family.dropout=0.2", "family.jitter=0.1", "family.channels=[8]", "family.kernel_sizes=[3]"],
    "transformer-digits": [*COMMON, "family=transformer", "family.width=32", "family.label_smoothing=0.1",
                           "family.augmentation={degrees: 10.0, scale: 0.1, translation: 0.1}"],
    "gan-digits": [*COMMON, "family=gan", "optimizer=adam", "family.channels=[8,16]",
                   "family.augmentation={degrees: 0.0, scale: 0.0, translation: 0.1}"],
}  # fmt: skip


def losses(name: str) -> dict[str, list[float]]:
    """Training and validation loss of every epoch; agents have returns in validation."""
    from neurofleet import experiment
    from neurofleet.run import run

    with tempfile.TemporaryDirectory() as folder:
        run(experiment.compose(GOLDEN[name]), folder=Path(folder))
        rows = json.loads((Path(folder) / "history.json").read_text())
    validation = "val/loss" if "val/loss" in rows[0] else "val/return"
    return {metric: [row[metric] for row in rows] for metric in ("train/loss_epoch", validation)}


if __name__ == "__main__":  # all, or those that are named
    chosen = sys.argv[1:] or list(GOLDEN)
    stored = json.loads(STORED.read_text()) if STORED.exists() else {}
    renewed = {name: losses(name) if name in chosen else stored[name] for name in GOLDEN if name in {*chosen, *stored}}
    STORED.write_text(json.dumps(renewed, indent=1) + "\n")
