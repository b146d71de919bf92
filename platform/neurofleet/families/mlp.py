"""Multi-layer perceptron (Rumelhart, Hinton and Williams 1986) for tables, flattened images and sequences, and indices.

Shape suffixes: B batch, K columns of indices, H units of a hidden layer, O outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from neurofleet.errors import ConfigError
from neurofleet.families._layers import Dropout, RandomAffine, activation_by_name, checked_rate, numbers
from neurofleet.families._supervised import SupervisedFamily
from neurofleet.spec import DataSpec
from neurofleet.steps import Context


class MLP(SupervisedFamily):
    """Fully connected layers, each followed by the activation and dropout.

    In: [B, *spec.shape], flattened; or [B, K] indices, each column embedded.
    Out: [B, spec.num_outputs] logits or values.
    Loss: by task, see `neurofleet.families._supervised`.

    hidden:          units of each hidden layer; empty for a linear model
    activation:      relu, sigmoid, tanh or gelu
    dropout:         rate after each hidden layer
    embedding:       units that a column of indices becomes
    label_smoothing: of classification, in training
    augmentation:    of images: degrees, scale, translation of random affine distortions in training; zeros for none
    """

    kinds: ClassVar[frozenset[str]] = frozenset({"tabular", "categorical", "image", "sequence"})

    def __init__(
        self,
        *,
        spec: DataSpec,
        hidden: list[int],
        activation: str,
        dropout: float,
        embedding: int,
        label_smoothing: float,
        augmentation: Mapping[str, float],
    ) -> None:
        super().__init__(spec=spec, label_smoothing=label_smoothing)
        if any(units < 1 for units in hidden):
            raise ConfigError(f"family.hidden needs layers of at least one unit, got {list(hidden)}")
        if embedding < 1:
            raise ConfigError(f"family.embedding needs at least one unit, got {embedding}")
        self.embeddings = nn.ModuleList(nn.Embedding(size, embedding) for size in spec.cardinalities)
        num_inputs = embedding * len(self.embeddings) if spec.kind == "categorical" else spec.num_inputs
        sizes = [num_inputs, *hidden]
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(sizes))
        checked_rate(dropout)  # even where no layer is left to drop from
        self.dropouts = nn.ModuleList(Dropout(dropout, site) for site in range(len(hidden)))
        self.distort = RandomAffine.from_config(augmentation, spec, site=len(hidden))
        self.readout = nn.Linear(sizes[-1], spec.num_outputs)
        self.activation = activation_by_name(activation)

    def augment(self, inputs: Tensor, context: Context) -> Tensor:
        return self.distort(inputs, context)

    def features(self, inputs: Tensor, context: Context | None = None) -> Tensor:
        """The last hidden layer's units; the inputs themselves where there is none."""
        if self.embeddings:
            hidden_BH = torch.cat(
                [embed(column) for embed, column in zip(self.embeddings, inputs.T, strict=True)], dim=1
            )
        else:
            hidden_BH = numbers(inputs)
        for layer, dropout in zip(self.layers, self.dropouts, strict=True):
            hidden_BH = dropout(self.activation(layer(hidden_BH)), context)
        return hidden_BH

    @property
    def heads(self) -> tuple[str, ...]:
        return ("readout",)

    def forward(self, inputs: Tensor, context: Context | None = None) -> Tensor:
        return self.readout(self.features(inputs, context))
