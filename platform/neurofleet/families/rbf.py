"""Radial basis functions (Broomhead and Lowe 1988): Gaussian units around centres, and a linear readout.

Training starts from Moody and Darken's (1989) fast learning: centres by k-means on the inputs, widths by the distance
to the nearest other centre, the readout by least squares on the targets.  Gradient descent on the task's loss then
moves all of them.

Shape suffixes: B batch, N rows, F features, U units, O outputs.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from neurofleet import counter
from neurofleet.errors import ConfigError
from neurofleet.families._layers import numbers, squared_distances
from neurofleet.families._supervised import SupervisedFamily
from neurofleet.spec import DataSpec
from neurofleet.steps import Batch, Context

NUM_ROUNDS = 100  # of k-means, at most
PART = 4096  # rows whose distances to all centres are held at once
SAMPLING, PAIRING, SEEDING = -2, -3, -4  # the sites of what `start` draws; a step's count up from zero


class RBF(SupervisedFamily):
    """Units exp(-|x - centre|^2 / (2 width^2)), then the readout.

    In: [B, *spec.shape], flattened.
    Out: [B, spec.num_outputs] logits or values.
    Loss: by task, see `neurofleet.families._supervised`.

    `start` needs no more rows than there are: where centres are more than rows, it puts the rest at random places
    between random pairs of rows.

    centres:         number of units; at least as many as classes, and two
    width:           of a unit, as a multiple of the distance from its centre to the nearest other one
    shared_width:    whether all start with the mean of those distances
    ridge:           penalty on the squared weights of the readout's least squares, beside the mean squared error
    margin:          logits that least squares aims at: this far apart for right and wrong classes
    sample:          rows that k-means sees, at most
    label_smoothing: of classification, in training
    """

    kinds: ClassVar[frozenset[str]] = frozenset({"tabular", "image", "sequence"})

    def __init__(
        self,
        *,
        spec: DataSpec,
        centres: int,
        width: float,
        shared_width: bool,
        ridge: float,
        margin: float,
        sample: int,
        label_smoothing: float,
    ) -> None:
        super().__init__(spec=spec, label_smoothing=label_smoothing)
        if centres < len(spec.classes):
            raise ConfigError(
                f"RBF needs centres >= classes, got centres={centres}, classes={len(spec.classes)}; "
                f"raise family.centres to at least {len(spec.classes)}"
            )
        if centres < 2:
            raise ConfigError(f"RBF needs a neighbour for each centre, got centres={centres}; set family.centres=2")
        for name, value in (("width", width), ("ridge", ridge), ("margin", margin)):
            if not value > 0:
                raise ConfigError(f"family.{name} needs a number above 0, got {value}")
        if sample < centres:
            raise ConfigError(f"RBF needs sample >= centres, got sample={sample}; raise family.sample to {centres}")
        self.width, self.ridge, self.margin, self.sample = width, ridge, margin, sample
        self.shared_width = shared_width
        self.centres = nn.Parameter(torch.randn(centres, spec.num_inputs))
        # Among standardised features two rows are about this far apart.
        self.log_widths = nn.Parameter(torch.full((centres,), 2.0 * spec.num_inputs).sqrt().log())
        self.readout = nn.Linear(centres, spec.num_outputs)

    def features(self, inputs: Tensor, context: Context | None = None) -> Tensor:
        """What the Gaussian units say."""
        return self.units(numbers(inputs))

    @property
    def heads(self) -> tuple[str, ...]:
        return ("readout",)

    def forward(self, inputs: Tensor, context: Context | None = None) -> Tensor:
        return self.readout(self.features(inputs, context))

    def units(self, rows_NF: Tensor) -> Tensor:
        """What the Gaussian units say of rows, [N, U]."""
        return torch.exp(
            squared_distances(rows_NF, self.centres).clamp_min(0) * (-0.5 * torch.exp(-2 * self.log_widths))
        )

    def start(self, batch: Batch) -> None:
        inputs, targets = batch
        rows_NF, seed = numbers(inputs), self.recipe.seed
        with torch.no_grad():
            # On the CPU: sums on a GPU, whose order is not fixed, would not give every run of a seed the same centres.
            centres_UF = k_means(self._sample(rows_NF, seed).cpu(), len(self.centres), seed)
            self.centres.copy_(centres_UF)
            distances_U = nearest_distances(centres_UF)
            self.log_widths.copy_((self.width * (distances_U.mean() if self.shared_width else distances_U)).log())
            weight_OU, bias_O = self._least_squares(rows_NF, self._aims(targets))
            self.readout.weight.copy_(weight_OU)
            self.readout.bias.copy_(bias_O)

    def _sample(self, rows_NF: Tensor, seed: int) -> Tensor:
        """At most `sample` of the rows; at least as many as centres, with points between rows where rows are few."""
        num_rows, num_lacking = len(rows_NF), len(self.centres) - len(rows_NF)
        if num_rows > self.sample:
            words = counter.uniform(counter.fold(seed, SAMPLING), _count(num_rows, rows_NF), (), torch.float64)
            return rows_NF[words.argsort()[: self.sample].sort().values]
        if num_lacking <= 0:
            return rows_NF
        draws = counter.uniform(counter.fold(seed, PAIRING), _count(num_lacking, rows_NF), (3,), rows_NF.dtype)
        first, second = (draws[:, :2] * num_rows).long().clamp_(max=num_rows - 1).T
        return torch.cat([rows_NF, torch.lerp(rows_NF[first], rows_NF[second], draws[:, 2:])])

    def _aims(self, targets: Tensor) -> Tensor:
        """What least squares fits the outputs to, float64 [N, O]."""
        match self.spec.task:
            case "multiclass":
                hot = nn.functional.one_hot(targets, len(self.spec.classes))
                return (hot.double() - 0.5) * self.margin
            case "regression":
                return targets.double()
            case _:
                return (targets.double() - 0.5) * self.margin

    def _least_squares(self, rows_NF: Tensor, aims_NO: Tensor) -> tuple[Tensor, Tensor]:
        """Weight [O, U] and bias [O] of least mean squared error plus `ridge` times the squared weights; the normal
        equations in float64, part by part."""
        num_rows, (num_outputs, num_units) = len(rows_NF), self.readout.weight.shape
        parts = list(zip(rows_NF.split(PART), aims_NO.split(PART), strict=True))
        mean_U = sum(self.units(rows).double().sum(0) for rows, _ in parts) / num_rows
        mean_O = aims_NO.mean(0)
        products_UU, products_UO = mean_O.new_zeros(num_units, num_units), mean_O.new_zeros(num_units, num_outputs)
        for rows, aims in parts:
            centred_NU = self.units(rows).double() - mean_U
            products_UU += centred_NU.T @ centred_NU
            products_UO += centred_NU.T @ (aims - mean_O)
        products_UU.diagonal().add_(self.ridge * num_rows)
        weight_UO = torch.linalg.solve(products_UU, products_UO)
        return weight_UO.T, mean_O - mean_U @ weight_UO


def _count(number: int, like: Tensor) -> Tensor:
    return torch.arange(number, dtype=torch.int32, device=like.device)


def nearest_distances(centres_UF: Tensor) -> Tensor:
    """[U]: how far each centre is from the nearest other one, but a tenth of the mean distance at least: twins would
    have no width."""
    distances_UU = squared_distances(centres_UF, centres_UF).clamp_min(0)
    nearest_U = distances_UU.fill_diagonal_(torch.inf).amin(1).sqrt()
    least = 0.1 * nearest_U.mean()
    return nearest_U.clamp_min(least if least > 0 else 1.0)  # all are twins: any width will do


def k_means(rows_NF: Tensor, num_centres: int, seed: int) -> Tensor:
    """Centres [U, F] by Lloyd's algorithm, from those of k-means++ (Arthur and Vassilvitskii 2007), until no row
    changes its centre.  A centre that has lost its last row stays where it is."""
    centres_UF = _spread(rows_NF, num_centres, seed)
    chosen_N = torch.full((len(rows_NF),), -1, device=rows_NF.device)
    for _ in range(NUM_ROUNDS):
        before, chosen_N = chosen_N, _nearest(rows_NF, centres_UF)
        if torch.equal(before, chosen_N):
            break
        sums_UF = torch.zeros_like(centres_UF).index_add_(0, chosen_N, rows_NF)
        counts_U = torch.bincount(chosen_N, minlength=num_centres).unsqueeze(1)
        centres_UF = torch.where(counts_U > 0, sums_UF / counts_U.clamp_min(1), centres_UF)
    return centres_UF


def _nearest(rows_NF: Tensor, centres_UF: Tensor) -> Tensor:
    """[N]: the nearest centre of each row."""
    return torch.cat([squared_distances(rows, centres_UF).argmin(1) for rows in rows_NF.split(PART)])


def _spread(rows_NF: Tensor, num_centres: int, seed: int) -> Tensor:
    """Rows to start k-means from: each is drawn in proportion to its squared distance from those drawn before."""
    draws = counter.uniform(counter.fold(seed, SEEDING), _count(num_centres, rows_NF), (), torch.float64)
    weights_N = torch.ones(len(rows_NF), dtype=torch.float64, device=rows_NF.device)
    nearest_N, chosen = torch.full_like(weights_N, torch.inf), []
    for draw in draws:
        sums_N = weights_N.cumsum(0)
        row = torch.searchsorted(sums_N, draw * sums_N[-1], right=True).clamp_max(len(rows_NF) - 1)
        chosen.append(row)
        distances_N = (rows_NF - rows_NF[row]).square().sum(1).double()
        nearest_N = torch.minimum(nearest_N, distances_N)
        # When every row is a centre already, any will do.
        weights_N = torch.where(nearest_N.sum() > 0, nearest_N, torch.ones_like(nearest_N))
    return rows_NF[torch.stack(chosen)]
