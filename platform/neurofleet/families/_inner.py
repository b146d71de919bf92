"""A supervised family as a part of another one: what a siamese network embeds with, what an agent decides with.

Its network is taken over, not its learning rule; so what its `start` sets has to be set by the family around it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor

from neurofleet.errors import ConfigError, MismatchError
from neurofleet.families._base import Family
from neurofleet.families._supervised import SupervisedFamily
from neurofleet.spec import DataSpec
from neurofleet.steps import Batch


class StartsFromInputs(SupervisedFamily):
    """Abstract: a family whose `start` needs no targets; a subclass gives `start_from`."""

    @abstractmethod
    def start_from(self, inputs: Tensor) -> None:
        """Set what training starts from, given the inputs of the training rows, [N, *spec.shape]."""

    def start(self, batch: Batch) -> None:
        self.start_from(batch[0])


def inner_network(
    network: Callable[..., Any], spec: DataSpec, *, key: str, fitting: tuple[str, ...], has_rows: bool
) -> SupervisedFamily:
    """Build the network that the config gives as `family.KEY`.

    fitting:  names of the families that can be one, for messages
    has_rows: whether the family around it has training rows to start from

    Raises:
        ConfigError: no supervised family, or one whose `start` cannot be run here.
        MismatchError: it does not take such data.
    """
    choice = f"set family@family.{key} to one of {', '.join(fitting)}"
    if not callable(network):
        raise ConfigError(f"family.{key} needs the config of a supervised family, got {network!r}; {choice}")
    try:
        built = network(spec=spec)
    except MismatchError as error:
        raise MismatchError(f"family.{key}: {error}; {choice}") from None
    name = type(built).__name__
    if not isinstance(built, SupervisedFamily):
        raise ConfigError(f"family.{key} needs a supervised family, got {name}; {choice}")
    if type(built).start is not Family.start:
        if not has_rows:
            raise ConfigError(
                f"family.{key} needs a network that starts without training rows, which an agent has none of before "
                f"it acts, got {name}; {choice}"
            )
        if not isinstance(built, StartsFromInputs):
            raise ConfigError(
                f"family.{key} needs a network that can start from inputs alone, got {name}, which starts from "
                f"targets of its own; {choice}"
            )
    return built
