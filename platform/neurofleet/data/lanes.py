"""Lanes: environments side by side, each in an episode of its own, that can be brought back to where they were.

No environment can be saved in general, and a pickle may not be read.  But it is a function of the seed that its episode
was reset with and of the actions since: so these are what is kept, and restoring plays them again.  The seed of an
episode follows from the run's seed, the lane and the episode's number.  gymnasium's own vector environments step one
environment after another, too, but neither take a seed for each episode nor can be played again one by one.

Shape suffixes: E environments.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from neurofleet import counter
from neurofleet.data.environments import EnvironmentDataModule
from neurofleet.errors import CheckpointError

EPISODE_SITE = -3


class Moves(NamedTuple):
    """What one step of all environments came to: [E], `next_observations` [E,*shape] before any reset.

    ended: of each episode that ended, the sum of its rewards and its length
    """

    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    next_observations: np.ndarray
    ended: list[tuple[float, int]]


class Lanes:
    """`observations` [E,*shape] are what the next actions answer."""

    def __init__(self, module: EnvironmentDataModule, seed: int) -> None:
        self.module, self.seed = module, seed
        self.environments = [module.make() for _ in range(module.num_environments)]
        size = len(self.environments)
        space = self.environments[0].observation_space
        self.observations = np.zeros((size, *module.spec.shape), space.dtype)
        self.episodes = [0] * size
        self.returns = [0.0] * size
        self.taken: list[list[np.ndarray]] = [[] for _ in range(size)]  # since the episode's begin
        for lane in range(size):
            self._begin(lane, 0)

    def close(self) -> None:
        for environment in self.environments:
            environment.close()

    def _begin(self, lane: int, episode: int) -> None:
        seed = counter.fold(self.seed, EPISODE_SITE, lane, episode)
        assert isinstance(seed, int)
        self.observations[lane], _ = self.environments[lane].reset(seed=seed & 0x7FFFFFFF)
        self.episodes[lane], self.returns[lane], self.taken[lane] = episode, 0.0, []

    def _take(self, lane: int, command: np.ndarray) -> tuple[float, bool, bool]:
        action = command if command.ndim else int(command)
        self.observations[lane], reward, terminated, truncated, _ = self.environments[lane].step(action)
        self.returns[lane] += float(reward)
        self.taken[lane].append(command)
        return float(reward), bool(terminated), bool(truncated)

    def step(self, actions: np.ndarray) -> Moves:
        """Take an agent's actions [E] or [E,A]; where an episode ends the next one begins."""
        commands = self.module.commands(actions)
        outcomes = [self._take(lane, commands[lane, ...]) for lane in range(len(commands))]
        rewards = np.array([reward for reward, _, _ in outcomes])
        terminated = np.array([one for _, one, _ in outcomes])
        truncated = np.array([one for *_, one in outcomes])
        next_observations, ended = self.observations.copy(), []
        for lane in np.flatnonzero(terminated | truncated).tolist():
            ended.append((self.returns[lane], len(self.taken[lane])))
            self._begin(lane, self.episodes[lane] + 1)
        return Moves(rewards, terminated, truncated, next_observations, ended)

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        commands = [command for taken in self.taken for command in taken]
        empty = self.module.commands(np.zeros((0, *(self.environments[0].action_space.shape or ()))))
        arrays = {"commands": np.stack(commands) if commands else empty, "observations": self.observations}
        return arrays, {"episodes": self.episodes, "lengths": [len(taken) for taken in self.taken]}

    def restore(self, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> None:
        """Play the commands of each unfinished episode again.

        Raises:
            CheckpointError: that leads somewhere else.
        """
        ends = np.cumsum(state["lengths"]).tolist()
        for lane, (episode, length, end) in enumerate(zip(state["episodes"], state["lengths"], ends, strict=True)):
            self._begin(lane, episode)
            for command in arrays["commands"][end - length : end]:
                self._take(lane, command)
        if not np.array_equal(self.observations, arrays["observations"]):
            raise CheckpointError(
                f"{self.module.environment} needs to be a function of its seed and the actions to go on from a "
                "checkpoint, and came to other observations; train a new run, with the versions of then if they changed"
            )
