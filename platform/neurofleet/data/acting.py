"""Loaders whose rows are made by acting: an agent acts in environments, and learns from what comes of it.

They yield the chunks that a table's loader yields, but make each batch when its step comes: with the weights of then.
Every worker lets its own copy of all environments be acted in, all alike, since weights, seeds and hence actions are
equal; of each batch it takes its part of the rows.  So collection is replicated and learning is shared: exact, and
right where learning costs more than acting.

Shape suffixes: T steps, E environments, C steps remembered, B rows, K rewards in a sum.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from neurofleet import counter
from neurofleet.data.environments import EnvironmentDataModule
from neurofleet.data.lanes import Lanes, Moves
from neurofleet.experience import Actor, Replay, Rollout, Rollouts
from neurofleet.loaders import Loader
from neurofleet.steps import Batch, Chunk, Context

SAMPLE_SITE, ORDER_SITE = -4, -5


class Made:
    """Batches that are made when their step comes."""

    def __init__(self, make: Callable[[int], Batch], steps: range) -> None:
        self.make, self.steps = make, steps

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Batch]:
        return map(self.make, self.steps)


class ActingLoader(Loader):
    """Abstract: what acting and remembering how episodes went have in common.

    agent:   acts with the weights that it has at that moment
    dtype:   of floating-point rows
    """

    def __init__(self, module: EnvironmentDataModule, agent: Actor, *, dtype: torch.dtype, **settings: Any) -> None:
        counts = module.steps_per_epoch, module.num_environments, module.batch_size
        super().__init__(steps_per_epoch=agent.collection.updates(*counts), **settings)
        self.module, self.agent, self.dtype = module, agent, dtype
        self.lanes = Lanes(module, self.seed)
        self.num_lanes = module.num_environments
        self.num_moves = 0  # of all lanes together
        self.ended: list[
            tuple[int, float, int]
        ] = []  # of each episode: steps in the environments by then, return, length
        self._scored = 0  # episodes that `scores` told of

    @abstractmethod
    def _size(self, step: int) -> int:
        """Rows in the global batch of a step."""

    @abstractmethod
    def _batch(self, step: int) -> Batch:
        """This worker's part of it, acting first where it is time to; called once for each step, in order."""

    def chunk(self, start: int, stop: int) -> Chunk:
        shares = [self._share(self._size(step)) for step in range(start, stop)]
        rows = [self._global_rows(first, last) for first, last, _ in shares]
        return Chunk(start, Made(self._batch, range(start, stop)), rows, [weight for *_, weight in shares])

    def _numbers(self, array: Any) -> Tensor:
        return torch.tensor(array, dtype=self.dtype, device=self.device)  # a copy: the array will change

    @torch.no_grad()
    def _act(self, step: int) -> tuple[Tensor, Tensor, Moves]:
        """One step of all environments before optimizer step `step`: observations, actions, and what came of them."""
        observations = self._numbers(self.lanes.observations)
        rows = self._global_rows(0, self.num_lanes)
        context = Context(self.seed, self.num_moves, step / self.num_steps, rows, training=True, measure=False)
        actions = self.agent.act(observations, context)
        moves = self.lanes.step(actions.cpu().numpy())
        self.num_moves += 1
        self.ended += [(self.num_moves * self.num_lanes, *how) for how in moves.ended]
        return observations, actions, moves

    def _rewards(self, moves: Moves) -> Tensor:
        return self._numbers(moves.rewards * self.module.reward_scale)

    def scores(self) -> dict[str, float]:
        fresh, self._scored = self.ended[self._scored :], len(self.ended)
        scores = {"train/environment_steps": float(self.num_moves * self.num_lanes)}
        if fresh:
            scores["train/return"] = sum(one for _, one, _ in fresh) / len(fresh)
            scores["train/episode_length"] = sum(one for *_, one in fresh) / len(fresh)
        return scores

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        arrays, state = self.lanes.state()
        tensors = {f"lanes.{name}": torch.from_numpy(array) for name, array in arrays.items()}
        tensors["ended"] = torch.tensor(self.ended, dtype=torch.float64).view(-1, 3)
        return tensors, {"lanes": state, "num_moves": self.num_moves, "scored": self._scored}

    def restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        arrays = {name.removeprefix("lanes."): tensors[name].numpy() for name in tensors if name.startswith("lanes.")}
        self.lanes.restore(arrays, state["lanes"])
        self.num_moves, self._scored = state["num_moves"], state["scored"]
        self.ended = [(int(steps), one, int(length)) for steps, one, length in tensors["ended"].tolist()]


