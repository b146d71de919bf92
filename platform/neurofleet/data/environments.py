"""Environments of gymnasium as data: nothing lies on disk, agents make their rows by acting (`acting.py`).

gymnasium (the extra `agents`) is imported where an environment is made, and torch is not imported at all.  A config
names an environment that some package registers; that package has to stand in `PACKAGES`, since importing runs code.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from neurofleet.errors import ConfigError, nearest
from neurofleet.spec import DataSpec

if TYPE_CHECKING:
    import gymnasium

PACKAGES = ("gymnasium", "highway_env")
HALF_BYTE = 127.5
RESERVED_SETTINGS = {"render_mode", "disable_env_checker", "max_episode_steps", "vectorization_mode"}


class EnvironmentDataModule:
    """An environment of `configs/data/env`.

    In: `name` of the data; `package` and `environment`, who registers it and gymnasium's id; `settings` of its
    constructor; `max_episode_steps`, after which an episode is cut (null: the environment's own limit); names of the
    numbers of an `observation` and of the `actions` (null: they are numbered);
    `num_environments` that stand side by side; `steps_per_epoch`, over all of them, so that an epoch means something;
    `batch_size` rows per optimizer step; `num_episodes` of a validation, and of the test; `reward_scale`, a factor on
    what agents learn from (returns are reported without it); `animate`, whether an episode is drawn in the end.
    Raises ConfigError for an impossible value, or where the package is not installed.
    """

    def __init__(
        self,
        *,
        name: str,
        package: str,
        environment: str,
        settings: Mapping[str, Any],
        max_episode_steps: int | None,
        observation: Sequence[str] | None,
        actions: Sequence[str] | None,
        num_environments: int,
        steps_per_epoch: int,
        batch_size: int,
        num_episodes: int,
        reward_scale: float,
        animate: bool,
    ) -> None:
        for key, count in (
            ("num_environments", num_environments),
            ("steps_per_epoch", steps_per_epoch),
            ("batch_size", batch_size),
            ("num_episodes", num_episodes),
            ("max_episode_steps", 1 if max_episode_steps is None else max_episode_steps),
        ):
            if isinstance(count, bool) or count < 1:
                raise ConfigError(f"data.{key} needs a whole number of at least 1, got {count!r}")
        if package not in PACKAGES:
            raise ConfigError(f"data.package needs one of {', '.join(PACKAGES)}, got {package!r}")
        if not re.fullmatch(r"[\w./-]+-v\d+", environment):  # `module:id` would import any module
            raise ConfigError(f"data.environment needs gymnasium's id of one, as in CartPole-v1, got {environment!r}")
        if RESERVED_SETTINGS & set(settings):
            raise ConfigError(f"data.settings may not hold {', '.join(sorted(RESERVED_SETTINGS & set(settings)))}")
        for name in _names_in(settings):
            # Packages import what a setting names, as in the policy that other drivers follow.
            if "." in name and not re.fullmatch(rf"{package}(\.\w+)+", name):
                raise ConfigError(f"data.settings may name what is in {package} alone, got {name!r}")
        if not reward_scale > 0:
            raise ConfigError(f"data.reward_scale needs a number above 0, got {reward_scale!r}")
        self.name, self.package, self.environment, self.settings = name, package, environment, dict(settings)
        self.max_episode_steps = max_episode_steps
        self.num_environments, self.steps_per_epoch = num_environments, steps_per_epoch
        self.batch_size, self.num_episodes = batch_size, num_episodes
        self.reward_scale, self.animate = float(reward_scale), animate
        self._names = observation, actions

    def make(self, *, render: bool = False) -> gymnasium.Env[Any, Any]:
        """The environment itself; observations other than rows of numbers and stacks of images are flattened."""
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        # Pictures are drawn in memory, on any machine; with the video driver "dummy" highway_env would draw none.
        os.environ.setdefault("SDL_VIDEODRIVER", "offscreen")
        os.environ.setdefault("SDL_AUDIODRIVER", "dummy")
        with warnings.catch_warnings():
            # Third parties' own; as an error, one of them (SWIG's in Box2D) would end the process.
            warnings.simplefilter("ignore")
            try:
                import gymnasium

                if self.package != "gymnasium":
                    gymnasium.register_envs(importlib.import_module(self.package))
                if self.environment not in gymnasium.registry:
                    hint = nearest(self.environment, gymnasium.registry)
                    raise ConfigError(
                        f"data.environment needs an id that {self.package} registers, got {self.environment!r}; {hint}"
                    )
                mode = "rgb_array" if render else None
                made = gymnasium.make(
                    self.environment,
                    max_episode_steps=self.max_episode_steps,
                    disable_env_checker=True,
                    render_mode=mode,
                    **self.settings,
                )
            except ConfigError:
                raise
            except ImportError as error:
                raise ConfigError(
                    f"data.environment={self.environment} needs what is not installed ({error}); "
                    "install it with: pip install 'neurofleet[agents]'"
                ) from error
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
                raise ConfigError(
                    f"data.environment={self.environment} cannot be made with these settings ({reason})"
                ) from error
        if made.spec is None or made.spec.max_episode_steps is None:  # an agent that walks into a wall for ever
            raise ConfigError(f"{self.environment} needs a limit to its episodes; set data.max_episode_steps")
        space = made.observation_space
        if not isinstance(space, gymnasium.spaces.Box):
            return gymnasium.wrappers.FlattenObservation(made)
        if len(space.shape) == 3 and space.dtype == np.uint8:  # [Y,X,C], as images are drawn
            seen = gymnasium.spaces.Box(-1, 1, (space.shape[2], *space.shape[:2]), np.float32)
            return gymnasium.wrappers.TransformObservation(made, _standardised, seen)
        return made if len(space.shape) == 1 else gymnasium.wrappers.FlattenObservation(made)

    @cached_property
    def _spaces(self) -> tuple[Any, Any]:
        made = self.make()
        made.close()
        return made.observation_space, made.action_space

    @cached_property
    def spec(self) -> DataSpec:
        """`num_rows` are steps of an epoch in train, and episodes in val and test."""
        observations, actions = self._spaces
        import gymnasium  # after `make`, which says so where it is not installed

        discrete = isinstance(actions, gymnasium.spaces.Discrete)
        if not discrete and not (isinstance(actions, gymnasium.spaces.Box) and len(actions.shape) == 1):
            raise ConfigError(f"agents need one of several actions, or a row of numbers; {self.name} has {actions}")
        num_inputs = int(np.prod(observations.shape))
        names = self._named("observation", self._names[0], num_inputs)
        acts = self._named("actions", self._names[1], int(actions.n if discrete else actions.shape[0]))
        middle, half = ([], []) if discrete else _range(actions)
        image = len(observations.shape) == 3
        channels = observations.shape[0] if image else num_inputs
        return DataSpec(
            name=self.name,
            kind="environment",
            task="control",
            shape=tuple(observations.shape),
            inputs=names,
            targets=() if discrete else acts,
            classes=acts if discrete else (),
            vocabulary=(),
            tokenizer="",
            cardinalities=(),
            input_mean=(HALF_BYTE if image else 0.0,) * channels,
            input_std=(HALF_BYTE if image else 1.0,) * channels,
            target_mean=tuple(middle),
            target_std=tuple(half),
            split="official",
            num_rows={"train": self.steps_per_epoch, "val": self.num_episodes, "test": self.num_episodes},
            source=f"{self.package} {importlib.metadata.version(self.package.replace('_', '-'))}: {self.environment}",
        )

    def _named(self, key: str, names: Sequence[str] | None, size: int) -> tuple[str, ...]:
        if names is None:
            return tuple(f"{key.removesuffix('s')}_{index}" for index in range(size))
        if len(names) != size:
            raise ConfigError(f"data.{key} needs {size} names for {self.environment}, got {len(names)}; or set it null")
        return tuple(names)

    @cached_property
    def digest(self) -> str:
        """Of all that decides how the environment behaves, as far as it can be known from outside; as long as those of
        datasets."""
        spec = self.spec
        settings = self.settings | {"max_episode_steps": self.max_episode_steps}
        decides = (spec.source, importlib.metadata.version("gymnasium"), settings, spec.shape, spec.num_outputs)
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:32]

    @property
    def folder(self) -> str:
        """Where the data come from, in the place of a dataset's folder."""
        return f"{self.package}:{self.environment}"

    def commands(self, actions: np.ndarray) -> np.ndarray:
        """An agent's actions in the environment's terms: indices, or standardised numbers back in their range."""
        _, space = self._spaces
        if self.spec.classes:
            return actions.astype(np.int64) + space.start
        values = np.asarray(self.spec.target_mean) + np.asarray(self.spec.target_std) * actions
        return np.clip(values, space.low, space.high).astype(space.dtype)


def _standardised(image: np.ndarray) -> np.ndarray:
    """[Y,X,C] bytes to [C,Y,X] in [-1, 1], what a network takes."""
    return (np.moveaxis(image, 2, 0).astype(np.float32) - HALF_BYTE) / HALF_BYTE


def _names_in(settings: Any) -> Iterator[str]:
    """All text in settings, however deep, keys included."""
    if isinstance(settings, str):
        yield settings
    elif isinstance(settings, Mapping):
        yield from _names_in([*settings, *settings.values()])
    elif isinstance(settings, Sequence):
        for one in settings:
            yield from _names_in(one)


def _range(actions: Any) -> tuple[list[float], list[float]]:
    """The middle and half the width of each action's range; 0 and 1 where that has no end."""
    low, high = actions.low.astype(np.float64), actions.high.astype(np.float64)
    bounded = np.isfinite(low) & np.isfinite(high)
    low, high = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
    return ((low + high) / 2).tolist(), ((high - low) / 2).tolist()
