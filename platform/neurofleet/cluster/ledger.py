"""The ledger of jobs: what was submitted, and what became of it, in `home()/jobs.db`.

It is sqlite, so that it outlives Ray, the platform and the machine's power.  Every change is one transaction, every
change of state a compare-and-set: of two that would end a job one does, whoever they are.

    SUBMITTED ──> RUNNING ──> SUCCEEDED | FAILED | STOPPED | TIMED_OUT
        ^            │           an end, written once; `retry` alone opens it again
        └─ PREEMPTED <┘  cut from outside, waits to go on          (after an error of its own it waits as SUBMITTED)
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from neurofleet import paths
from neurofleet.cluster.job import ENDS, RUNNING, STOPPED, SUBMITTED, SUCCEEDED, WAITING, Job, Order, from_row
from neurofleet.errors import ConfigError, nearest

PATIENCE = 60.0  # seconds to wait for another process's transaction
LETTERS = "23456789abcdefghjkmnpqrstuvwxyz"  # none that is taken for another
SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, key TEXT UNIQUE, content TEXT NOT NULL, priority INTEGER NOT NULL, state TEXT NOT NULL,
    submitted REAL NOT NULL, started REAL, ended REAL, not_before REAL NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0, forgiven INTEGER NOT NULL DEFAULT 0, stop_asked INTEGER NOT NULL DEFAULT 0,
    concluded INTEGER NOT NULL DEFAULT 0, exit_code INTEGER, cause TEXT NOT NULL DEFAULT '{}', progress TEXT);
CREATE INDEX IF NOT EXISTS by_state ON jobs (state, priority, submitted);
CREATE TABLE IF NOT EXISTS attempts (
    job TEXT NOT NULL, number INTEGER NOT NULL, began REAL NOT NULL, ended REAL, cause TEXT NOT NULL DEFAULT '{}',
    PRIMARY KEY (job, number));
CREATE TABLE IF NOT EXISTS events (
    number INTEGER PRIMARY KEY AUTOINCREMENT, job TEXT NOT NULL, time REAL NOT NULL, state TEXT NOT NULL, text TEXT);
CREATE INDEX IF NOT EXISTS by_job ON events (job);
"""


def location() -> Path:
    return paths.home() / "jobs.db"


