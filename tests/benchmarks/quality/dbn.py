"""The deep belief network on mnist5k, and what pretraining is worth; settings were chosen on the validation rows."""

import tempfile
from pathlib import Path

from rows import SEEDS, Row, fitted
from sklearn.svm import SVC

from neurofleet import experiment as experiments
from neurofleet.run import Result, run


def gain(result: Result) -> float:
    """Accuracy above that of the same network without pretraining: all of training is then by the labels."""
    experiment = experiments.load(result.folder / "experiment.yaml")
    experiment["family"]["pretraining"] = 0.0
    with tempfile.TemporaryDirectory() as folder:
        plain = run(experiment, folder=Path(folder))
    return result.metrics["test/accuracy"] - plain.metrics["test/accuracy"]


SUPPORT_VECTORS = ("support vectors, RBF", fitted(lambda: SVC(C=10.0)))
ROWS = (
    Row(("experiment=mnist5k_dbn",), SEEDS, "accuracy", 0.960, (SUPPORT_VECTORS,)),
    Row(("experiment=mnist5k_dbn",), SEEDS, "gain by pretraining", 0.02, score=gain),
)
