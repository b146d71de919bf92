"""The spiking network on mnist5k; its settings were chosen on the 400 validation rows.  The second row bounds what an
answer costs: the share of neurons that fire at a step."""

from rows import SEEDS, Row, fitted
from sklearn.linear_model import LogisticRegression

LOGISTIC = ("logistic regression", fitted(lambda: LogisticRegression(C=0.01, max_iter=300)))
EXPERIMENT = ("experiment=mnist5k_spiking",)
ROWS = (
    Row(EXPERIMENT, SEEDS, "accuracy", 0.960, (LOGISTIC,)),
    Row(EXPERIMENT, SEEDS[:1], "spike_rate", 0.25, lower=True),
)
