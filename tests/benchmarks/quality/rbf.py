"""Gaussian units on digits and diabetes; their settings were chosen on splits from 10 on, reported are 0 to 9.

The wanted 0.991 on digits is that of k-means with 300 centres and ridge regression on ten splits of scikit-learn's; on
ours that method has what `KMEANS` says.
"""

import numpy as np
from rows import SPLITS, Row, fitted
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression, RidgeClassifier, RidgeCV
from sklearn.metrics import euclidean_distances
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC


class GaussianUnits(TransformerMixin, BaseEstimator):
    """Distances to 300 centres as the platform's family takes them, by scikit-learn's k-means."""

    def fit(self, rows: np.ndarray, targets: object = None) -> "GaussianUnits":
        self.centres_ = KMeans(300, n_init=1, random_state=0).fit(rows).cluster_centers_
        between = euclidean_distances(self.centres_)
        np.fill_diagonal(between, np.inf)
        self.widths_ = 2 * between.min(1)
        return self

    def transform(self, rows: np.ndarray) -> np.ndarray:
        return np.exp(-euclidean_distances(rows, self.centres_, squared=True) / (2 * self.widths_**2))


LOGISTIC = ("logistic regression", fitted(lambda: LogisticRegression(max_iter=3000)))
KMEANS = ("k-means 300 + ridge", fitted(lambda: make_pipeline(GaussianUnits(), RidgeClassifier(1e-3))))
SUPPORT_VECTORS = ("support vectors, RBF", fitted(lambda: SVC(C=10.0)))
RIDGE = ("ridge, cross-validated", fitted(lambda: RidgeCV(np.logspace(-2, 3, 20))))
ROWS = (
    Row(("experiment=digits_rbf",), SPLITS, "accuracy", 0.991, (LOGISTIC, KMEANS, SUPPORT_VECTORS)),
    Row(("experiment=diabetes_rbf",), SPLITS, "r2", 0.468, (RIDGE,)),
)
