"""A job: what was ordered, and how it stands."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from pathlib import Path
from typing import Any

from neurofleet import paths

SUBMITTED, RUNNING, PREEMPTED = "SUBMITTED", "RUNNING", "PREEMPTED"
SUCCEEDED, FAILED, STOPPED = "SUCCEEDED", "FAILED", "STOPPED"
WAITING, ENDS = (SUBMITTED, PREEMPTED), (SUCCEEDED, FAILED, STOPPED)


@dataclasses.dataclass(frozen=True)
class Order:
    """What is to be run.

    pipeline, arguments: as typed
    command:             what each attempt runs; the same every time, since the run knows how far it is
    what:                the experiment in words
    environment:         of the attempts, beside what the cluster gives
    address:             of the cluster; empty for the platform's own
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


def from_row(row: sqlite3.Row) -> Job:
    """A job as the ledger stores it."""
    values = {name: row[name] for name in row.keys() if name not in ("content", "concluded")}  # noqa: SIM118
    values |= {"stop_asked": bool(row["stop_asked"]), "cause": json.loads(row["cause"])}
    return Job(order=Order(**json.loads(row["content"])), **values)
