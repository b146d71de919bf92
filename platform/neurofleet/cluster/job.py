"""A job: what was ordered, and how it stands."""

from __future__ import annotations

import dataclasses
import json
import re
import sqlite3
from pathlib import Path
from typing import Any

from neurofleet import paths
from neurofleet.errors import ConfigError

SUBMITTED, RUNNING, PREEMPTED = "SUBMITTED", "RUNNING", "PREEMPTED"
SUCCEEDED, FAILED, STOPPED, TIMED_OUT = "SUCCEEDED", "FAILED", "STOPPED", "TIMED_OUT"
WAITING, ENDS = (SUBMITTED, PREEMPTED), (SUCCEEDED, FAILED, STOPPED, TIMED_OUT)
SIZES = (86400.0, 3600.0, 60.0, 1.0)  # seconds of a day, an hour, a minute, a second
DURATION = re.compile(r"(?=\d)(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


@dataclasses.dataclass(frozen=True)
class Order:
    """What is to be run.

    pipeline, arguments: as typed
    command:             what each attempt runs; the same every time, since the run knows how far it is
    what:                the experiment in words
    environment:         of the attempts, beside what the cluster gives
    address:             of the cluster; empty for the platform's own
    time_limit:          seconds that its attempts may run, all together
    """

    pipeline: str
    arguments: list[str]
    command: list[str]
    project: str
    what: str = ""
    run_id: str | None = None
    study: str | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    own_cpus: float = 1.0  # of them, what the command itself needs; the rest is for its workers
    own_gpus: float = 0.0
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    address: str = ""
    time_limit: float | None = None


@dataclasses.dataclass(frozen=True)
class Job:
    """A row of the ledger; times are seconds since 1970, `cause` is what the last attempt died of."""

    id: str
    key: str | None
    order: Order
    priority: int
    state: str
    submitted: float
    started: float | None
    ended: float | None
    not_before: float
    attempts: int
    forgiven: int
    stop_asked: bool
    exit_code: int | None
    cause: dict[str, Any]
    progress: str | None

    @property
    def submission(self) -> str:
        """The id of the last attempt at Ray."""
        return f"{self.id}-{self.attempts}"


def folder(job_id: str) -> Path:
    """Of one job: log.txt and what its attempts said in the end."""
    return paths.home() / "jobs" / job_id


def seconds(text: str) -> float:
    """What a duration like 90s, 30m or 1h30m comes to.

    Raises:
        ConfigError: it is none, or zero.
    """
    found = DURATION.fullmatch(text)
    total = 0.0 if found is None else sum(int(n or 0) * size for n, size in zip(found.groups(), SIZES, strict=True))
    if not total:
        raise ConfigError(f"a time limit needs a duration like 90s, 30m, 1h30m or 2d, got {text!r}; name its units")
    return total


def from_row(row: sqlite3.Row) -> Job:
    """A job as the ledger stores it."""
    values = {name: row[name] for name in row.keys() if name not in ("content", "concluded")}  # noqa: SIM118
    values |= {"stop_asked": bool(row["stop_asked"]), "cause": json.loads(row["cause"])}
    return Job(order=Order(**json.loads(row["content"])), **values)
