"""442 patients, 10 measurements in their own units, disease progression after one year."""

from __future__ import annotations

from sklearn.datasets import load_diabetes

from neurofleet.data.sources import columns
from neurofleet.data.write import Raw


def load() -> Raw:
    bunch = load_diabetes(scaled=False)
    return Raw(
        kind="tabular",
        task="regression",
        inputs=columns(bunch.data, bunch.feature_names),
        targets={"progression": bunch.target},
        source="scikit-learn load_diabetes (scaled=False): Efron et al., Least Angle Regression, 2004",
    )
