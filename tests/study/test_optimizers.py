"""A stack's optimizer moves every row as torch's own would move it alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from neurofleet.experiment import build
from neurofleet.study.optimizers import StackedOptimizer, can_stack, ordered

SIZES = (6, 4, 2)
SGD = {"_target_": "torch.optim.SGD", "nesterov": False, "fused": True}
ADAM = {"eps": 1e-8, "fused": True}
RMSPROP = {"_target_": "torch.optim.RMSprop", "alpha": 0.99, "eps": 1e-8}
ROWS: dict[str, list[dict[str, Any]]] = {
    "plain": [{**SGD, "momentum": 0.0}] * 3,
    "momentum": [{**SGD, "momentum": momentum} for momentum in (0.9, 0.9, 0.5)],
    "nesterov": [{**SGD, "momentum": momentum, "nesterov": True} for momentum in (0.9, 0.8, 0.8)],
    "Adam": [{"_target_": "torch.optim.Adam", **ADAM, "betas": betas} for betas in ([0.9, 0.99], [0.5, 0.9])] * 2,
    "AdamW": [{"_target_": "torch.optim.AdamW", **ADAM, "betas": betas} for betas in ([0.9, 0.99], [0.5, 0.9])] * 2,
    "RMSprop": [{**RMSPROP, "momentum": momentum} for momentum in (0.0, 0.0, 0.9)],
    "Adagrad": [{"_target_": "torch.optim.Adagrad", "eps": 1e-10, "fused": True, "lr_decay": 0.1}] * 3,
}


def configs(name: str) -> list[dict[str, Any]]:
    """Each row with a rate and a decay of its own, and neighbours where they can be moved together."""
    made = [
        {**config, "lr": 0.05 * (1 + number), "weight_decay": 0.1 * number} for number, config in enumerate(ROWS[name])
    ]
    return [made[place] for place in ordered(made)]


class OneByOne:
    """Each row with torch's own optimizer."""

    def __init__(self, configs: Sequence[dict[str, Any]], weights: Tensor) -> None:
        self.rows = [[torch.nn.Parameter(part.clone()) for part in row.split(SIZES)] for row in weights]
        # torch's fused SGD takes no parameter whose first gradient comes after the others'.
        plain = [{name: value for name, value in config.items() if name != "fused"} for config in configs]
        self.optimizers = [build(one, params=rows) for one, rows in zip(plain, self.rows, strict=True)]
        self.rates = [config["lr"] for config in configs]

    def step(self, gradients: Sequence[Tensor | None], factors: Tensor) -> None:
        for place, (row, optimizer) in enumerate(zip(self.rows, self.optimizers, strict=True)):
            optimizer.param_groups[0]["lr"] = self.rates[place] * float(factors[place])
            for parameter, gradient in zip(row, gradients, strict=True):
                parameter.grad = None if gradient is None else gradient[place].clone()
            optimizer.step()

    @property
    def weights(self) -> Tensor:
        return torch.stack([torch.cat([one.detach() for one in row]) for row in self.rows])


Gradients = Callable[[int, Tensor], list[Tensor | None]]


def every(step: int, weights: Tensor) -> list[Tensor | None]:
    """Of a bowl whose bottom moves, so that the gradient depends on the weights."""
    return list((weights - torch.cos(torch.arange(12.0, dtype=torch.float64) * (step + 1))).split(SIZES, dim=1))


