"""References: the training rows that a step's rows are held against, drawn by the step alone.

Shape suffixes: B rows, R references, N training rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from neurofleet import counter


class References:
    """The training rows by class, to draw from."""

    def __init__(self, inputs: Tensor, labels_N: Tensor) -> None:
        self.inputs = inputs
        self.order_N = labels_N.argsort(stable=True)
        self.classes, self.counts = labels_N.unique(return_counts=True)
        self.firsts = self.counts.cumsum(0) - self.counts
        self.num_labels = int(self.classes[-1]) + 1

    def draw(self, number: int, key: counter.Key) -> tuple[Tensor, Tensor]:
        """(inputs, labels) of so many rows, spread evenly over the classes."""
        slots_R = torch.arange(number, dtype=torch.int32, device=self.inputs.device)
        draws_R2 = counter.uniform(key, slots_R, (2,), torch.float64)
        return self._members((slots_R + draws_R2[:, 0]) / number, draws_R2[:, 1])

    def partners(self, rows_B: Tensor, key: counter.Key) -> tuple[Tensor, Tensor]:
        """(inputs, labels) of a row of any class for each row of a batch."""
        draws_B2 = counter.uniform(key, rows_B, (2,), torch.float64)
        return self._members(draws_B2[:, 0], draws_B2[:, 1])

    def _members(self, quantiles_of_classes_R: Tensor, quantiles_R: Tensor) -> tuple[Tensor, Tensor]:
        """The rows at quantiles, in [0, 1), of the classes and of a class's rows."""
        classes_R = (quantiles_of_classes_R * len(self.classes)).long()
        places_R = self.firsts[classes_R] + (quantiles_R * self.counts[classes_R]).long()
        return self.inputs[self.order_N[places_R]], self.classes[classes_R]
