"""What every agent shares: it makes its own data by acting, and learns from them by an objective like any family.

Acting is as pure as learning: an action is a function of weights, observation and context.  Who lets an agent act, and
remembers what came of it, is `neurofleet.data.acting`; what an agent offers for that is `neurofleet.experience.Actor`.

Shape suffixes: B rows, E environments, A dimensions of an action.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar

from torch import Tensor

from neurofleet.experience import Episodes, Replay, Rollout, Rollouts
from neurofleet.families._base import Family
from neurofleet.families._inner import inner_network
from neurofleet.families._supervised import SupervisedFamily, embedding_spec
from neurofleet.spec import DataSpec
from neurofleet.steps import Batch, Context

ACTION_SITE = -2  # the sites of a network count up from zero; -1 is the order of rows
NETWORKS = ("cnn", "mlp", "rnn", "transformer")  # that take images


class Agent(Family):
    """Abstract: a subclass gives `collection`, `act`, `forward`, `objective`, and `experience` if it takes rollouts.

    Held-out data are `Episodes`, played by `greedy`: scores are `return` and `episode_length`.  Held against
    transitions (by a stock Trainer) it is scored by its objective, like any family.
    """

    kinds: ClassVar[frozenset[str]] = frozenset({"environment"})
    tasks: ClassVar[frozenset[str]] = frozenset({"control"})
    collection: Replay | Rollouts

    def build_network(self, network: Callable[..., SupervisedFamily], size: int) -> SupervisedFamily:
        """A network from observations to `size` numbers.

        Raises ConfigError for one that cannot be an agent's, MismatchError for one that does not take observations.
        """
        inner = network_spec(self.spec, size)
        fitting = NETWORKS if inner.kind == "image" else ("mlp",)
        return inner_network(network, inner, key="network", fitting=fitting, has_rows=False)

    @abstractmethod
    def act(self, observations: Tensor, context: Context) -> Tensor:
        """Observations [E, *spec.shape] -> actions to learn from: indices [E], or standardised numbers [E,A].

        `context.step` counts steps in the environments; draw by `context.key(ACTION_SITE)`.
        """

    @abstractmethod
    def forward(self, inputs: Tensor, context: Context | None = None) -> Tensor:
        """Observations [B, *spec.shape] -> a score for each discrete action, or the action itself, standardised."""

    def greedy(self, observations: Tensor) -> Tensor:
        """The action that `forward` says is best."""
        outputs = self(observations)
        return outputs.argmax(dim=-1) if self.spec.classes else outputs

    def experience(self, rollout: Rollout) -> Batch:
        """The rows that a rollout is learnt from."""
        raise NotImplementedError(f"{type(self).__name__} takes no rollouts")

    @property
    def score_names(self) -> list[str]:
        return ["return", "episode_length"]

    def _evaluate(self, batch: Batch, stage: str) -> None:
        if not isinstance(batch, Episodes):
            super()._evaluate(batch, stage)
            return
        self._tally(stage, {"return": batch.returns, "episode_length": batch.lengths}, len(batch.returns))


def network_spec(spec: DataSpec, size: int) -> DataSpec:
    """The spec of a network from observations to `size` numbers; it sees them as the kind that has such a shape."""
    kind = "image" if len(spec.shape) == 3 else "tabular"
    return dataclasses.replace(embedding_spec(spec, size), kind=kind)  # type: ignore[arg-type]
