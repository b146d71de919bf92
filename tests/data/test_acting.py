"""Rows made by acting: with an environment that counts its steps, and an agent whose actions are known."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

from neurofleet import experiment as experiments
from neurofleet.data import EnvironmentDataModule
from neurofleet.data.acting import ActingLoader, ReplayLoader, RolloutLoader, acting_loader
from neurofleet.data.episodes import HeldOutEpisodes, film
from neurofleet.errors import ConfigError
from neurofleet.experience import Replay, Rollout, Rollouts
from neurofleet.steps import Batch, Chunk, Context

LENGTH = 5


class Counting(gymnasium.Env[Any, Any]):
    """One sees (the episode's first number, the step); a step is worth its number; the fifth ends the episode."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.begin, self.count = float(self.np_random.integers(1 << 20)), 0
        return np.array([self.begin, 0.0]), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.count += 1
        seen = np.array([self.begin, self.count])
        return seen, float(self.count), self.count == LENGTH and self.begin % 2 == 0, self.count == LENGTH, {}


class Module(EnvironmentDataModule):
    def make(self, *, render: bool = False) -> gymnasium.Env[Any, Any]:
        return Counting()


class Cyclic:
    """Takes action (step + environment) modulo 3."""

    def __init__(self, collection: Replay | Rollouts, module: EnvironmentDataModule) -> None:
        self.collection, self.spec = collection, module.spec
        self.progress: list[float] = []

    def act(self, observations: Tensor, context: Context) -> Tensor:
        assert isinstance(context.step, int)
        self.progress.append(context.progress)
        return (context.step + context.rows.long()) % 3

    def greedy(self, observations: Tensor) -> Tensor:
        return torch.zeros(len(observations), dtype=torch.long)

    def experience(self, rollout: Rollout) -> Batch:
        self.rollout = rollout
        return tuple(tensor.flatten(0, 1) for tensor in rollout)

    def __call__(self, observations: Tensor) -> Tensor:
        return observations


def module(**changes: Any) -> Module:
    config = experiments.compose(["data=env/cartpole"])["data"]
    names = {"observation": None, "actions": None}
    sizes = {"num_environments": 3, "steps_per_epoch": 24, "batch_size": 8, "num_episodes": 4, "animate": False}
    values = {key: value for key, value in config.items() if key != "_target_"}
    return Module(**values | names | sizes | changes)


def loader(collection: Replay | Rollouts, *, rank: int = 0, world_size: int = 1, **changes: Any) -> ActingLoader:
    made = module(**changes)
    settings: dict[str, Any] = {"seed": 3, "max_epochs": 4, "epochs_per_round": 1, "cut_every": None}
    settings |= {"rank": rank, "world_size": world_size, "device": torch.device("cpu"), "dtype": torch.float64}
    return acting_loader(made, Cyclic(collection, made), **settings)


def train(from_: ActingLoader, until: int | None = None) -> list[Batch]:
    """Every batch to the end (or to a step), one chunk after another."""
    batches: list[Batch] = []
    while from_.step < (until or from_.num_steps):
        for chunk in from_:
            assert isinstance(chunk, Chunk)
            assert len(chunk.batches) == len(chunk.rows) == len(chunk.weights)
            batches += chunk.batches
            from_.step += len(chunk.batches)
            if from_.step == until:
                break
    return batches


REPLAY = Replay(capacity=60, warmup=12, steps_per_update=4, num_steps=3, discount=0.5)
ROLLOUTS = Rollouts(num_steps=4, num_epochs=3)


def test_replayed_steps_are_those_that_happened() -> None:
    """Each row by hand: the sum of up to three rewards of the episode, and what the observation then counts."""
    replayed = loader(REPLAY)
    assert isinstance(replayed, ReplayLoader)
    for batch in train(replayed):
        for seen, action, reward, discount, after in zip(*batch, strict=True):
            begin, count = int(seen[0]), int(seen[1])
            steps = int(after[1]) - count
            assert int(after[0]) == begin, "of the same episode"
            assert 1 <= steps <= 3
            rewards = [count + 1 + ahead for ahead in range(steps)]
            assert float(reward) == sum(one * 0.5**ahead for ahead, one in enumerate(rewards))
            ended = int(after[1]) == LENGTH
            assert float(discount) == (0.0 if ended and begin % 2 == 0 else 0.5**steps)
            assert 0 <= int(action) < 3


def test_replay_acts_when_it_is_time_to() -> None:
    replayed = loader(REPLAY)
    chunk = next(iter(replayed))
    assert replayed.num_moves == 0, "a chunk that was fetched ahead has not acted"
    list(chunk.batches)
    assert replayed.num_moves * 3 == 12, "the warm-up"
    replayed.step = 1
    train(replayed, until=4)
    assert replayed.num_moves == 8, "12 + 3 * 4 steps, in threes"
    assert replayed.steps_per_epoch == 6
    agent: Any = replayed.agent
    assert agent.progress[:4] == [0.0] * 4
    assert agent.progress[4] == 1 / replayed.num_steps


def test_replay_remembers_the_latest_alone() -> None:
    replayed = loader(REPLAY)
    assert isinstance(replayed, ReplayLoader)
    train(replayed)
    assert replayed.num_moves * 3 > 60
    times = torch.arange(replayed.num_moves - 20, replayed.num_moves)
    lane = torch.zeros_like(times)
    seen, actions, *_ = replayed._steps(times, lane)
    assert actions.tolist() == [(time % 3) for time in times.tolist()]
    assert seen[:, 1].tolist() == [time % LENGTH for time in times.tolist()]
    drawn = [replayed._sample(step)[0][:, 0] for step in range(200)]
    alive = set(torch.cat([replayed._steps(times, lane + place)[0][:, 0] for place in range(3)]).tolist())
    assert set(torch.cat(drawn).tolist()) == alive


def test_a_rollout_is_learnt_from_as_often_as_asked() -> None:
    made = loader(ROLLOUTS)
    assert isinstance(made, RolloutLoader)
    assert made.steps_per_epoch == 2 * 3 * 2, "two rollouts of 12 rows, three times, in batches of 8 and 4"
    batches = train(made, until=6)
    assert [len(batch[0]) for batch in batches] == [8, 4] * 3
    epochs = [torch.cat([batches[2 * epoch][0], batches[2 * epoch + 1][0]]) for epoch in range(3)]
    wanted = sorted(made.agent.rollout.observations.flatten(0, 1).tolist())  # type: ignore[attr-defined]
    assert all(sorted(epoch.tolist()) == wanted for epoch in epochs)
    assert epochs[0].tolist() != epochs[1].tolist() != epochs[2].tolist()
    assert made.num_moves == 4
    train(made, until=7)
    assert made.num_moves == 8


def test_a_rollout_says_what_happened() -> None:
    made = loader(ROLLOUTS, reward_scale=0.1)
    train(made, until=7)  # into the second rollout, in which the first episodes end
    rollout: Rollout = made.agent.rollout  # type: ignore[attr-defined]
    assert rollout.observations[:, 0, 1].tolist() == [4, 0, 1, 2]
    assert rollout.next_observations[:, 0, 1].tolist() == [5, 1, 2, 3]
    torch.testing.assert_close(rollout.rewards[:, 0], torch.tensor([0.5, 0.1, 0.2, 0.3], dtype=torch.float64))
    assert rollout.truncated[:, 0].tolist() == [True, False, False, False]
    assert torch.equal(rollout.terminated[0], rollout.observations[0, :, 0] % 2 == 0)
    assert rollout.actions[:, 1].tolist() == [(4 + step + 1) % 3 for step in range(4)]
    scores = made.scores()
    assert scores == {"train/environment_steps": 24.0, "train/return": 15.0, "train/episode_length": 5.0}
    assert made.scores() == {"train/environment_steps": 24.0}, "of the round that ends"


@pytest.mark.parametrize("collection", [REPLAY, ROLLOUTS], ids=["replay", "rollouts"])
@pytest.mark.parametrize("step", [1, 5, 9, 12])
def test_a_restored_loader_goes_on(collection: Replay | Rollouts, step: int) -> None:
    whole = loader(collection)
    train(whole, until=step)
    tensors, state = copy.deepcopy(whole.state())
    back = loader(collection)
    back.restore(tensors, state)
    back.step = step
    for mine, theirs in zip(train(whole), train(back), strict=True):
        assert all(torch.equal(left, right) for left, right in zip(mine, theirs, strict=True))
    assert whole.ended == back.ended
    assert whole.scores() == back.scores()


@pytest.mark.parametrize("collection", [REPLAY, ROLLOUTS], ids=["replay", "rollouts"])
@pytest.mark.parametrize("world_size", [2, 3, 9])
def test_workers_share_each_batch(collection: Replay | Rollouts, world_size: int) -> None:
    whole = train(loader(collection))
    parts = [loader(collection, rank=rank, world_size=world_size) for rank in range(world_size)]
    chunks = [next(iter(part)) for part in parts]
    assert sum(chunk.weights[0] for chunk in chunks) == pytest.approx(1.0)
    for part in parts:
        part.step = 0
    shared = [train(loader(collection, rank=rank, world_size=world_size)) for rank in range(world_size)]
    for index, batch in enumerate(whole):
        held = [shared[rank][index] for rank in range(world_size)]
        if len(batch[0]) >= world_size:
            for column, pieces in zip(batch, zip(*held, strict=True), strict=True):
                assert torch.equal(column, torch.cat(pieces))


def test_sizes_that_do_not_come_out_even_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"multiple of family.replay.steps_per_update=4, got 26; 24 is near"):
        loader(REPLAY, steps_per_epoch=26)
    with pytest.raises(ConfigError, match=r"multiple of the 12 steps of a rollout .*, got 40; 36 is near"):
        loader(ROLLOUTS, steps_per_epoch=40)
    with pytest.raises(ConfigError, match="num_epochs of an agent's experience needs a whole number of at least 1"):
        Rollouts(num_steps=1, num_epochs=0)


