"""Environments: what they say of themselves, and being brought back to where they were."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neurofleet import experiment as experiments
from neurofleet.data import EnvironmentDataModule, encode
from neurofleet.data.episodes import frame
from neurofleet.data.lanes import Lanes
from neurofleet.errors import CheckpointError, ConfigError

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "data" / "env"
UNNAMED = ("data.observation=null", "data.actions=null")
NAMES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def build(name: str, *overrides: str) -> EnvironmentDataModule:
    module = experiments.build_data(experiments.compose([f"data=env/{name}", *overrides]))
    assert isinstance(module, EnvironmentDataModule)
    return module


@pytest.mark.parametrize("name", NAMES)
def test_the_spec_follows_from_the_spaces(name: str) -> None:
    module = build(name)
    environment, spec = module.make(), module.spec
    assert (spec.name, spec.kind, spec.task) == (name, "environment", "control")
    assert spec.shape == environment.observation_space.shape
    assert spec.num_outputs == getattr(environment.action_space, "n", None) or environment.action_space.shape[0]
    assert bool(spec.classes) != bool(spec.targets)
    assert spec.num_rows == {"train": module.steps_per_epoch, "val": 10, "test": 10}
    assert module.digest == build(name).digest


def test_cartpole_and_pendulum_by_hand() -> None:
    cartpole, pendulum = build("cartpole"), build("pendulum")
    assert cartpole.spec.inputs == ("position", "velocity", "angle", "angular_velocity")
    assert cartpole.spec.classes == ("left", "right")
    assert cartpole.commands(np.array([1, 0])).tolist() == [1, 0]
    assert pendulum.spec.targets == ("torque",)
    assert (pendulum.spec.target_mean, pendulum.spec.target_std) == ((0.0,), (2.0,))
    commands = pendulum.commands(np.array([[0.25], [-0.5], [3.0]]))
    assert commands.dtype == np.float32
    assert commands.tolist() == [[0.5], [-1.0], [2.0]], "half of the range is one, and nothing is beyond it"


def test_the_digest_is_of_what_decides() -> None:
    plain = build("lunarlander")
    windy = build("lunarlander", "+data.settings.enable_wind=true")
    assert plain.digest != windy.digest != build("cartpole").digest
    assert build("lunarlander", "data.batch_size=7").digest == plain.digest


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.environment='os:CartPole-v1'", "needs gymnasium's id"),
        (
            "data.environment=CartPool-v1",
            "needs an id that gymnasium registers, got 'CartPool-v1'; did you mean CartPole",
        ),
        ("data.environment=CartPole-v9", "got 'CartPole-v9'; did you mean CartPole-v[01]"),
        ("data.package=highway_env data.environment=highwy-v0", "got 'highwy-v0'; did you mean highway-v0"),
        ("data.package=os", "data.package needs one of gymnasium, highway_env, got 'os'"),
        ("+data.settings.render_mode=human", "data.settings may not hold render_mode"),
        ("+data.settings.gravity=1", "cannot be made"),
        (
            "data.environment=LunarLander-v3 +data.settings.gravity=5",
            "cannot be made with these settings .AssertionError",
        ),
        ("data.environment=FrozenLake-v1 +data.settings.map_name=nope", "cannot be made with these settings .KeyError"),
        (
            "data.package=highway_env +data.settings.config.other_vehicles_type=this.Foo",
            "may name what is in highway_env",
        ),
        ("data.package=highway_env +data.settings.config.lanes=[[a.b]]", "may name what is in highway_env alone"),
        ("data.num_environments=0", "data.num_environments needs a whole number of at least 1"),
        ("data.reward_scale=0.0", "data.reward_scale needs a number above 0"),
        ("data.actions=[left]", "data.actions needs 2 names for CartPole-v1, got 1"),
        ("data.environment=Blackjack-v1 data.max_episode_steps=9", r"needs \d+ names"),
        ("data.environment=CliffWalking-v1", r"needs a limit to its episodes; set data.max_episode_steps"),
        ("data.max_episode_steps=0", "data.max_episode_steps needs a whole number of at least 1"),
    ],
)
def test_what_cannot_be_is_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _ = build("cartpole", *override.split()).spec


@pytest.mark.parametrize("name", ["cartpole", "highway"])
def test_an_episode_has_a_limit(name: str) -> None:
    environment = build(name).make()
    assert environment.spec is not None
    assert environment.spec.max_episode_steps == {"cartpole": 500, "highway": 30}[name]
    assert build(name, "data.max_episode_steps=7").digest != build(name).digest


def test_images_are_seen_as_networks_take_them() -> None:
    module = build("cartpole", "data.environment=CarRacing-v3", "+data.settings.continuous=false", *UNNAMED)
    assert (module.spec.shape, module.spec.input_mean) == ((3, 96, 96), (127.5,) * 3)
    raw = module.make().unwrapped.reset(seed=1)[0]
    seen = module.make().reset(seed=1)[0]
    assert (raw.shape, seen.dtype) == ((96, 96, 3), np.float32)
    assert np.array_equal(encode(np.moveaxis(raw, 2, 0)[None], module.spec)[0].numpy(), seen), "as at serving time"


def test_observations_of_other_spaces_are_flattened() -> None:
    module = build("cartpole", "data.environment=Blackjack-v1", "data.max_episode_steps=9", *UNNAMED)
    assert len(module.spec.shape) == 1
    assert module.spec.classes == ("action_0", "action_1")


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_shows_something(name: str) -> None:
    picture = frame(build(name))
    height, width, _ = picture.shape
    assert 250 <= max(height, width) <= 320
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 2


def random_steps(lanes: Lanes, module: EnvironmentDataModule, num_steps: int, seed: int) -> list[Any]:
    """What comes of random actions, all numbers of it."""
    generator, size = np.random.default_rng(seed), module.spec.num_outputs
    moves = []
    for _ in range(num_steps):
        actions = (
            generator.integers(size, size=module.num_environments)
            if module.spec.classes
            else generator.normal(size=(module.num_environments, size))
        )
        moves.append(lanes.step(actions))
    return moves


@pytest.mark.parametrize("name", NAMES)
def test_lanes_come_back_to_where_they_were(name: str) -> None:
    module = build(name, "data.num_environments=3")
    lanes = Lanes(module, seed=4)
    random_steps(lanes, module, 30, seed=1)
    arrays, state = copy.deepcopy(lanes.state())
    back = Lanes(module, seed=4)
    back.restore(arrays, state)
    for mine, theirs in zip(
        random_steps(lanes, module, 30, seed=2), random_steps(back, module, 30, seed=2), strict=True
    ):
        assert mine.ended == theirs.ended
        for left, right in zip(mine[:4], theirs[:4], strict=True):
            assert np.array_equal(left, right)
    assert np.array_equal(lanes.observations, back.observations)
    assert lanes.episodes == back.episodes


def test_lanes_refuse_to_go_on_elsewhere() -> None:
    module = build("cartpole")
    lanes = Lanes(module, seed=4)
    random_steps(lanes, module, 5, seed=1)
    arrays, state = copy.deepcopy(lanes.state())
    with pytest.raises(CheckpointError, match="needs to be a function of its seed and the actions"):
        Lanes(module, seed=5).restore(arrays, state)


def test_each_lane_and_episode_begins_elsewhere() -> None:
    module = build("cartpole")
    lanes = Lanes(module, seed=0)
    assert len({tuple(row) for row in lanes.observations.tolist()}) == 8
    first = lanes.observations[0].copy()
    while lanes.episodes[0] == 0:
        moves = random_steps(lanes, module, 1, seed=0)[0]
    assert not np.array_equal(lanes.observations[0], first)
    assert moves.terminated[0]
    assert not np.array_equal(moves.next_observations[0], lanes.observations[0]), "what was seen before the reset"
    assert moves.ended[0][0] == moves.ended[0][1], "a point a step"
