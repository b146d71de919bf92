"""How many workers a run gets.  Pure: who starts them acts on it (`neurofleet.launch.elastic`).

    launcher.num_workers=2        two, or none
    launcher.num_workers=[1,4]    as many of four as there is room for, at least one

The second form is that of Ray Train's `ScalingConfig(num_workers=(minimum, maximum))`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from neurofleet.errors import ConfigError

SETTLE_SECONDS = 10.0
"""how long fewer workers than the nodes could hold wait for the rest, which others are about to give back"""

Resources = Mapping[str, float]


def bounds(launcher: Mapping[str, Any]) -> tuple[int, int]:
    """The fewest workers that the run may have, and the most.

    Raises:
        ConfigError: `num_workers` is neither a count nor two of them in order.
    """
    given = launcher["num_workers"]
    pair = list(given) if is_elastic(launcher) else [given, given]
    if len(pair) != 2:
        raise ConfigError(
            f"launcher.num_workers needs a number, or two: [minimum, maximum], got {len(pair)} in {given}; "
            "give the fewest and the most workers, as in [1, 4]"
        )
    if any(type(one) is not int or one < 1 for one in pair):  # not isinstance: True is an int
        raise ConfigError(
            f"launcher.num_workers needs a whole number of at least 1, got {given!r}; give one, as in 2, or a minimum "
            "and a maximum, as in [1, 4]"
        )
    if pair[0] > pair[1]:
        raise ConfigError(
            f"launcher.num_workers=[minimum, maximum] needs the smaller number first, got {given}; "
            f"write {[pair[1], pair[0]]}"
        )
    return pair[0], pair[1]


def is_elastic(launcher: Mapping[str, Any]) -> bool:
    return isinstance(launcher["num_workers"], list | tuple)


def need_fixed(launcher: Mapping[str, Any], who: str) -> None:
    """Raise ConfigError unless the launcher, if it has workers, has a number of them that stays."""
    if launcher["name"] == "ray" and is_elastic(launcher):
        raise ConfigError(
            f"{who} needs a number of workers that stays, got launcher.num_workers={list(launcher['num_workers'])}; "
            f"give one number, as in {bounds(launcher)[1]}"
        )


def places(share: Resources, nodes: Iterable[Resources]) -> int:
    """How many workers that need `share` each find room on nodes that have so much."""
    return sum(int(min(node.get(kind, 0) // amount for kind, amount in share.items())) for node in nodes)


def choose(smallest: int, largest: int, *, free: int, whole: int, waited: float) -> int | None:
    """How many workers to start now, or None: wait.

    free, whole: how many there is room for now, and would be if nobody else used the cluster
    waited:      seconds for which the question has been asked
    """
    if free >= max(smallest, min(largest, whole)) or (free >= smallest and waited >= SETTLE_SECONDS):
        return min(free, largest)
    return None
