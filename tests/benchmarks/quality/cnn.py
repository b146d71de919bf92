"""The CNN on mnist5k; its settings were chosen by cross-validation within the 4,000 training rows."""

from rows import SEEDS, Row, fitted
from sklearn.svm import SVC

SUPPORT_VECTORS = ("support vectors, RBF", fitted(lambda: SVC(C=10.0)))
ROWS = (
    Row(("experiment=mnist5k_cnn",), SEEDS, "accuracy", 0.986, (SUPPORT_VECTORS,)),
    Row(("experiment=mnist5k_cnn", "trainer.max_epochs=8"), SEEDS, "accuracy", 0.983),
)
