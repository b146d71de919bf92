"""178 wines, 13 chemical measurements, 3 cultivars."""

from __future__ import annotations

from sklearn.datasets import load_wine

from neurofleet.data.sources import columns
from neurofleet.data.write import Raw


def load() -> Raw:
    bunch = load_wine()
    return Raw(
        kind="tabular",
        task="multiclass",
        inputs=columns(bunch.data, bunch.feature_names),
        targets={"cultivar": bunch.target},
        classes=tuple(str(name) for name in bunch.target_names),
        source="scikit-learn load_wine: UCI Wine",
    )
