"""Whole episodes, played by the best actions that an agent knows: what validation and test are for agents.

The seeds of the episodes are those of a stage, whatever the run's seed: all runs meet the same begins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from neurofleet import counter
from neurofleet.data.environments import EnvironmentDataModule
from neurofleet.errors import ConfigError
from neurofleet.experience import Actor, Episodes

STAGES = {"val": 1, "test": 2}
NUM_FRAMES, FRAME_SIDE = 100, 320  # of an animation, at most; beside them the one that an episode ends with


def seeds(stage: str, size: int) -> list[int]:
    words = [counter.fold(STAGES[stage], episode) for episode in range(size)]
    return [word & 0x7FFFFFFF for word in words if isinstance(word, int)]


class HeldOutEpisodes:
    """One batch, the episodes of a stage; each worker plays a contiguous part, or all if workers outnumber them."""

    def __init__(
        self,
        module: EnvironmentDataModule,
        agent: Actor,
        stage: str,
        *,
        dtype: torch.dtype,
        device: torch.device,
        rank: int,
        world_size: int,
    ) -> None:
        all_seeds = seeds(stage, module.num_episodes)
        if len(all_seeds) < world_size:
            rank, world_size = 0, 1
        self.seeds = all_seeds[len(all_seeds) * rank // world_size : len(all_seeds) * (rank + 1) // world_size]
        self.module, self.agent, self.dtype, self.device = module, agent, dtype, device
        self.environments = [module.make() for _ in self.seeds]

    def close(self) -> None:
        for environment in self.environments:
            environment.close()

    def __len__(self) -> int:
        return 1

    @torch.no_grad()
    def __iter__(self) -> Iterator[Episodes]:
        size, module = len(self.seeds), self.module
        seen = [one.reset(seed=seed)[0] for one, seed in zip(self.environments, self.seeds, strict=True)]
        returns, lengths, going = [0.0] * size, [0] * size, list(range(size))
        while going:
            observations = torch.tensor(
                np.stack([seen[place] for place in going]), dtype=self.dtype, device=self.device
            )
            commands = module.commands(self.agent.greedy(observations).cpu().numpy())
            stay = []
            for row, place in enumerate(going):
                seen[place], reward, terminated, truncated, _ = self.environments[place].step(
                    _plain(commands[row, ...])
                )
                returns[place] += float(reward)
                lengths[place] += 1
                if not (terminated or truncated):
                    stay.append(place)
            going = stay
        yield Episodes(*(torch.tensor(one, dtype=torch.float64, device=self.device) for one in (returns, lengths)))


@torch.no_grad()
def film(
    module: EnvironmentDataModule, agent: Actor, *, dtype: torch.dtype, device: torch.device, animate: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The first test episode: {observations [T,*shape], outputs [T,...]} of each step, and for the animation
    {frames uint8 [F,height,width,3], steps [F] before each, rewards [T]}, or nothing without `animate`."""
    environment = module.make(render=animate)
    assert environment.spec is not None
    assert environment.spec.max_episode_steps is not None
    every = -(-environment.spec.max_episode_steps // NUM_FRAMES)
    seen, _ = environment.reset(seed=seeds("test", 1)[0])
    told: dict[str, list[Tensor]] = {"observations": [], "outputs": []}
    frames: list[np.ndarray] = []
    steps: list[int] = []
    rewards: list[float] = []
    over = False
    while not over:
        if animate and len(rewards) % every == 0:
            frames.append(_small(environment.render()))
            steps.append(len(rewards))
        observations = torch.tensor(np.asarray(seen)[None], dtype=dtype, device=device)
        outputs = agent(observations)
        command = module.commands(agent.greedy(observations).cpu().numpy())[0, ...]
        seen, reward, terminated, truncated, _ = environment.step(_plain(command))
        rewards.append(float(reward))
        told["observations"].append(observations)
        told["outputs"].append(outputs)
        over = bool(terminated or truncated)
    if animate:
        frames.append(_small(environment.render()))
        steps.append(len(rewards))
    environment.close()
    predictions = {name: torch.cat(column) for name, column in told.items()}
    if not animate:
        return predictions, {}
    numbers = {"steps": torch.tensor(steps), "rewards": torch.tensor(rewards)}
    return predictions, {"frames": torch.from_numpy(np.stack(frames)), **numbers}


def frame(module: EnvironmentDataModule) -> np.ndarray:
    """What an episode looks like when it begins, uint8 [height,width,3].

    Raises:
        ConfigError: the environment draws no pictures, or lacks what it draws them with.
    """
    environment = module.make(render=True)
    try:
        environment.reset(seed=0)
        return _small(environment.render())
    except Exception as error:  # of whatever kind an environment's own is
        raise ConfigError(
            f"data.animate needs pictures, and {module.environment} draws none ({type(error).__name__}: {error}); "
            "set data.animate=false"
        ) from error
    finally:
        environment.close()


def _small(picture: object) -> np.ndarray:
    """A picture [height,width,3], made smaller by the mean of squares of pixels."""
    if not isinstance(picture, np.ndarray) or picture.ndim != 3:
        raise TypeError(f"needs an array of three axes, got {type(picture).__name__}")
    by = max(-(-max(picture.shape[:2]) // FRAME_SIDE), 1)
    height, width = (side // by for side in picture.shape[:2])
    squares = picture[: height * by, : width * by].reshape(height, by, width, by, -1)
    return squares.mean(axis=(1, 3)).round().astype(np.uint8)


def _plain(command: np.ndarray) -> int | np.ndarray:
    return command if command.ndim else int(command)


def greedy_history(history: Sequence[dict[str, float]]) -> dict[str, Tensor]:
    """Steps in the environments, and the mean greedy return, of each validation."""
    rows = [row for row in history if "val/return" in row]
    columns = {"greedy_steps": "train/environment_steps", "greedy_returns": "val/return"}
    return {name: torch.tensor([row[metric] for row in rows], dtype=torch.float64) for name, metric in columns.items()}
