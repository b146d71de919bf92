"""569 tumours, 30 measurements of cell nuclei."""

from __future__ import annotations

from sklearn.datasets import load_breast_cancer

from neurofleet.data.sources import columns
from neurofleet.data.write import Raw


def load() -> Raw:
    bunch = load_breast_cancer()
    return Raw(
        kind="tabular",
        task="binary",
        inputs=columns(bunch.data, bunch.feature_names),
        targets={"diagnosis": bunch.target},
        classes=tuple(str(name) for name in bunch.target_names),
        source="scikit-learn load_breast_cancer: UCI Breast Cancer Wisconsin (Diagnostic)",
    )