class ReplayLoader(ActingLoader):
    """Batches drawn at random from the latest steps; see `Replay`."""

    def __init__(self, module: EnvironmentDataModule, agent: Actor, **settings: Any) -> None:
        super().__init__(module, agent, **settings)
        assert isinstance(agent.collection, Replay)
        self.replay = agent.collection
        self.capacity = -(-self.replay.capacity // self.num_lanes)  # in steps of all lanes together
        self._memory: dict[str, Tensor] = {}  # [C,E,...]

    def _size(self, step: int) -> int:
        return self.module.batch_size

    def _batch(self, step: int) -> Batch:
        due = self.replay.warmup + step * self.replay.steps_per_update
        while self.num_moves * self.num_lanes < due:
            self._remember(*self._act(step))
        return self._sample(step)

    def _remember(self, observations: Tensor, actions: Tensor, moves: Moves) -> None:
        slot = (self.num_moves - 1) % self.capacity
        for name, value in {
            "observations": observations,
            "actions": actions,
            "rewards": self._rewards(moves),
            "terminated": torch.from_numpy(moves.terminated),
            "ended": torch.from_numpy(moves.terminated | moves.truncated),
            "next_observations": self._numbers(moves.next_observations),
        }.items():
            if name not in self._memory:
                shape = (self.capacity, *value.shape)
                self._memory[name] = torch.zeros(shape, dtype=value.dtype, device=self.device)
            self._memory[name][slot] = value

    def _sample(self, step: int) -> Batch:
        first, last, _ = self._share(self._size(step))
        key = counter.fold(self.seed, step, SAMPLE_SITE)
        draws = counter.uniform(key, self._global_rows(first, last), (2,), torch.float64)
        remembered = min(self.num_moves, self.capacity)
        times = self.num_moves - remembered + (draws[:, 0] * remembered).long()
        return self._steps(times, (draws[:, 1] * self.num_lanes).long())

    def _steps(self, times_B: Tensor, lanes_B: Tensor) -> Batch:
        """The steps at these times in these lanes, each with the rewards of up to K steps and what is seen then."""
        memory, discount, num_steps = self._memory, self.replay.discount, self.replay.num_steps
        ahead_K = torch.arange(num_steps, device=self.device)
        times_BK = times_B.unsqueeze(1) + ahead_K
        slots_BK, lanes_B1 = times_BK % self.capacity, lanes_B.unsqueeze(1)
        over_BK = memory["ended"][slots_BK, lanes_B1] | (times_BK >= self.num_moves - 1)  # nothing known beyond
        counts_B = 1 + (~over_BK[:, :-1]).cumprod(dim=1).sum(dim=1)  # rewards of the same episode
        weights_BK = (ahead_K < counts_B.unsqueeze(1)) * discount**ahead_K
        rewards_B = (memory["rewards"][slots_BK, lanes_B1] * weights_BK.to(self.dtype)).sum(dim=1)
        slots_B, ends_B = times_B % self.capacity, (times_B + counts_B - 1) % self.capacity
        goes_on_B = ~memory["terminated"][ends_B, lanes_B]
        return (
            memory["observations"][slots_B, lanes_B],
            memory["actions"][slots_B, lanes_B],
            rewards_B,
            (goes_on_B * discount**counts_B).to(self.dtype),
            memory["next_observations"][ends_B, lanes_B],
        )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, state = super().state()
        filled = min(self.num_moves, self.capacity)
        return tensors | {f"memory.{name}": tensor[:filled] for name, tensor in self._memory.items()}, state

    def restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        super().restore(tensors, state)
        for name, tensor in tensors.items():
            if name.startswith("memory."):
                whole = torch.zeros((self.capacity, *tensor.shape[1:]), dtype=tensor.dtype, device=self.device)
                whole[: len(tensor)] = tensor
                self._memory[name.removeprefix("memory.")] = whole


class RolloutLoader(ActingLoader):
    """All act for a while, then learn from just that; see `Rollouts`."""

    def __init__(self, module: EnvironmentDataModule, agent: Actor, **settings: Any) -> None:
        super().__init__(module, agent, **settings)
        assert isinstance(agent.collection, Rollouts)
        self.rollouts = agent.collection
        self.num_rows = self.rollouts.num_steps * self.num_lanes
        self.batch_size = min(module.batch_size, self.num_rows)
        self.per_epoch = -(-self.num_rows // self.batch_size)
        self._experience: Batch = ()
        self._orders = torch.empty(0)

    def _place(self, step: int) -> tuple[int, int, int]:
        """Of a step: which rollout it learns from, the how manieth time, and from which of its batches."""
        rollout, rest = divmod(step, self.per_epoch * self.rollouts.num_epochs)
        return rollout, *divmod(rest, self.per_epoch)

    def _size(self, step: int) -> int:
        *_, batch = self._place(step)
        return min(self.batch_size, self.num_rows - batch * self.batch_size)

    def _batch(self, step: int) -> Batch:
        rollout, epoch, batch = self._place(step)
        if self.num_moves == rollout * self.rollouts.num_steps:
            self._experience = self.agent.experience(self._collect(step))
            self._orders = torch.empty(0)
        if not len(self._orders):
            epochs = torch.arange(self.rollouts.num_epochs, dtype=torch.int32)
            keys = counter.fold(counter.fold(self.seed, ORDER_SITE, rollout), epochs)
            assert isinstance(keys, Tensor)
            self._orders = counter.permutations(keys, self.num_rows).to(self.device)
        first, last, _ = self._share(self._size(step))
        begin = batch * self.batch_size
        chosen = self._orders[epoch, begin + first : begin + last]
        return tuple(tensor.index_select(0, chosen) for tensor in self._experience)

    def _collect(self, step: int) -> Rollout:
        columns: list[list[Tensor]] = [[] for _ in Rollout._fields]
        for _ in range(self.rollouts.num_steps):
            observations, actions, moves = self._act(step)
            ends = torch.from_numpy(moves.terminated).to(self.device), torch.from_numpy(moves.truncated).to(self.device)
            seen = self._numbers(moves.next_observations)
            for column, value in zip(columns, (observations, actions, self._rewards(moves), *ends, seen), strict=True):
                column.append(value)
        return Rollout(*(torch.stack(column) for column in columns))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, state = super().state()
        return tensors | {f"experience.{index}": tensor for index, tensor in enumerate(self._experience)}, state

    def restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        super().restore(tensors, state)
        size = sum(name.startswith("experience.") for name in tensors)
        self._experience = tuple(tensors[f"experience.{index}"].to(self.device) for index in range(size))


def acting_loader(module: EnvironmentDataModule, agent: Actor, **settings: Any) -> ActingLoader:
    """The loader that an agent's way to learn asks for."""
    kind = ReplayLoader if isinstance(agent.collection, Replay) else RolloutLoader
    return kind(module, agent, **settings)
