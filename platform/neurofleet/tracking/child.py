"""The tracking child: `python -m neurofleet.tracking`, started by `Tracker`, spoken to in JSON lines.

It reads its order from stdin, makes (or finds) the MLflow run, answers on stdout, then tails the spool file that it
is told about.  stdin closing, or the parent process changing, means that the training process is dead.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from neurofleet import errors
from neurofleet.errors import NeurofleetError, UnreachableError, UserError
from neurofleet.tracking import records
from neurofleet.tracking.opening import SETTINGS, create_run, find_run
from neurofleet.tracking.store import (
    artifact_root,
    censored,
    check_reachable,
    prepare_store,
    shown,
    sqlite_file,
    store_uri,
)

SHIP_SECONDS = 1.0
SYSTEM_SECONDS = 5.0
PATIENCE_SECONDS = 30.0
"""how long `Tracker.finish` waits for a server that is away"""
ORPHAN_PATIENCE_SECONDS = 600.0
"""how long a child whose training process died waits for one"""
LATER = "to deliver when it is back: neurofleet runs sync (the next tracked run does so, too)"


class Child:
    def __init__(self, order: dict[str, Any]) -> None:
        self.order = order
        self.run_id: str = order["run_id"] or ""
        self.client: Any = None
        self.delivery: Any = None
        self.inbox = b""
        self.alive = True  # the training process
        self.finishing = False
        self.swept = False
        self.unseen = False  # whether a run that goes on was not looked up yet, since the server is away

    # start

    def start(self) -> dict[str, Any]:
        """Make or find the run; the answer for the training process."""
        uri = self.order["uri"]
        try:
            check_reachable(uri)
        except UnreachableError:
            if not uri.startswith("http") or self.order.get("known", {}).get("uri") != uri:
                raise
            self.unseen = True  # a restart does not have to wait for MLflow
            self.connect()
            return dict(self.order["known"])
        prepare_store(uri)
        self.connect()
        from mlflow.exceptions import MlflowException

        try:
            run = find_run(self.client, self.order) if self.run_id else create_run(self.client, self.order)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                raise UserError(
                    f"there is no run {self.run_id!r} at {shown(uri)}; list them with: mlflow runs list"
                ) from error
            raise UnreachableError(
                f"MLflow at {shown(uri)} could not take a run: {censored(str(error), uri)}"
            ) from error
        self.run_id = run.info.run_id
        experiment = self.client.get_experiment(run.info.experiment_id).name
        return {"run_id": self.run_id, "experiment_id": run.info.experiment_id, "experiment": experiment}

    def connect(self) -> None:
        from mlflow import MlflowClient

        self.client = MlflowClient(self.order["uri"], self.order["uri"])

    # the middle

    def follow(self) -> None:
        """Ship the spool until the training process says that it is finished, or is found dead."""
        from neurofleet.tracking.system import SystemSampler

        prefix = "system/" if self.order["own"] else "system/worker/"
        sampler = SystemSampler(self.order["owner"], prefix)
        began = time.time()
        next_sample, failures = 0.0, 0
        while self.alive and not self.finishing:
            if self.delivery is not None:
                if self.order.get("sample", True) and time.monotonic() >= next_sample:
                    self._sample(sampler, int(time.time() - began))
                    next_sample = time.monotonic() + SYSTEM_SECONDS
                worked = self._attempt(self._ship)
                if worked and not self.swept:
                    self._sweep()
                failures = 0 if worked else failures + 1
            self.listen(min(SHIP_SECONDS * 2**failures, 8.0))

    def _ship(self) -> None:
        if self.unseen:
            find_run(self.client, self.order)
            self.unseen = False
        self.delivery.ship()

    def _sample(self, sampler: Any, step: int) -> None:
        """Append a sample to the spool, one write like the training process's own, so that it takes the same way."""
        now = int(time.time() * 1000)
        with open(self.delivery.spool, "ab", buffering=0) as spool:
            spool.write(records.encode_rows([(step, float("nan"), sampler.sample())], now, now))

    def _sweep(self) -> None:
        """Finish what dead processes left of the runs here."""
        from neurofleet.tracking.orphans import sweep

        sweep(self.client, self.delivery.spool.parents[2].glob("*/tracking/*.jsonl"))
        self.swept = True

    def listen(self, seconds: float) -> None:
        """Wait for a message of the training process, or its death."""
        ready, _, _ = select.select([0], [], [], seconds)
        if not ready:  # processes forked by the training process may hold the other end of stdin open
            self.alive = os.getppid() == self.order["owner"]
            return
        received = os.read(0, 1 << 16)
        self.alive = bool(received)
        self.inbox += received
        *lines, self.inbox = self.inbox.split(b"\n")
        for line in lines:
            self.obey(records.decode(line))

    def obey(self, message: dict[str, Any]) -> None:
        if "spool" in message:
            self.take(Path(message["spool"]))
        self.finishing = self.finishing or bool(message.get("finish"))

    def take(self, spool: Path) -> None:
        from neurofleet.tracking.delivery import Delivery

        log = os.open(spool.with_name("child.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 2)
        self.delivery = Delivery(self.client, self.run_id, spool)
        if not self.delivery.lock():
            raise RuntimeError(f"another process delivers {spool}")

    # the end

    def conclude(self) -> dict[str, Any]:
        """Deliver the rest, set the run's status, say how it went."""
        patience = PATIENCE_SECONDS if self.alive else ORPHAN_PATIENCE_SECONDS
        if self.delivery is not None and not self._insist(self._ship, patience):
            return {
                "error": UnreachableError.__name__,
                "message": (
                    f"MLflow at {shown(self.order['uri'])} has not answered for {patience:.0f} s; the records of run "
                    f"{self.run_id} wait in {self.delivery.spool}; {LATER}"
                ),
            }
        if not self._insist(self._end, patience):
            return {
                "error": UnreachableError.__name__,
                "message": (
                    f"MLflow at {shown(self.order['uri'])} went away before the end of run {self.run_id} was set; "
                    f"it still shows as RUNNING; {LATER}"
                ),
            }
        if self.order["own"] and self.delivery is not None and not self.swept:
            self._sweep()
        if self.delivery is not None and self.delivery.refused:
            return {
                "error": errors.RunError.__name__,
                "message": f"MLflow refused some records of run {self.run_id}: " + "; ".join(self.delivery.refused),
            }
        return {"finished": self.run_id}

    def _end(self) -> None:
        from neurofleet.tracking.orphans import deliver_orphan, end_run

        if self.delivery is None:
            end_run(self.client, self.run_id, None)
            return
        if self.order["own"]:
            for spool in sorted(self.delivery.spool.parent.glob("*.jsonl")):
                deliver_orphan(self.client, spool)
            end_run(self.client, self.run_id, self.delivery.end)
        self.delivery.concluded = True
        self.delivery.save()

    def _insist(self, action: Callable[[], Any], patience: float) -> bool:
        """Repeat until it works; False after `patience` seconds."""
        deadline, pause = time.monotonic() + patience, 0.2
        while not self._attempt(action):
            if time.monotonic() > deadline:
                return False
            time.sleep(pause)
            pause = min(pause * 1.5, 3.0)
        return True

    def _attempt(self, action: Callable[[], Any]) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            action()
        except (MlflowException, OSError, sqlite3.Error) as error:
            reason = f"{type(error).__name__}: {censored(str(error), self.order['uri'])[:500]}"
            print(f"{time.strftime('%F %T')} will try again: {reason}", file=sys.stderr, flush=True)
            return False
        return True


def say(message: dict[str, Any], channel: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # the training process died
        os.write(channel, records.encode(message))


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # whoever ends the training process: this one ends after it
        signal.signal(number, signal.SIG_IGN)
    channel = os.dup(1)
    os.dup2(2, 1)  # nothing but answers goes to the training process
    os.environ.update({name: os.environ.get(name, value) for name, value in SETTINGS.items()})
    import mlflow  # noqa: F401  (2 to 3 s; the order may not be known yet)

    if not store_uri().startswith("http"):
        open_ahead(store_uri())

    order = json.loads(read_line())
    os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"] = order["artifact_root"]
    child = Child(order)
    if "spool" in order:
        child.connect()
        child.take(Path(order["spool"]))
    else:
        try:
            answer = child.start()
        except NeurofleetError as error:
            say({"error": type(error).__name__, "message": str(error)}, channel)
            os._exit(error.exit_code)
        say(answer, channel)
    gc.freeze()  # else every few thousand records it looks through all that MLflow imported, for 0.1 s of CPU
    os.nice(10)  # whoever trains on these cores comes first
    child.follow()
    say(child.conclude(), channel)
    sys.stderr.flush()
    os._exit(0)  # the interpreter's own end takes another 0.2 s, and the training process waits


def open_ahead(uri: str) -> None:
    """What opening a database takes, ahead of the run that waits for it: a second of imports, and 0.1 s to look at its
    tables where it exists already.  What is wrong with it shows when a run is made."""
    import mlflow.store.tracking.sqlalchemy_store
    from mlflow.exceptions import MlflowException

    database = sqlite_file(uri)
    if database is not None and database.is_file() and database.stat().st_size > 0:
        os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"] = str(artifact_root())
        with contextlib.suppress(MlflowException):
            mlflow.MlflowClient(uri, uri).get_experiment("0")


def read_line() -> bytes:
    """One line of stdin, byte by byte: what follows belongs to `listen`."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            os._exit(1)
        line += byte
    return line
