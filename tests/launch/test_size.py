"""How many workers a run gets."""

from __future__ import annotations

from typing import Any

import pytest

from neurofleet.errors import ConfigError
from neurofleet.launch.size import SETTLE_SECONDS, bounds, choose, need_fixed, places


@pytest.mark.parametrize(("given", "expected"), [(3, (3, 3)), ([1, 4], (1, 4)), ((2, 2), (2, 2))])
def test_a_number_is_both_bounds(given: Any, expected: tuple[int, int]) -> None:
    assert bounds({"num_workers": given}) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([4, 1], r"needs the smaller number first, got \[4, 1\]; write \[1, 4\]"),
        ([0, 2], r"needs a whole number of at least 1, got \[0, 2\]; give one, as in 2, or a minimum and a maximum"),
        ([-1, 2], r"at least 1, got \[-1, 2\]"),
        ([1, 2.0], r"at least 1, got \[1, 2.0\]"),
        ([1, True], r"at least 1, got \[1, True\]"),
        ([1, None], r"at least 1, got \[1, None\]"),
        ([1, 2, 4], r"needs a number, or two: \[minimum, maximum\], got 3 in \[1, 2, 4\]; give the fewest"),
        ([2], r"got 1 in \[2\]"),
        ([], r"got 0 in \[\]"),
        (-2, "at least 1, got -2"),
        ("2-4", "at least 1, got '2-4'"),
        ({"min": 1}, "at least 1, got {'min': 1}"),
    ],
)
def test_other_sizes_are_refused(given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"launcher.num_workers.*{message}"):
        bounds({"num_workers": given})


def test_whoever_needs_a_number_that_stays_says_so() -> None:
    need_fixed({"name": "ray", "num_workers": 2}, "a study")
    need_fixed({"name": "local"}, "a study")
    with pytest.raises(ConfigError, match=r"a study needs a number of workers that stays, got .*\[1, 4\]; .* as in 4"):
        need_fixed({"name": "ray", "num_workers": [1, 4]}, "a study")


def test_a_worker_has_its_place_on_one_node() -> None:
    assert places({"CPU": 2.0}, [{"CPU": 3.0}, {"CPU": 3.0}, {"memory": 1.0}]) == 2
    assert places({"CPU": 1.0, "GPU": 1.0}, [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0}]) == 2
    assert places({"CPU": 1.0}, []) == 0


@pytest.mark.parametrize(
    ("free", "whole", "waited", "expected"),
    [
        (4, 4, 0.0, 4),
        (9, 9, 0.0, 4),  # no more than wanted
        (2, 2, 0.0, 2),  # all that there is: nothing to wait for
        (3, 4, 0.0, None),  # others, or the workers before, may be about to go
        (3, 4, SETTLE_SECONDS, 3),
        (1, 4, SETTLE_SECONDS, None),  # fewer than the fewest
        (1, 1, 1000.0, None),
        (0, 0, 1000.0, None),
    ],
)
def test_as_many_as_there_is_room_for(free: int, whole: int, waited: float, expected: int | None) -> None:
    assert choose(2, 4, free=free, whole=whole, waited=waited) == expected
