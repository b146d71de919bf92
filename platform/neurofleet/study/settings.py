"""Settings: the numbers in which trials of one architecture differ, each trial's own under `torch.func.vmap`.

A rate of dropout or the weight of a term in the loss is a float that some object within a family keeps.  Where the
families of a stack differ in such floats, and in nothing else, the stack puts a tensor with one value a trial in the
float's place while it computes the objective.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from neurofleet.errors import NeurofleetError
from neurofleet.families._base import Family, Recipe

Owner = tuple[str, str]  # where an object stands in its family, and the name of a float of it


class NotStackableError(NeurofleetError):
    """These trials cannot train as one model, and why."""


def differing(families: Sequence[Family]) -> dict[Owner, Tensor]:
    """What the trials' families keep that differs: float64 [K] each.

    Raises:
        NotStackableError: their objects are not the same.
    """
    kept = [
        {
            (place, name): value
            for place, owner in owners(family)
            for name, value in vars(owner).items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        for family in families
    ]
    if any(one.keys() != kept[0].keys() for one in kept):
        raise NotStackableError("their networks consist of different parts")
    columns = {owner: [one[owner] for one in kept] for owner in kept[0]}
    return {
        owner: torch.tensor(column, dtype=torch.float64, device=families[0].device)
        for owner, column in columns.items()
        # A rate that is written as 0 is a whole number, but one in which only whole numbers differ is no rate.
        if any(value != column[0] for value in column) and any(isinstance(value, float) for value in column)
    }


@contextlib.contextmanager
def in_place(kept: Mapping[str, Any], settings: Mapping[Owner, Any]) -> Iterator[None]:
    """While it lasts, the objects of a family (its `owners`, by place) keep these instead of their own floats."""
    before = {(place, name): vars(kept[place])[name] for place, name in settings}
    for (place, name), value in settings.items():
        vars(kept[place])[name] = value
    try:
        yield
    finally:
        for (place, name), value in before.items():
            vars(kept[place])[name] = value


def owners(owner: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """An object and those that it keeps which are modules or our own, each with its place in the first one.

    A recipe is left out: how a trial is optimised is no part of its objective.
    """
    yield place, owner
    children = dict(owner._modules) if isinstance(owner, nn.Module) else {}
    for name, value in vars(owner).items():
        ours = type(value).__module__.startswith("neurofleet.families.") and hasattr(value, "__dict__")
        if ours and not isinstance(value, Recipe):
            children[name] = value
    for name, child in children.items():
        if child is not None:
            yield from owners(child, f"{place}.{name}" if place else name)
