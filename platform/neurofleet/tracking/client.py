"""Tracker: the training process's side of tracking.  It imports nothing heavy and waits only where it must."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from neurofleet import errors, paths
from neurofleet.errors import RunError
from neurofleet.tracking import records, warm
from neurofleet.tracking.lineage import flatten
from neurofleet.tracking.store import artifact_root, store_uri

RUNS = "NEUROFLEET_RUNS"  # a file where a process that is a job notes the runs that it opens, for whoever ends them
CHECK_SECONDS = 5.0  # how often logging looks whether the child lives; a dead one is started again where it stopped
MAX_STARTS = 3
SCHEDULED = "SCHEDULED"  # MLflow's word for a run that was submitted and has not begun


def _milliseconds() -> int:
    return time.time_ns() // 1_000_000


def _check_status(status: str) -> None:
    if status not in ("FINISHED", "FAILED", "KILLED"):
        raise ValueError(f"a run ends FINISHED, FAILED or KILLED, got {status!r}")


class Tracker:
    """One process's line to one MLflow run; made by `start` (a new run), `resume` (the same run goes on) or `attach`.

    `start` and `resume` own the run's end: `finish` sets its status, and if this process dies the child sets FAILED.
    An attached tracker only adds to a run that another process owns.  No call but `run_id` and `finish` waits.
    """

    def __init__(self, order: dict[str, Any], folder_of: Callable[[str], Path] | None) -> None:
        self._order = {
            "uri": store_uri(),
            "artifact_root": str(artifact_root()),
            "run_id": None,
            "owner": os.getpid(),
            "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            **order,
        }
        self._folder_of = folder_of or paths.run
        if self._order["run_id"]:
            with contextlib.suppress(FileNotFoundError):
                about = (self._folder_of(self._order["run_id"]) / "tracking" / "run.json").read_text()
                self._order["known"] = json.loads(about)
        self._spool: int | None = None
        self._spool_path = Path()
        self._failure: OSError | None = None
        self._since = _milliseconds()
        self._num_starts = 0
        self._checked = self._since
        self._child: subprocess.Popen[bytes]
        self._finished = False
        self._spawn()

    @classmethod
    def start(
        cls,
        *,
        experiment: str,
        run_name: str,
        folder_of: Callable[[str], Path] | None = None,
        tags: Mapping[str, str],
        params: Mapping[str, Any],
    ) -> Tracker:
        """A new run.  Returns at once; the run is made while the caller imports what it needs."""
        return cls(
            {
                "experiment": experiment,
                "run_name": run_name,
                "tags": dict(tags),
                "own": True,
                "params": flatten(params),
            },
            folder_of,
        )

    @classmethod
    def resume(cls, run_id: str, *, folder_of: Callable[[str], Path] | None = None) -> Tracker:
        """The same run goes on: it is RUNNING again, and metrics that were delivered before are not sent twice.

        An MLflow server that is away holds up no run that was made before: what is logged waits on disk.
        """
        return cls({"run_id": run_id, "own": True, "reopen": True}, folder_of)

    @classmethod
    def schedule(cls, *, experiment: str, run_name: str, tags: Mapping[str, str], params: Mapping[str, Any]) -> str:
        """A new run that another process will begin, by `resume`; returns its id when all of it is in MLflow."""
        about = {"experiment": experiment, "run_name": run_name, "tags": dict(tags), "params": flatten(params)}
        tracker = cls(about | {"own": True, "sample": False}, None)
        tracker._conclude(SCHEDULED)
        return tracker.run_id

    @classmethod
    def attach(cls, run_id: str, *, folder_of: Callable[[str], Path] | None = None) -> Tracker:
        """Log to a run that another process owns (rank 0 of a group of workers)."""
        return cls({"run_id": run_id, "own": False}, folder_of)

    @property
    def run_id(self) -> str:
        """The MLflow run id; waits for the child's first answer.  Raises UnreachableError where there is no MLflow."""
        self._open()
        return str(self._order["run_id"])

    def log_metrics(self, step: int, epoch: float, metrics: Mapping[str, float]) -> None:
        self.log_many([(step, epoch, metrics)])

    def log_many(self, rows: Sequence[records.Row]) -> None:
        """Metrics of a chunk of steps, each (step, epoch, {name: value}); one write, about 0.7 us a metric."""
        self._open()
        now = _milliseconds()
        self._write(records.encode_rows(rows, self._since, now))
        if now - self._checked > CHECK_SECONDS * 1000:
            self._checked = now
            if self._child.poll() is not None and self._num_starts < MAX_STARTS:
                self._restart()
        self._since = now

    def log_params(self, params: Mapping[str, Any]) -> None:
        self._record({"params": flatten(params)})

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        self._record({"tags": {name: str(value) for name, value in tags.items()}})

    def log_dataset(self, name: str, digest: str, source: str, spec: Mapping[str, Any], num_rows: int) -> None:
        """The dataset as an input of the run; `spec` is `DataSpec.to_dict()`."""
        self._record(
            {"dataset": {"name": name, "digest": digest, "source": source, "spec": dict(spec), "num_rows": num_rows}}
        )

    def log_trial(self, trial: Mapping[str, Any]) -> None:
        """A trial of a study that is over, as a run below this one; one write.

        `trial` holds `number`, `name`, `status` (FINISHED, FAILED, KILLED), `start_time` and `end_time` (milliseconds),
        `params` (nested or flat), `tags`, and `points`, each (metric, value, step, milliseconds).  The number alone
        says which trial it is: one that is logged again, by this process or one that resumed, changes nothing.
        """
        _check_status(trial["status"])
        self._open()
        self._write(records.encode_trial({**trial, "params": flatten(trial["params"])}))

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """A file (or folder) of the run, as it is when the child comes to it: leave it where it is until `finish`."""
        self._record({"artifact": str(Path(path).resolve()), "folder": folder})

    def finish(self, status: str = "FINISHED") -> None:
        """Deliver everything, set the status (FINISHED, FAILED, KILLED; only by an owner) and end the child.

        A server that stays away for 30 s fails no training: the records wait on disk, a warning says
        `tracking=degraded`, and `neurofleet runs sync` or the next tracked run delivers them.  Raises RunError when
        MLflow refused a record or the disk did.  A second call does nothing.
        """
        _check_status(status)
        self._conclude(status)

    def _conclude(self, status: str) -> None:
        if self._finished:
            return
        self._record({"end": status if self._order["own"] else None})
        self._finished = True
        answer = self._ask_to_finish()
        assert self._spool is not None
        os.close(self._spool)
        if answer.get("error") == errors.UnreachableError.__name__:
            print(f"warning: tracking=degraded: {answer['message']}", file=sys.stderr, flush=True)
        elif "error" in answer:
            raise getattr(errors, answer["error"])(answer["message"])
        if self._failure:
            raise RunError(
                f"tracking could not write {self._spool_path}: {self._failure}; records are missing; "
                "make room on that disk"
            )

    # the child

    def _spawn(self) -> None:
        self._num_starts += 1
        self._checked = _milliseconds()
        self._child, self._noise = warm.take()
        self._tell(self._order)

    def _restart(self) -> None:
        """The child died: a new one goes on from the saved offset."""
        self._close_pipes()
        self._order["spool"] = str(self._spool_path)
        self._spawn()

    def _tell(self, message: Mapping[str, Any]) -> None:
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died: whoever waits for its answer finds out and says why
            self._child.stdin.write(records.encode(message))
            self._child.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        """The child's next answer; empty when it died without one."""
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        return records.decode(line) if line else {}

    def _open(self) -> None:
        """Wait for the run id, then open the spool in the run's folder."""
        if self._spool is not None:
            return
        answer = self._answer()
        if "run_id" not in answer:
            self._finished = True
            self._child.wait()
            self._noise.seek(0)
            noise = self._noise.read().decode(errors="replace")[-2000:]
            self._close_pipes()
            if "error" in answer:
                raise getattr(errors, answer["error"])(answer["message"])
            raise RunError(f"tracking could not start: its process died, saying\n{noise}")
        self._order["run_id"] = answer["run_id"]
        folder = self._folder_of(answer["run_id"]) / "tracking"
        folder.mkdir(parents=True, exist_ok=True)
        about = {name: answer[name] for name in ("run_id", "experiment_id", "experiment")} | {"uri": self._order["uri"]}
        (folder / "run.json").touch()
        (folder / "run.json").chmod(0o600)  # like the spool, it holds the address, which may hold a password
        (folder / "run.json").write_text(json.dumps(about) + "\n")
        self._spool_path = folder / f"{time.time_ns()}.jsonl"
        self._spool = os.open(self._spool_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        fcntl.flock(self._spool, fcntl.LOCK_EX)  # until this process is dead: see delivery.py
        if self._order["own"] and os.environ.get(RUNS):
            with open(os.environ[RUNS], "a") as opened:
                opened.write(f"{answer['run_id']}\n")
        self._record({"open": {name: self._order[name] for name in ("uri", "run_id", "own")}})
        if self._order.get("params"):
            self.log_params(self._order["params"])
        self._tell({"spool": str(self._spool_path)})

    def _record(self, record: Mapping[str, Any]) -> None:
        self._open()
        self._write(records.encode(record))

    def _write(self, line: bytes) -> None:
        """Append in one system call: what is written survives this process.  A full disk must not stop training."""
        assert self._spool is not None
        try:
            written = os.write(self._spool, line)
            if written != len(line):
                raise OSError(f"wrote {written} of {len(line)} bytes")
        except OSError as error:
            if self._failure is None:
                print(f"tracking cannot write {self._spool_path}: {error}; training goes on", file=sys.stderr)
            self._failure = self._failure or error

    def _ask_to_finish(self) -> dict[str, Any]:
        while True:
            self._tell({"finish": True})
            answer = self._answer()
            if answer:
                self._close_pipes()
                return answer
            if self._num_starts == MAX_STARTS:
                self._close_pipes()
                return {
                    "error": RunError.__name__,
                    "message": (
                        f"tracking's process died {MAX_STARTS} times; what it said is in "
                        f"{self._spool_path.parent / 'child.log'}, the records that wait are in {self._spool_path}; "
                        "the next tracked run delivers them"
                    ),
                }
            self._restart()

    def _close_pipes(self) -> None:
        for pipe in (self._child.stdin, self._child.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):  # unsent bytes for a child that is gone
                pipe.close()
        self._noise.close()
        self._child.wait()
