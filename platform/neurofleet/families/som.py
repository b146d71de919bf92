"""Self-organizing map (Kohonen 1982): units on a grid; the nearest one to a row and its neighbours move towards it.

With the neighbourhood's weights h held constant, the gradient of mean over rows of sum over units of
h(winner, unit) |x - w|^2 / 2 with respect to w is the mean of h (w - x).  A step of `torch.optim.SGD` with learning
rate lr and no momentum is therefore Kohonen's update of a batch, w <- w + lr mean(h (x - w)): his rule for one row,
whose rate is lr / B, summed over B rows that see the same map.  Any lr up to 2 is stable.  Where every unit has the
same mean of h (`share`), lr = 1 / share is one step of his batch map, w <- sum(h x) / sum(h).

Shape suffixes: B batch, N rows, F features, U units (row by row of the grid), R rows and C columns of the grid.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neurofleet.errors import ConfigError
from neurofleet.families._base import Objective
from neurofleet.families._layers import numbers, squared_distances
from neurofleet.families._unsupervised import UnsupervisedFamily
from neurofleet.spec import DataSpec
from neurofleet.steps import Batch, Context

GRIDS = ("rectangular", "hexagonal")
NEIGHBOURHOODS = ("gaussian", "bubble")
TINY = 1e-12
SQUARED_REACH = {"rectangular": 2.1, "hexagonal": 1.1}  # of a unit's 8, or 6, direct neighbours, and rounding


class SOM(UnsupervisedFamily):
    """A grid of units, each a point among the inputs; `start` lays it on the plane of their two principal components.

    In: [B, *spec.shape], flattened.
    Out: [B, 3], the row and the column of the nearest unit and the distance to it.
    Loss: half the squared distance to all units, weighted by their neighbourhood to the nearest one.
    Scores: quantization_error, the mean distance to the nearest unit (in standardised units); topographic_error, the
    share of rows whose two nearest units are no direct neighbours (8 of a rectangular grid, 6 of a hexagonal one).

    rows, columns: of the grid
    grid:          rectangular or hexagonal; in the latter every other row is shifted by half a unit
    neighbourhood: gaussian, or bubble: 1 within the radius and 0 beyond
    start_radius:  of the neighbourhood, in units of the grid
    end_radius:    what it decays to, exponentially in the course of training
    """

    output_names = ("row", "column", "distance")

    def __init__(
        self,
        *,
        spec: DataSpec,
        rows: int,
        columns: int,
        grid: str,
        neighbourhood: str,
        start_radius: float,
        end_radius: float,
    ) -> None:
        super().__init__(spec=spec)
        if min(rows, columns) < 1 or rows * columns < 2:
            raise ConfigError(f"SOM needs at least two units, got rows={rows}, columns={columns}; try 10 of each")
        for name, value, known in (("grid", grid, GRIDS), ("neighbourhood", neighbourhood, NEIGHBOURHOODS)):
            if value not in known:
                raise ConfigError(f"family.{name} needs {' or '.join(known)}, got {value!r}")
        if not 0 < end_radius <= start_radius:
            raise ConfigError(
                f"SOM needs 0 < end_radius <= start_radius, got end_radius={end_radius}, start_radius={start_radius}"
            )
        self.rows, self.columns, self.grid, self.neighbourhood = rows, columns, grid, neighbourhood
        self.start_radius, self.end_radius = start_radius, end_radius
        self.units = nn.Parameter(torch.randn(rows * columns, spec.num_inputs))
        self.steps_UU: Tensor  # squared distances on the grid
        places_U2 = grid_places(rows, columns, grid)
        # Multiples of a quarter, made exact: no radius may depend on the rounding of a square root.
        steps_UU = ((places_U2.unsqueeze(1) - places_U2).square().sum(-1) * 4).round() / 4
        self.register_buffer("steps_UU", steps_UU, persistent=False)

    @property
    def score_names(self) -> list[str]:
        return ["loss", "quantization_error", "topographic_error"]

    def features(self, inputs: Tensor, context: Context | None = None) -> Tensor:
        """How much nearer each unit is than the row's mean distance, in deviations of its distances, and 0 for those
        that are farther: the "triangle" of Coates, Lee and Ng (2011), on the same scale for any inputs.  It tells far
        more than the winner alone, and more than the distances themselves, whose squares are linear in the inputs but
        for what all units share."""
        squared_BU = squared_distances(numbers(inputs), self.units).clamp_min(TINY)  # a root has no slope at 0
        return F.relu(-F.layer_norm(squared_BU.sqrt(), (len(self.units),)))

    @property
    def heads(self) -> tuple[str, ...]:
        return ("steps_UU",)

    def forward(self, inputs: Tensor, context: Context | None = None) -> Tensor:
        squared_B, winner_B = squared_distances(numbers(inputs), self.units).min(dim=1)
        row_B, column_B = winner_B // self.columns, winner_B % self.columns
        return torch.stack([row_B.to(inputs.dtype), column_B.to(inputs.dtype), squared_B.clamp_min(0).sqrt()], dim=1)

    def objective(self, batch: Batch, context: Context) -> Objective:
        squared_BU = squared_distances(numbers(batch[0]), self.units)
        held_BU = squared_BU.detach()
        steps_BU = self.steps_UU[held_BU.argmin(dim=1)]
        radius = self._radius(context.progress if context.training else 1.0)
        if self.neighbourhood == "gaussian":
            weights_BU = torch.exp(steps_BU * (-0.5 / radius**2))
        else:
            weights_BU = (steps_BU <= radius**2).to(squared_BU.dtype)
        loss = 0.5 * (weights_BU * squared_BU).sum() / len(squared_BU)
        return Objective(loss, self._errors(held_BU) if context.measure else {})

    def errors(self, inputs: Tensor) -> dict[str, Tensor]:
        """The map's scores of each row: [B] each."""
        return self._errors(squared_distances(numbers(inputs), self.units))

    def _radius(self, progress: float) -> float:
        return self.start_radius * (self.end_radius / self.start_radius) ** progress

    def _errors(self, squared_BU: Tensor) -> dict[str, Tensor]:
        nearest_B2, units_B2 = squared_BU.topk(2, dim=1, largest=False)
        torn_B = self.steps_UU[units_B2[:, 0], units_B2[:, 1]] > SQUARED_REACH[self.grid]
        return {"quantization_error": nearest_B2[:, 0].clamp_min(0).sqrt(), "topographic_error": torn_B}

    def start(self, batch: Batch) -> None:
        """The longer side of the grid spans two standard deviations to each side of the mean along the first component,
        the other one the second."""
        rows_NF = numbers(batch[0])
        with torch.no_grad():
            mean_F = rows_NF.mean(0)
            spans_2F = principal_spans(rows_NF - mean_F)
            down_R, across_C = (2 * evenly(size).to(mean_F) for size in (self.rows, self.columns))
            down_F, across_F = spans_2F if self.rows >= self.columns else spans_2F.flip(0)
            plane_RCF = down_R.view(-1, 1, 1) * down_F + across_C.view(1, -1, 1) * across_F
            self.units.copy_((mean_F + plane_RCF).flatten(0, 1))

    def exhibits(self, batch: Batch) -> dict[str, dict[str, Tensor]]:
        """How far neighbours are apart, the test rows that each unit wins (and the class that most of them have), and
        the map's layers of each input."""
        inputs, targets = batch
        between_UU = squared_distances(self.units, self.units).clamp_min(0).sqrt()
        near_UU = (self.steps_UU < SQUARED_REACH[self.grid]) & (self.steps_UU > 0)
        winner_N = squared_distances(numbers(inputs), self.units).argmin(dim=1)
        hits: dict[str, Any] = {"hits": torch.bincount(winner_N, minlength=len(self.units))}
        if self.spec.task in ("binary", "multiclass"):
            classes_N = targets.reshape(len(targets)).long()
            counts_UK = winner_N.new_zeros(len(self.units), len(self.spec.classes))
            counts_UK.index_put_((winner_N, classes_N), torch.ones_like(winner_N), accumulate=True)
            hits["labels"] = counts_UK.argmax(dim=1)
        layers_UF = self.raw(self.units.detach().view(-1, *self.spec.shape)).flatten(1)
        pictures = {
            "u_matrix": {"distances": (between_UU * near_UU).sum(1) / near_UU.sum(1)},
            "hit_map": hits,
            "component_planes": {"planes": layers_UF.T},
        }
        hexagonal = torch.tensor(self.grid == "hexagonal")
        return {
            picture: {name: self._on_grid(array) for name, array in arrays.items()} | {"hexagonal": hexagonal}
            for picture, arrays in pictures.items()
        }

    def _on_grid(self, array: Tensor) -> Tensor:
        """[..., U] -> [..., R, C]."""
        return array.detach().unflatten(-1, (self.rows, self.columns)).contiguous()


