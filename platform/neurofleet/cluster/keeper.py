"""The keeper: one small process beside Ray and MLflow that starts what waits in the ledger, and says how it ended.

`neurofleet up` starts it.  All that it knows is in the ledger, so that it may die at any moment, and Ray too: what ran
on a head that is gone is cut, waits, and goes on when there is a head again.  It logs to home()/logs/keeper.log.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any

from neurofleet import paths
from neurofleet.cluster import attempts, causes, ledger, logs, webhook
from neurofleet.cluster.engine import Engine, Seen
from neurofleet.cluster.job import ENDS, FAILED, RUNNING, STOPPED, SUCCEEDED, TIMED_OUT, Job, Order, folder
from neurofleet.cluster.ledger import Ledger
from neurofleet.cluster.retries import Decision, decide
from neurofleet.errors import UnreachableError

PAUSE = 0.25  # seconds between two looks
CAPACITY_SECONDS = 15.0  # for which what the cluster has is believed
PATIENCE = 2.0  # seconds that the head's door may be closed before the head is dead
IDLE = 10.0  # seconds after which one that nobody needs any more goes, unless a platform keeps it


class Keeper:
    def __init__(self, book: Ledger) -> None:
        self.book = book
        self._engines: dict[str, Engine] = {}
        self._capacity: tuple[float, dict[str, float] | None] = (0.0, None)
        self._gone_since: dict[str, float] = {}
        self._stopped: set[str] = set()
        self._oom_kills: dict[str, int] = {}
        self._settling: dict[str, subprocess.Popen[bytes]] = {}
        self._said: set[str] = set()

    def engine(self, address: str) -> Engine:
        return self._engines.setdefault(address, Engine(address))

    def turn(self) -> bool:
        """Look once at everything; whether there is anything that will need another look."""
        running = self.book.jobs(RUNNING)
        for job in running:
            with self._unharmed():
                self.watch(job)
        for job in self.book.unconcluded():
            with self._unharmed():
                self.conclude(job)
        for job_id in [job_id for job_id, settling in self._settling.items() if settling.poll() is not None]:
            if self._settling.pop(job_id).returncode:
                say(f"{job_id}: MLflow could not be told how it ended")
        waiting = self.book.queue()
        if waiting:
            with self._unharmed():
                self.start_what_fits(waiting)
        return bool(running or waiting or self._settling)

    @contextlib.contextmanager
    def _unharmed(self) -> Iterator[None]:
        """A cluster that does not answer is asked again in the next turn; what one job makes go wrong is its own."""
        try:
            yield
        except UnreachableError as error:
            self._say_once(str(error))
        except Exception:  # noqa: BLE001
            self._say_once(traceback.format_exc())

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            say(text)

    # Starting.

    def start_what_fits(self, queue: list[Job]) -> None:
        """First come first served within a priority: what does not fit yet is not overtaken, what never can is."""
        free: dict[str, dict[str, float] | None] = {}
        for job in queue:
            address = job.order.address
            if job.not_before > time.time() or job.id in self._settling or self.engine(address).is_gone():
                continue
            if address not in free:
                free[address] = self._free(address)
            room, wants = free[address], {"CPU": job.order.cpus, "GPU": job.order.gpus}
            if room is None:
                self.start(job)
            elif self._never_fits(wants):
                self._say_once(f"{job.id} needs {wants}, and the cluster has {self._capacity[1]}; it waits")
            elif any(room[kind] < amount for kind, amount in wants.items()):
                break
            else:
                free[address] = {kind: room[kind] - amount for kind, amount in wants.items()}
                self.start(job)

    def _free(self, address: str) -> dict[str, float] | None:
        asked, has = self._capacity
        if address:
            return None
        if time.monotonic() - asked > CAPACITY_SECONDS or not has or not has["CPU"]:  # a head that starts has none yet
            has = self.engine("").capacity()
            self._capacity = (time.monotonic(), has)
        if has is None:
            return None
        running = [job.order for job in self.book.jobs(RUNNING) if not job.order.address]
        taken = {"CPU": sum(one.cpus for one in running), "GPU": sum(one.gpus for one in running)}
        return {kind: has[kind] - taken[kind] for kind in taken}

    def _never_fits(self, wants: dict[str, float]) -> bool:
        has = self._capacity[1] or {}
        return has.get("CPU", 0.0) > 0 and any(has.get(kind, 0.0) < amount for kind, amount in wants.items())

    def start(self, job: Job) -> None:
        engine = self.engine(job.order.address)
        engine.client()  # whoever does not answer costs no attempt
        begun = self.book.begin(job)
        if begun is None:
            return
        order, place = begun.order, folder(job.id)
        place.mkdir(parents=True, exist_ok=True)
        log = logs.path(job.id)
        log.touch(mode=0o600)
        if begun.attempts > 1:
            logs.part(job.id, begun.attempts, job.cause.get("text", "once more"))
        self._oom_kills[job.id] = causes.num_oom_kills()
        say(f"{begun.submission}: {typed(order)}")
        engine.start(
            begun.submission,
            attempts.entrypoint(begun),
            attempts.environment(begun),
            order.own_cpus,
            order.own_gpus,
            typed(order),
        )

    # Watching.

    def watch(self, job: Job) -> None:
        engine = self.engine(job.order.address)
        if engine.is_gone():
            since = self._gone_since.setdefault(job.id, time.monotonic())
            if time.monotonic() - since > PATIENCE:
                self.finish(job, Seen("UNKNOWN", message="the cluster's head is gone"))
            return
        self._gone_since.pop(job.id, None)
        seen = engine.look(job.submission)
        if seen.has_ended:
            self.finish(job, seen)
        elif (job.stop_asked or self._is_late(job)) and job.submission not in self._stopped:
            self._stopped.add(job.submission)
            if not job.stop_asked:
                self.book.note(job, "its time is up: asked to stop")
            engine.stop(job.submission)

    def _is_late(self, job: Job) -> bool:
        limit = job.order.time_limit
        return limit is not None and self.book.seconds_run(job) >= limit

    def finish(self, job: Job, seen: Seen) -> None:
        """The attempt is over: what becomes of the job."""
        self._gone_since.pop(job.id, None)
        last = logs.last_progress(job.id)
        progress = None if last is None else last.line()
        late = self._is_late(job)  # before what is left of it takes its time to end
        if seen.status != "SUCCEEDED":
            attempts.end_leftovers(job.submission)
            seen = _corrected(job, seen)
        if seen.status == "SUCCEEDED":
            self.book.close(job, SUCCEEDED, {"exit_code": 0}, progress=progress)
            say(f"{job.submission}: {SUCCEEDED}")
            return
        cause = self._cause(job, seen)
        if job.stop_asked or seen.status == "STOPPED":
            decision = Decision(STOPPED, "")
        else:
            decision = decide([*self.book.causes(job), cause.to_dict()])
        if late and not job.stop_asked and (decision.state == STOPPED or decision.state not in ENDS):
            cause = causes.timed_out(cause, job.order)
            decision = Decision(TIMED_OUT, cause.text)
        state, text = decision.state, decision.text
        self.book.close(job, state, cause.to_dict(), text=text, delay=decision.delay, progress=progress)
        say(f"{job.submission}: {state} {cause.kind}: {text or cause.text}")

    def _cause(self, job: Job, seen: Seen) -> causes.Cause:
        before = self._oom_kills.pop(job.id, None)
        return causes.classify(
            said=causes.read_outcome(attempts.outcome(job)),
            exit_code=seen.exit_code,
            message=seen.message,
            log=logs.last_attempt(job.id),
            step=None if job.order.run_id is None else causes.checkpoint_step(paths.run(job.order.run_id)),
            oom_kill=before is not None and causes.num_oom_kills() > before,
        )

    # Ends.

    def conclude(self, job: Job) -> None:
        """Tell whoever wants to know, and see that none of its runs stays RUNNING."""
        if job.state != SUCCEEDED and (run_ids := runs_of(job)):
            status = "FAILED" if job.state == FAILED else "KILLED"
            command = [sys.executable, "-m", "neurofleet.tracking.settle", status, *run_ids]
            environment = os.environ | job.order.environment
            self._settling[job.id] = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
        webhook.notify(job)
        self.book.conclude(job)


def _corrected(job: Job, seen: Seen) -> Seen:
    """What Ray has seen of an attempt, with the exit code that its shell left where Ray knows none."""
    code = attempts.exit_code(job) if seen.exit_code is None else None
    if code is None:
        return seen
    status = "STOPPED" if seen.status == "STOPPED" else "SUCCEEDED" if code == 0 else "FAILED"
    return Seen(status, code, seen.message)


def runs_of(job: Job) -> list[str]:
    """The MLflow runs that its attempts opened."""
    try:
        opened = (folder(job.id) / "runs.txt").read_text().split()
    except FileNotFoundError:
        opened = []
    return list(dict.fromkeys([*filter(None, [job.order.run_id]), *opened]))


def cut(text: str) -> list[Job]:
    """The platform has gone down: what ran on it waits for the next one.  Returns what waits."""
    with Ledger() as book:
        keeper = Keeper(book)
        for job in book.jobs(RUNNING):
            if not job.order.address:
                keeper.finish(job, Seen("UNKNOWN", message=text))
        return [job for job in book.queue() if not job.order.address]


def typed(order: Order) -> str:
    return shlex.join([order.pipeline, *order.arguments])


def say(text: str) -> None:
    print(f"{time.strftime('%F %T')} {text}", flush=True)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """One keeper for one home; another waits."""
    with _lock().open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def is_kept() -> bool:
    """Whether a keeper is at work for this home."""
    try:
        with _lock().open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


def _lock() -> Any:
    return paths.home() / ".keeper.lock"


def main(*, until_idle: bool) -> None:
    with alone(), Ledger() as book:
        keeper = Keeper(book)
        keeper.engine("").warm_up()
        say(f"keeping {ledger.location()}")
        busy_at = time.monotonic()
        while not until_idle or time.monotonic() - busy_at < IDLE:
            try:
                if keeper.turn():
                    busy_at = time.monotonic()
            except Exception:  # noqa: BLE001 -- whatever one job makes go wrong, the others need a keeper
                say(traceback.format_exc())
                time.sleep(PAUSE * 20)
            time.sleep(PAUSE)