class Ledger:
    """One process's connection; use it in one thread."""

    def __init__(self) -> None:
        path = location()
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))  # environments may hold passwords
        self.connection = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None)
        self.connection.row_factory = sqlite3.Row
        self._use_wal()
        self.connection.execute("PRAGMA synchronous=FULL")
        if self.connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'by_job'").fetchone() is None:
            self.connection.executescript(f"BEGIN IMMEDIATE; {SCHEMA} COMMIT;")

    def _use_wal(self) -> None:
        """Whoever comes first changes the journal, for which sqlite does not wait, whatever its timeout."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self.connection.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield self.connection
        except BaseException:
            self.connection.execute("ROLLBACK")
            raise
        self.connection.execute("COMMIT")

    # Reading.

    def version(self) -> int:
        """Changes when another process has written."""
        return int(self.connection.execute("PRAGMA data_version").fetchone()[0])

    def jobs(self, *states: str) -> list[Job]:
        """Those in one of these states (all if none is named), oldest first."""
        where = f"WHERE state IN ({','.join('?' * len(states))})" if states else ""
        return [
            from_row(row) for row in self.connection.execute(f"SELECT * FROM jobs {where} ORDER BY submitted", states)
        ]

    def queue(self) -> list[Job]:
        """What waits, first what starts first: by priority, then age."""
        waiting = self.jobs(*WAITING)
        return sorted(waiting, key=lambda job: (-job.priority, job.submitted))

    def find(self, job_id: str) -> Job:
        """A job by its id or its name.

        Raises:
            ConfigError: there is none.
        """
        row = self.connection.execute("SELECT * FROM jobs WHERE id = ? OR key = ?", (job_id, job_id)).fetchone()
        if row is None:
            known = [one for row in self.connection.execute("SELECT id, key FROM jobs") for one in row if one]
            raise ConfigError(f"there is no job {job_id!r}; {_hint(job_id, known)}")
        return from_row(row)

    def named(self, key: str) -> Job | None:
        row = self.connection.execute("SELECT * FROM jobs WHERE key = ?", (key,)).fetchone()
        return None if row is None else from_row(row)

    def unconcluded(self) -> list[Job]:
        """Jobs whose end nobody has been told of."""
        rows = self.connection.execute("SELECT * FROM jobs WHERE concluded = 0 AND state IN (?, ?, ?, ?)", ENDS)
        return [from_row(row) for row in rows]

    def seconds_run(self, job: Job) -> float:
        """How long its attempts have run since it was submitted or retried by hand, what it waited left out."""
        question = "SELECT sum(coalesce(ended, ?) - began) FROM attempts WHERE job = ? AND number > ?"
        return float(self.connection.execute(question, (time.time(), job.id, job.forgiven)).fetchone()[0] or 0.0)

    def causes(self, job: Job) -> list[dict[str, Any]]:
        """What the attempts died of that did, since it was submitted or retried by hand."""
        rows = self.connection.execute(
            "SELECT cause FROM attempts WHERE job = ? AND number > ? AND ended IS NOT NULL ORDER BY number",
            (job.id, job.forgiven),
        )
        return [cause for row in rows if "kind" in (cause := json.loads(row["cause"]))]

    def events(self, job_id: str) -> list[dict[str, Any]]:
        rows = self.connection.execute("SELECT time, state, text FROM events WHERE job = ? ORDER BY number", (job_id,))
        return [dict(row) for row in rows]

    # Writing.

    def submit(self, order: Order, *, key: str | None = None, priority: int = 0) -> tuple[Job, bool]:
        """A job, and whether it is new: one of the same `key` is that job.

        Raises:
            ConfigError: the job of that key was ordered otherwise.
        """
        with self._transaction() as connection:
            if key is not None and (known := self.named(key)) is not None:
                need_same(known, order.pipeline, order.arguments)
                return known, False
            taken = {row["id"] for row in connection.execute("SELECT id FROM jobs")}
            while (job_id := _new_id(order.pipeline)) in taken:
                pass
            connection.execute(
                "INSERT INTO jobs (id, key, content, priority, state, submitted) VALUES (?, ?, ?, ?, ?, ?)",
                (job_id, key, json.dumps(dataclasses.asdict(order)), priority, SUBMITTED, time.time()),
            )
            _note(connection, job_id, SUBMITTED, "")
        return self.find(job_id), True

    def begin(self, job: Job) -> Job | None:
        """Start the next attempt of a waiting job; None where somebody else was quicker."""
        with self._transaction() as connection:
            done = connection.execute(
                "UPDATE jobs SET state = ?, attempts = attempts + 1, started = coalesce(started, ?) "
                "WHERE id = ? AND state IN (?, ?) AND stop_asked = 0",
                (RUNNING, time.time(), job.id, *WAITING),
            )
            if done.rowcount != 1:
                return None
            begun = self.find(job.id)
            connection.execute(
                "INSERT INTO attempts (job, number, began) VALUES (?, ?, ?)", (job.id, begun.attempts, time.time())
            )
            _note(connection, job.id, RUNNING, f"attempt {begun.attempts}")
        return begun

    def close(
        self,
        job: Job,
        state: str,
        cause: dict[str, Any],
        *,
        text: str = "",
        delay: float = 0.0,
        progress: str | None = None,
    ) -> bool:
        """The running attempt is over, and this is the job's state now; False where it was not running any more."""
        now, ends = time.time(), state in ENDS
        with self._transaction() as connection:
            done = connection.execute(
                "UPDATE jobs SET state = ?, cause = ?, exit_code = ?, ended = ?, not_before = ?, "
                "progress = coalesce(?, progress) WHERE id = ? AND state = ? AND attempts = ?",
                (
                    *(state, json.dumps(cause), cause.get("exit_code"), now if ends else None, now + delay),
                    *(progress, job.id, RUNNING, job.attempts),
                ),
            )
            if done.rowcount != 1:
                return False
            connection.execute(
                "UPDATE attempts SET ended = ?, cause = ? WHERE job = ? AND number = ?",
                (now, json.dumps(cause), job.id, job.attempts),
            )
            _note(connection, job.id, state, text)
        return True

    def ask_stop(self, job: Job) -> Job:
        """A waiting job is STOPPED; one that runs will be, when its process has ended; an end stays what it is."""
        with self._transaction() as connection:
            done = connection.execute(
                "UPDATE jobs SET state = ?, ended = ?, stop_asked = 1 WHERE id = ? AND state IN (?, ?)",
                (STOPPED, time.time(), job.id, *WAITING),
            )
            if done.rowcount:
                _note(connection, job.id, STOPPED, "before it went on" if job.attempts else "before it began")
            else:
                asked = connection.execute(
                    "UPDATE jobs SET stop_asked = 1 WHERE id = ? AND state = ? AND stop_asked = 0", (job.id, RUNNING)
                )
                if asked.rowcount:
                    _note(connection, job.id, RUNNING, "asked to stop")
        return self.find(job.id)

    def retry(self, job: Job) -> Job:
        """The same run again, with a fresh budget of retries.

        Raises:
            ConfigError: it has not ended, or it succeeded.
        """
        with self._transaction() as connection:
            done = connection.execute(
                "UPDATE jobs SET state = ?, ended = NULL, exit_code = NULL, stop_asked = 0, concluded = 0, "
                "not_before = 0, forgiven = attempts, cause = '{}' WHERE id = ? AND state IN (?, ?, ?)",
                (SUBMITTED, job.id, *(end for end in ENDS if end != SUCCEEDED)),
            )
            if done.rowcount != 1:
                raise ConfigError(
                    f"retry needs a job that FAILED, TIMED_OUT or was STOPPED, got {job.id}, which is {job.state}"
                )
            _note(connection, job.id, SUBMITTED, "retried by hand")
        return self.find(job.id)

    def conclude(self, job: Job) -> None:
        with self._transaction() as connection:
            connection.execute("UPDATE jobs SET concluded = 1 WHERE id = ?", (job.id,))

    def note(self, job: Job, text: str) -> None:
        with self._transaction() as connection:
            _note(connection, job.id, job.state, text)


def need_same(known: Job, pipeline: str, arguments: list[str]) -> None:
    """Raise ConfigError where a job's name is asked for by an order that is not its own."""
    if (known.order.pipeline, known.order.arguments) != (pipeline, arguments):
        raise ConfigError(
            f"a name stands for one job, and {known.key!r} is {known.id}: {known.order.pipeline} "
            f"{' '.join(known.order.arguments)}; take another name, or the same overrides"
        )


def _note(connection: sqlite3.Connection, job_id: str, state: str, text: str) -> None:
    connection.execute(
        "INSERT INTO events (job, time, state, text) VALUES (?, ?, ?, ?)", (job_id, time.time(), state, text)
    )


def _new_id(pipeline: str) -> str:
    return f"{pipeline}-{''.join(secrets.choice(LETTERS) for _ in range(5))}"


def _hint(job_id: str, known: list[str]) -> str:
    hint = nearest(job_id, known)
    return hint if hint.startswith("did you") or len(known) <= 8 else "neurofleet jobs lists them"
