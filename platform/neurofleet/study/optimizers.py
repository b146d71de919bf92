"""torch's own optimizers for a stack of trials, each row with settings of its own.

The weights of K trials stand in one matrix [K, P], and one call of torch's optimizer moves many rows at once: it runs
at learning rate 1 and without weight decay on a matrix of displacements, which begin at what the weights decay by and
then move the weights by each row's own learning rate.  That is exact, since all these updates are proportional to the
rate and decay stands beside them.  Rows
that differ in anything else (betas, momentum) get an optimizer of their own, with its state in place.

A parameter without a gradient is not touched, as in torch: the layers of a deep belief network wait for their phase.
K trials, P numbers of one trial's parameters, G rows of one group, C numbers of the parameters of one block.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import Tensor

from neurofleet.experiment import build

DECOUPLED = frozenset({"torch.optim.AdamW"})  # decay moves the weights; elsewhere it adds to the gradient
KNOWN = {
    "torch.optim.SGD": {"momentum", "nesterov"},
    "torch.optim.Adagrad": {"lr_decay", "eps"},
    "torch.optim.Adam": {"betas", "eps"},
    "torch.optim.AdamW": {"betas", "eps"},
    "torch.optim.RMSprop": {"alpha", "eps", "momentum"},
}
"""what a row may set beside lr, weight_decay and fused"""

State = dict[str, Tensor]


@dataclasses.dataclass
class _Block:
    """Consecutive rows and consecutive parameters that one optimizer of torch moves."""

    rows: slice
    parameters: range
    displacement: Tensor  # [G, C]
    optimizer: torch.optim.Optimizer

    @functools.cached_property
    def step(self) -> Callable[[torch.optim.Optimizer], Any]:
        """The optimizer's own, without the profiler's wrapper."""
        return inspect.unwrap(type(self.optimizer).step)


class StackedOptimizer:
    """Moves the rows of `weights` [K, P], whose parameters have `sizes`, each by its own config of an optimizer.

    The configs name one and the same class.  Rows with equal settings should be neighbours: each group of neighbours
    costs one call a step.
    """

    def __init__(self, configs: Sequence[Mapping[str, Any]], weights: Tensor, sizes: Sequence[int]) -> None:
        self.configs = list(configs)
        self.weights = weights
        self.sizes = list(sizes)
        self._ends = [0, *torch.tensor(self.sizes).cumsum(0).tolist()]
        self._divisions = [0, len(self.sizes)]  # between parameters that learn at different times
        self._blocks: list[_Block] = []
        self._build([{} for _ in self.configs])

    def step(self, gradients: Sequence[Tensor | None], factors: Tensor) -> None:
        """gradients: [K, *shape] of each parameter, or None; factors: float64 [K], the schedule's of each row."""
        present = [gradient is not None for gradient in gradients]
        cuts = {0, len(present)} | {place for place in range(1, len(present)) if present[place] != present[place - 1]}
        if not cuts <= set(self._divisions):
            self._divisions = sorted(cuts | set(self._divisions))
            self._build(self._row_states(self._divisions))
        rates_K = self._rates * factors
        with torch.no_grad():
            for first, last in pairwise(self._divisions):
                columns = [one for one in gradients[first:last] if one is not None]
                if columns:
                    self._move(range(first, last), self._flat(first, columns), rates_K)

    def _flat(self, first: int, gradients: Sequence[Tensor]) -> Tensor:
        """[K, C] by one copy, whatever the layout of each."""
        size = sum(self.sizes[first : first + len(gradients)])
        if (first, size) not in self._flats:
            flat = torch.empty(len(self.weights), size, dtype=self.weights.dtype, device=self.weights.device)
            self._flats[first, size] = flat
        flat = self._flats[first, size]
        for part, one in zip(
            flat.split([gradient[0].numel() for gradient in gradients], dim=1), gradients, strict=True
        ):
            part.view(one.shape).copy_(one)
        return flat

    def select(self, rows: Sequence[int], configs: Sequence[Mapping[str, Any]], weights: Tensor) -> None:
        """Go on with other rows: row i is what row `rows[i]` was, with `configs[i]` and the weights given."""
        states = self._row_states(self._divisions)
        self.configs, self.weights = list(configs), weights
        self._build([states[row] for row in rows])

    def row_state(self, row: int) -> list[State]:
        """What a row remembers of each parameter, flat."""
        state = self._row_states(range(len(self.sizes) + 1))[row]
        return [dict(state.get(start, {})) for start in range(len(self.sizes))]

    def set_row(self, row: int, config: Mapping[str, Any], state: Sequence[State]) -> None:
        """Let a row go on with another config, from what another row remembers."""
        states = self._row_states(self._divisions)
        self.configs[row] = config
        states[row] = {
            start: {
                name: torch.cat([one[name] for one in state[start:stop]]) if value.ndim else value
                for name, value in state[start].items()
            }
            for start, stop in pairwise(self._divisions)
            if state[start]
        }
        self._build(states)

    def _move(self, parameters: range, gradient: Tensor, rates_K: Tensor) -> None:
        """gradient [K, C]"""
        columns = slice(self._ends[parameters.start], self._ends[parameters.stop])
        weights = self.weights[:, columns]
        decoupled = self.configs[0]["_target_"] in DECOUPLED
        if self._decay_K1 is not None and not decoupled:
            gradient = torch.addcmul(gradient, weights, self._decay_K1)
        rates_K1 = rates_K.to(weights.dtype).unsqueeze(1)
        for block in self._blocks:
            if block.parameters == parameters:
                rows = block.rows
                if self._decay_K1 is not None and decoupled:
                    torch.mul(weights[rows], self._decay_K1[rows].neg(), out=block.displacement)
                else:
                    block.displacement.zero_()
                block.displacement.grad = gradient[rows]
                block.step(block.optimizer)
                weights[rows].addcmul_(block.displacement, rates_K1[rows])

    # How rows are divided among optimizers.

    def _build(self, states: Sequence[Mapping[int, State]]) -> None:
        """states: of each row, by the first parameter of a block, or nothing before the first step."""
        device, dtype = self.weights.device, self.weights.dtype
        values = {name: [float(config[name]) for config in self.configs] for name in ("lr", "weight_decay")}
        self._rates = torch.tensor(values["lr"], dtype=torch.float64, device=device)
        decay_K1 = torch.tensor(values["weight_decay"], dtype=torch.float64, device=device).to(dtype).unsqueeze(1)
        self._decay_K1 = decay_K1 if any(values["weight_decay"]) else None
        self._blocks = []
        self._flats: dict[tuple[int, int], Tensor] = {}  # for the gradients, step after step
        first = 0
        for _, group in groupby(self.configs, _group):
            rows = slice(first, first := first + len(list(group)))
            config = dict(self.configs[rows.start], lr=1.0, weight_decay=0.0)
            for start, stop in pairwise(self._divisions):
                shape = rows.stop - rows.start, self._ends[stop] - self._ends[start]
                displacement = torch.zeros(shape, dtype=dtype, device=device)
                optimizer = build(config, params=[displacement])
                kept = [state[start] for state in states[rows] if start in state]
                if kept:
                    optimizer.state[displacement] = {
                        name: torch.stack([one[name] for one in kept]) if values.ndim else values.clone()
                        for name, values in kept[0].items()
                    }
                self._blocks.append(_Block(rows, range(start, stop), displacement, optimizer))

    def _row_states(self, divisions: Sequence[int]) -> list[dict[int, State]]:
        """Each row's state by the first parameter of each part between `divisions`, which are no coarser than ours."""
        states: list[dict[int, State]] = [{} for _ in range(len(self.weights))]
        for block in self._blocks:
            state: State = dict(block.optimizer.state.get(block.displacement, {}))
            starts = [start for start in divisions[:-1] if start in block.parameters]
            for start, stop in pairwise([*starts, block.parameters.stop]):
                offset = self._ends[block.parameters.start]
                columns = slice(self._ends[start] - offset, self._ends[stop] - offset)
                for place, row in enumerate(range(block.rows.start, block.rows.stop)):
                    if state:
                        states[row][start] = {
                            name: value[place, columns] if value.ndim == 2 else value for name, value in state.items()
                        }
        return states


def _group(config: Mapping[str, Any]) -> str:
    """Equal for rows that one optimizer can move."""
    return json.dumps({name: value for name, value in config.items() if name not in ("lr", "weight_decay")})


def can_stack(config: Mapping[str, Any]) -> bool:
    """Whether rows with such an optimizer can be moved together."""
    known = KNOWN.get(config["_target_"])
    needed = {"_target_", "lr", "weight_decay"}
    return known is not None and needed <= set(config) and set(config) - needed - {"fused"} <= known


def ordered(configs: Sequence[Mapping[str, Any]]) -> list[int]:
    """The order of rows in which equal settings are neighbours."""
    return sorted(range(len(configs)), key=lambda row: _group(configs[row]))
