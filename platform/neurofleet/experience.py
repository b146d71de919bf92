"""Experience: what passes between an agent and whoever lets it act.

An agent says how its experience becomes batches, by a `Replay` or by `Rollouts`; it is let act, and gets a `Rollout`
back where its learning rule has to look along time.  Held-out experience is `Episodes`.

Shape suffixes: T steps, E environments side by side, N episodes.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, Protocol

from torch import Tensor

from neurofleet.errors import ConfigError
from neurofleet.spec import DataSpec
from neurofleet.steps import Batch, Context


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replay:
    """Each batch is drawn from what happened of late (Lin 1992; Mnih et al. 2015).

    Batches are (observations, actions, rewards, discounts, next observations): the discounted sum of `num_steps`
    rewards, and what the value of the observation after them counts, which is 0 where the episode came to its end.

    capacity:         steps in the environments that are remembered
    warmup:           steps before the first update
    steps_per_update: steps between two updates
    num_steps:        rewards in a sum, n of Sutton 1988
    discount:         what a reward counts a step later
    """

    capacity: int
    warmup: int
    steps_per_update: int
    num_steps: int
    discount: float

    def __post_init__(self) -> None:
        for name in ("capacity", "warmup", "steps_per_update", "num_steps"):
            _need_count(name, getattr(self, name))
        if self.capacity < self.warmup:
            raise ConfigError(
                f"family.replay.capacity needs at least the {self.warmup} steps of family.replay.warmup, got "
                f"{self.capacity}; set family.replay.capacity={self.warmup} or more"
            )
        check_discount("discount", self.discount)

    def updates(self, num_steps: int, num_environments: int, batch_size: int) -> int:
        """Optimizer steps in so many steps in the environments; ConfigError if they do not come out even."""
        if num_steps % self.steps_per_update:
            raise ConfigError(
                f"data.steps_per_epoch needs a multiple of family.replay.steps_per_update={self.steps_per_update}, got "
                f"{num_steps}; {_nearest_multiple(num_steps, self.steps_per_update)} is near"
            )
        return num_steps // self.steps_per_update


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rollouts:
    """All act for a while, then learn from just that, a few times over (Schulman et al. 2017).

    num_steps:  steps of each environment in a rollout
    num_epochs: how often each row of it is learnt from
    """

    num_steps: int
    num_epochs: int

    def __post_init__(self) -> None:
        for name in ("num_steps", "num_epochs"):
            _need_count(name, getattr(self, name))

    def updates(self, num_steps: int, num_environments: int, batch_size: int) -> int:
        """Optimizer steps in so many steps in the environments; ConfigError if they do not come out even."""
        num_rows = self.num_steps * num_environments
        if num_steps % num_rows:
            raise ConfigError(
                f"data.steps_per_epoch needs a multiple of the {num_rows} steps of a rollout (family.rollout.num_steps "
                f"x data.num_environments), got {num_steps}; {_nearest_multiple(num_steps, num_rows)} is near"
            )
        return num_steps // num_rows * self.num_epochs * -(-num_rows // batch_size)


class Rollout(NamedTuple):
    """What happened: [T,E], and observations [T,E,*spec.shape].  `next_observations` are those before any reset."""

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    next_observations: Tensor


class Episodes(NamedTuple):
    """How whole episodes went: the sum of rewards [N], in the environment's own units, and the number of steps [N]."""

    returns: Tensor
    lengths: Tensor


class Actor(Protocol):
    """What an agent can do for whoever lets it act."""

    collection: Replay | Rollouts
    spec: DataSpec

    def act(self, observations: Tensor, context: Context) -> Tensor:
        """One action a row, to learn from: class indices [E], or standardised numbers [E, len(spec.targets)]."""

    def greedy(self, observations: Tensor) -> Tensor:
        """The best actions that the agent knows, in the terms of `act`."""

    def experience(self, rollout: Rollout) -> Batch:
        """The rows [T * E] that a rollout is learnt from, time after time."""

    def __call__(self, observations: Tensor) -> Tensor:
        """What the network says at serving time."""


def check_discount(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ConfigError(f"family.{name} needs a number from 0 to 1, got {value!r}")


def _need_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"the {name} of an agent's experience needs a whole number of at least 1, got {value!r}")


def _nearest_multiple(value: int, of: int) -> int:
    return max(round(value / of), 1) * of
