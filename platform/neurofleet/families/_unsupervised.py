"""What every unsupervised family shares: it learns from the inputs alone, whatever they are numbers of."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from neurofleet.families._base import Family
from neurofleet.steps import Context


class UnsupervisedFamily(Family):
    """Abstract: a subclass gives `objective` (which leaves the targets alone), `score_names`, `output_names`, and
    `forward`, which says of each row what those names stand for."""

    kinds: ClassVar[frozenset[str]] = frozenset({"tabular", "image", "sequence"})
    tasks: ClassVar[frozenset[str]] = frozenset({"binary", "multiclass", "multilabel", "regression", "verification"})

    @abstractmethod
    def forward(self, inputs: Tensor, context: Context | None = None) -> Tensor:
        """Standardised inputs [batch, *spec.shape] -> [batch, len(output_names)]."""

    def raw(self, inputs: Tensor) -> Tensor:
        """Standardised inputs [batch, *spec.shape] in the user's units, those of the Parquet files."""
        axis = -1 if self.spec.kind == "sequence" else 1
        shape = [1] * (1 + len(self.spec.shape))
        shape[axis] = -1
        mean = torch.tensor(self.spec.input_mean, dtype=inputs.dtype, device=inputs.device).view(shape)
        std = torch.tensor(self.spec.input_std, dtype=inputs.dtype, device=inputs.device).view(shape)
        return inputs * std + mean