def episodes(rank: int, world_size: int, stage: str = "val") -> HeldOutEpisodes:
    made = module()
    where: dict[str, Any] = {"rank": rank, "world_size": world_size}
    return HeldOutEpisodes(
        made, Cyclic(ROLLOUTS, made), stage, dtype=torch.float64, device=torch.device("cpu"), **where
    )


def test_held_out_episodes_are_whole_and_the_same_each_time() -> None:
    every = episodes(0, 1)
    ((returns, lengths),) = list(every)
    assert returns.tolist() == [15.0] * 4
    assert lengths.tolist() == [5.0] * 4
    assert torch.equal(next(iter(every)).returns, returns)
    assert every.seeds != episodes(0, 1, "test").seeds
    assert episodes(0, 2).seeds + episodes(1, 2).seeds == every.seeds
    assert episodes(3, 9).seeds == every.seeds, "more workers than episodes: each plays all"


def test_a_film_shows_an_episode() -> None:
    config = experiments.compose(["data=env/cartpole"])
    made = experiments.build_data(config)
    assert isinstance(made, EnvironmentDataModule)
    predictions, animation = film(
        made, Cyclic(ROLLOUTS, made), dtype=torch.float32, device=torch.device("cpu"), animate=True
    )
    length = len(animation["rewards"])
    assert 5 <= length <= 30, "always to the left"
    assert predictions["observations"].shape == (length, 4)
    frames = animation["frames"]
    assert frames.dtype is torch.uint8
    assert frames.shape == (-(-length // 5) + 1, 200, 300, 3)
    assert animation["steps"].tolist() == [*range(0, length, 5), length], "the end, too"
    assert all(not torch.equal(before, after) for before, after in itertools.pairwise(frames))
