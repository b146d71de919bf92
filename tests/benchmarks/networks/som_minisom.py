"""MiniSom instead of a loop by hand: a map of 10x10 units on digits, at equal passes over the rows."""

import contenders
from minisom import MiniSom

from neurofleet import experiment as experiments

OVERRIDES = ["experiment=digits_som"]


def train(epochs: int) -> float:
    """Seconds of so many passes."""
    rows = experiments.build_data(experiments.compose(OVERRIDES)).rows("train").inputs.flatten(1).double().numpy()
    grid = MiniSom(10, 10, rows.shape[1], sigma=1.5, learning_rate=0.5, random_seed=0)
    begin = contenders.clock()
    grid.train(rows, epochs * len(rows), random_order=True)
    return contenders.clock() - begin