def in_turn(step: int, weights: Tensor) -> list[Tensor | None]:
    """The layers learn one after another, as a deep belief network's; the last learns all along."""
    return [one if place in (min(step // 2, 1), 2) else None for place, one in enumerate(every(step, weights))]


def scattered(step: int, weights: Tensor) -> list[Tensor | None]:
    """A parameter rests now and then."""
    return [None if (step + place) % 3 == 0 else one for place, one in enumerate(every(step, weights))]


def factors(step: int, num_rows: int) -> Tensor:
    return torch.tensor([1 / (1 + step * row) for row in range(num_rows)], dtype=torch.float64)


def advance(either: StackedOptimizer | OneByOne, gradients: Gradients, steps: range) -> Tensor:
    for step in steps:
        weights = either.weights
        either.step(gradients(step, weights), factors(step, len(weights)))
    return either.weights


def beginning(num_rows: int) -> Tensor:
    return torch.sin(torch.arange(num_rows * sum(SIZES), dtype=torch.float64)).view(num_rows, -1)


@pytest.mark.parametrize("gradients", [every, in_turn, scattered])
@pytest.mark.parametrize("name", ROWS)
def test_rows_move_as_alone(name: str, gradients: Gradients) -> None:
    settings = configs(name)
    begun = beginning(len(settings))
    stacked = advance(StackedOptimizer(settings, begun.clone(), SIZES), gradients, range(8))
    alone = advance(OneByOne(settings, begun), gradients, range(8))
    assert not torch.equal(stacked, begun)
    torch.testing.assert_close(stacked, alone, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("gradients", [every, in_turn, scattered])
@pytest.mark.parametrize("name", ROWS)
def test_rows_that_stay_move_on_as_alone(name: str, gradients: Gradients) -> None:
    settings = configs(name)
    begun = beginning(len(settings))
    stacked = StackedOptimizer(settings, begun.clone(), SIZES)
    advance(stacked, gradients, range(3))
    rows = [0, *range(2, len(settings))]
    stacked.select(rows, [settings[row] for row in rows], stacked.weights[rows])
    alone = OneByOne(settings, begun)
    advance(alone, gradients, range(3))
    alone.rows, alone.rates = [alone.rows[row] for row in rows], [alone.rates[row] for row in rows]
    alone.optimizers = [alone.optimizers[row] for row in rows]
    expected = advance(alone, gradients, range(3, 8))
    torch.testing.assert_close(advance(stacked, gradients, range(3, 8)), expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("gradients", [every, in_turn])
@pytest.mark.parametrize("name", ROWS)
def test_a_copied_row_is_its_original_from_then_on(name: str, gradients: Gradients) -> None:
    settings = configs(name)
    stacked = StackedOptimizer(settings, beginning(len(settings)), SIZES)
    advance(stacked, gradients, range(3))
    rows = [0, 0, 1]
    stacked.select(rows, [settings[row] for row in rows], stacked.weights[rows])
    for step in range(3, 8):
        stacked.step(gradients(step, stacked.weights), torch.full((3,), 0.5, dtype=torch.float64))
    assert torch.equal(stacked.weights[0], stacked.weights[1])
    assert not torch.equal(stacked.weights[0], stacked.weights[2])


def test_a_copied_row_goes_on_with_settings_of_its_own() -> None:
    """What population based training does: another's weights and state, with another rate, decay and momentum."""
    settings = configs("momentum")
    begun = beginning(3)
    stacked, alone = StackedOptimizer(settings, begun.clone(), SIZES), OneByOne(settings, begun)
    advance(stacked, every, range(3))
    advance(alone, every, range(3))
    changed = {**settings[0], "lr": 0.02, "weight_decay": 0.3, "momentum": 0.7}
    taken = [settings[0], changed, settings[2]]
    taken = [taken[place] for place in ordered(taken)]
    sources = [2 if one is settings[2] else 0 for one in taken]
    stacked.select(sources, taken, stacked.weights[sources])
    fresh = OneByOne(taken, alone.weights[sources])
    for place, source in enumerate(sources):
        old, new = alone.optimizers[source], fresh.optimizers[place]
        for before, after in zip(alone.rows[source], fresh.rows[place], strict=True):
            new.state[after] = {
                name: value.clone() if isinstance(value, Tensor) else value for name, value in old.state[before].items()
            }
    expected = advance(fresh, every, range(3, 8))
    torch.testing.assert_close(advance(stacked, every, range(3, 8)), expected, rtol=1e-13, atol=1e-14)


def test_only_what_is_known_to_stack_does() -> None:
    assert all(can_stack(config) for name in ROWS for config in configs(name))
    assert not can_stack({**configs("Adam")[0], "amsgrad": True})
    assert not can_stack({"_target_": "torch.optim.LBFGS", "lr": 1.0, "weight_decay": 0.0})
