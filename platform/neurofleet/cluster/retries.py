"""Retries: what becomes of a job, from what its attempts died of.  Pure: policies decide, the keeper acts.

What is not the job's fault (a lost worker, a spot notice) does not use its budget; the same error twice at the same
place is the user's, whatever the budget.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from neurofleet.cluster.causes import ERROR, LOST, MEMORY, PREEMPTED, UNREACHABLE, USER
from neurofleet.cluster.job import FAILED, SUBMITTED
from neurofleet.cluster.job import PREEMPTED as WAITS

MOST = {ERROR: 3, MEMORY: 2, UNREACHABLE: 6}
"""attempts that may end so; the last of them fails the job"""
MOST_WITHOUT_PROGRESS = 10
"""attempts in a row that may be lost before the next checkpoint"""
LONGEST_DELAY = 60.0  # seconds


@dataclasses.dataclass(frozen=True)
class Decision:
    """state: FAILED, or one that waits for its next attempt, after `delay` seconds"""

    state: str
    text: str
    delay: float = 0.0


def decide(causes: Sequence[Mapping[str, Any]]) -> Decision:
    """causes: of all attempts so far, oldest first, as `Cause.to_dict` gives them; none of them succeeded."""
    last = causes[-1]
    kind, text = last["kind"], last["text"]
    if kind == USER:
        return Decision(FAILED, text)
    if kind == ERROR and any(_same(one, last) for one in causes[:-1]):
        where = f" at {last['place']}" if last["place"] else ""
        return Decision(FAILED, f"the same error twice{where}, not tried again: {text}")
    stuck = _without_progress(causes)
    if kind in (LOST, PREEMPTED):
        if stuck >= MOST_WITHOUT_PROGRESS:
            return Decision(FAILED, f"lost {stuck} times in a row before its next checkpoint: {text}")
        return Decision(WAITS, text, _delay(stuck))
    count = sum(one["kind"] == kind for one in causes)
    if count >= MOST[kind]:
        return Decision(FAILED, f"{count} attempts ended so, which is the limit: {text}")
    return Decision(SUBMITTED, f"tried again ({count} of {MOST[kind] - 1}): {text}", _delay(count + 1))


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(one[part] == other[part] for part in ("kind", "error", "text", "place"))


def _without_progress(causes: Sequence[Mapping[str, Any]]) -> int:
    """How many attempts in a row ended at the step at which the last one did."""
    count = 0
    for one in reversed(causes):
        if one["step"] != causes[-1]["step"] or one["kind"] not in (LOST, PREEMPTED):
            break
        count += 1
    return count


def _delay(count: int) -> float:
    """Seconds before the next attempt: none after the first, then doubling."""
    return 0.0 if count <= 1 else min(LONGEST_DELAY, 2.0 ** (count - 2))