def evenly(size: int) -> Tensor:
    """So many numbers from -1 to 1; a single one is 0, their middle."""
    return torch.linspace(-1, 1, size) if size > 1 else torch.zeros(1)


def grid_places(rows: int, columns: int, grid: str) -> Tensor:
    """[U, 2]: where each unit lies (down, across); direct neighbours in a row are 1 apart."""
    down, across = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    places = torch.stack([down, across], dim=-1).float()
    if grid == "hexagonal":
        places = torch.stack([places[..., 0] * math.sqrt(0.75), places[..., 1] + 0.5 * (down % 2)], dim=-1)
    return places.flatten(0, 1)


def principal_spans(centred_NF: Tensor) -> Tensor:
    """The first two principal directions, each as long as the standard deviation along it: [2, F], zeros where there is
    none.  Of the rows' or the features' products, the smaller matrix is taken apart."""
    num_rows, num_features = centred_NF.shape
    if num_rows < num_features:
        products_NN = centred_NF @ centred_NF.T
        _, vectors_NK = torch.linalg.eigh(products_NN)
        directions_KF = F.normalize(vectors_NK[:, -2:].T @ centred_NF)
    else:
        _, vectors_FK = torch.linalg.eigh(centred_NF.T @ centred_NF)
        directions_KF = vectors_FK[:, -2:].T
    deviations_K1 = (centred_NF @ directions_KF.T).square().mean(0).sqrt().unsqueeze(1)
    largest_K1 = directions_KF.gather(1, directions_KF.abs().argmax(1, keepdim=True))
    spans_KF = (directions_KF * largest_K1.sign() * deviations_K1).flip(0)  # signs are a matter of taste, not of LAPACK
    return F.pad(spans_KF, (0, 0, 0, 2 - len(spans_KF)))
