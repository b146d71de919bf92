"""Jobs as who submits them sees them: they go into the ledger, where the keeper finds them; their log is shown here.

The project folder is used in place (a cluster's machines see the same disk), the attempts' working directory is the
project, and the platform's environment goes along.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator

from neurofleet import paths, progress
from neurofleet.cluster import logs, state
from neurofleet.cluster import platform as platforms
from neurofleet.cluster.engine import Engine
from neurofleet.cluster.job import ENDS, RUNNING, SUCCEEDED, Job, Order
from neurofleet.cluster.keeper import is_kept
from neurofleet.cluster.ledger import Ledger
from neurofleet.errors import RunError, UnreachableError

PAUSE = 0.2  # seconds between two looks at a log
WAITING_SAID = 2.0  # seconds after which a job that waits is said to wait
PATIENCE = 10.0  # seconds without a keeper before somebody who follows a job gives up


def address() -> str:
    """The cluster that the environment names; empty for the platform's own.

    Raises:
        UnreachableError: it does not answer, or no platform is up.
    """
    named = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or ""
    if named:
        Engine(named).client()
        return named
    platform = state.load()
    if platform is None or not platforms.is_up(platform, "ray"):
        raise UnreachableError("submit needs a running platform, and none is up here; start it with: neurofleet up")
    return ""


@contextlib.contextmanager
def naming(key: str | None) -> Iterator[Job | None]:
    """One submission under a name at a time; yields the job that has the name already."""
    if key is None:
        yield None
        return
    place = paths.home() / "jobs"
    place.mkdir(parents=True, exist_ok=True)
    with open(place / f".{hashlib.sha256(key.encode()).hexdigest()[:16]}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with Ledger() as book:
            yield book.named(key)


def submit(order: Order, *, key: str | None = None, priority: int = 0) -> Job:
    """Put an order into the ledger, durably, and see that somebody keeps it."""
    with Ledger() as book:
        job, _ = book.submit(order, key=key, priority=priority)
    if order.address and not is_kept():
        _start_keeper()
    return job


def _start_keeper() -> None:
    """For a cluster that no `up` started here: it goes when nothing waits or runs any more."""
    log = paths.home() / "logs" / "keeper.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as words:
        subprocess.Popen(
            [sys.executable, "-m", "neurofleet.cluster", "--until-idle"],
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=words,
            start_new_session=True,
        )


def find(job_id: str) -> Job:
    """Raises ConfigError where there is none."""
    with Ledger() as book:
        return book.find(job_id)


def stop(job_id: str) -> Job:
    """Ask a job to end in good order: SIGTERM, a checkpoint, its run KILLED."""
    with Ledger() as book:
        return book.ask_stop(book.find(job_id))


def retry(job_id: str) -> Job:
    """The same run goes on from its last checkpoint, with a fresh budget of retries."""
    with Ledger() as book:
        job = book.retry(book.find(job_id))
    if job.order.address and not is_kept():
        _start_keeper()
    return job


def follow(job_id: str) -> int:
    """Show a job's log from its beginning, its progress as a bar, until it ends; returns its exit code."""
    job = find(job_id)
    try:
        for line in _lines(job):
            print(line, flush=True)
    except KeyboardInterrupt:
        print(f"\ndetached; the job goes on. See it again with: {_again(job.id)}", flush=True)
        print(f"To end it: neurofleet jobs stop {job.id}", flush=True)
        return 130
    return exit_code(find(job.id))


def exit_code(job: Job) -> int:
    """What the pipeline ended with; says so unless that is 0."""
    if job.state == SUCCEEDED:
        return 0
    code = job.exit_code if job.exit_code is not None and job.exit_code > 0 else 1
    print(f"job {job.id} {job.state.lower().replace('_', ' ')}" + (f" with exit code {code}" if job.exit_code else ""))
    print(f"why, and what to do: neurofleet jobs show {job.id}", flush=True)
    return code


def show_log(job_id: str) -> None:
    """Print what a job wrote so far, without its lines of progress."""
    job = find(job_id)
    with contextlib.suppress(FileNotFoundError), logs.path(job.id).open(errors="replace") as log:
        for line in log:
            if progress.parse(line) is None:
                print(line, end="", flush=True)


def log(job_id: str) -> dict[str, object]:
    """What a job wrote so far, as plain values."""
    job = find(job_id)
    path = logs.path(job.id)
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return {"id": job.id, "log": str(path), "lines": lines}


def _lines(job: Job) -> Iterator[str]:
    """The job's log, line by line, until it ends; progress moves a bar instead."""
    bar: progress.Bar | None = None
    path, position, rest = logs.path(job.id), 0, ""
    watch = _Watch(job)
    try:
        while True:
            ended = watch.has_ended()  # before the last look at the log
            if path.exists():
                with path.open("rb") as log:
                    log.seek(position)
                    piece = log.read()
                position += len(piece)
                *lines, rest = (rest + piece.decode(errors="replace")).replace("\r\n", "\n").split("\n")
                for line in lines:
                    seen = progress.parse(line)
                    if seen is None:
                        yield line
                        continue
                    if bar is None:
                        bar = progress.Bar("training")
                        bar.__enter__()
                    bar.update(seen)
            if ended:
                break
            time.sleep(PAUSE)
        if rest:
            yield rest
    finally:
        if bar is not None:
            bar.__exit__(None, None, None)
        watch.book.__exit__()


class _Watch:
    """Looks whether a job has ended, whether it waits, and whether anybody takes care of it."""

    def __init__(self, job: Job) -> None:
        self.book = Ledger()
        self.job = job
        self.began = self.kept_at = time.monotonic()
        self.said = ""

    def has_ended(self) -> bool:
        job = self.job = self.book.find(self.job.id)
        if job.state in ENDS:
            return True
        now = time.monotonic()
        if is_kept():
            self.kept_at = now
        elif now - self.kept_at > PATIENCE:
            raise RunError(
                f"nobody takes care of job {job.id}, which is {job.state}: the platform is down; it goes on after "
                f"`neurofleet up`, and is seen again with: {_again(job.id)}"
            )
        if job.state != RUNNING and now - self.began > WAITING_SAID and self.said != job.state:
            self.said = job.state
            print(self._why(), flush=True)
        elif job.state == RUNNING:
            self.said, self.began = "", now
        return False

    def _why(self) -> str:
        running = [one.id for one in self.book.jobs(RUNNING)]
        ahead = [one.id for one in self.book.queue()]
        place = ahead.index(self.job.id) if self.job.id in ahead else 0
        return f"{self.job.id} waits; running: {', '.join(running) or 'none'}; before it in the queue: {place}"


def _again(job_id: str) -> str:
    return f"neurofleet jobs logs -f {job_id}"


def entry(arguments: list[str]) -> list[str]:
    """The command of an attempt that is a verb of this command line."""
    return [sys.executable, "-m", "neurofleet.cli", *arguments]


def describe(job: Job) -> str:
    return f"{job.id}: {shlex.join([job.order.pipeline, *job.order.arguments])}"
