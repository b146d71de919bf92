"""Causes: what an attempt of a job died of, from what it said itself, its exit code, and what Ray saw of it.

kind         what it means                                          then (neurofleet.cluster.retries)
user         the caller can mend it (exit code 2)                   FAILED at once
error        the run raised                                         tried again, unless it is the same error again
memory       a process was killed for memory, or could get none     tried again, few times
unreachable  a server did not answer                                tried again, later each time
preempted    SIGTERM: the machine wants its place back              goes on, as often as it takes
lost         a process, worker, node or the cluster's head is gone  goes on, as often as it takes
time         it ran as long as `submit --time-limit` lets it        TIMED_OUT
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from neurofleet import paths
from neurofleet.cluster.job import Order

USER, ERROR, MEMORY, UNREACHABLE = "user", "error", "memory", "unreachable"
PREEMPTED, LOST, TIME = "preempted", "lost", "time"
OUT_OF_MEMORY = re.compile(r"OutOfMemory|MemoryError|out of memory|Cannot allocate memory", re.IGNORECASE)
# What workers say of a partner that is gone.
PARTNER_LOST = re.compile(r"[Cc]onnection (reset|closed) by peer|remote process exited")
SIGTERM, SIGKILL = 15, 9
ADVICE = {
    USER: "mend what the message names, and submit again",
    ERROR: "mend what the traceback names; to go on from the last checkpoint: neurofleet jobs retry {id}",
    MEMORY: "lower data.batch_size or the size of the network, or take a machine with more memory",
    UNREACHABLE: "see that the server runs (neurofleet status), then: neurofleet jobs retry {id}",
    PREEMPTED: "neurofleet jobs retry {id} goes on from the last checkpoint",
    TIME: "to go on from the last checkpoint for as long again: neurofleet jobs retry {id}",
    LOST: "see the machine's log for what killed it, then: neurofleet jobs retry {id}",
}


@dataclasses.dataclass(frozen=True)
class Cause:
    """kind: one of those above; place: where in the code; step: of the last checkpoint; by: which worker raised it."""

    kind: str
    text: str
    error: str = ""
    place: str = ""
    step: int | None = None
    exit_code: int | None = None
    by: str = ""
    traceback: str = ""

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def classify(
    *, said: dict[str, Any] | None, exit_code: int | None, message: str, log: str, step: int | None, oom_kill: bool
) -> Cause:
    """What an attempt died of.

    said:      its outcome.json (see `errors.exit_on_error`), or None if it could not leave one
    exit_code: as Ray tells it, negative for a signal; None where Ray does not know
    message:   Ray's words, where it has no exit code
    log:       the end of what the attempt printed
    step:      of the last checkpoint
    oom_kill:  whether the system killed a process for memory meanwhile
    """
    if said is not None:
        told = _said(said, step)
        return dataclasses.replace(told, kind=MEMORY) if oom_kill and told.kind == LOST else told
    code = None if exit_code is None else -exit_code if exit_code < 0 else exit_code - 128 if exit_code > 128 else 0
    shell_code = exit_code if exit_code is None or exit_code >= 0 else 128 - exit_code
    if oom_kill and (code == SIGKILL or exit_code is None):
        return Cause(MEMORY, "the system killed it for memory", step=step, exit_code=shell_code)
    if exit_code is None:
        return Cause(LOST, message, step=step)
    if code == SIGTERM:
        return Cause(PREEMPTED, "SIGTERM, before it could save anything", step=step, exit_code=shell_code)
    if code:
        return Cause(LOST, f"its process was killed by signal {code}", step=step, exit_code=shell_code)
    found = last_traceback(log)
    text = (found.splitlines() or log.strip().splitlines() or [f"exit code {exit_code}"])[-1]
    if exit_code == 2:
        return Cause(USER, text, step=step, exit_code=2)
    kind = MEMORY if OUT_OF_MEMORY.search(text) else ERROR
    own = users_frames(found)
    return Cause(kind, text, text.partition(":")[0], _place(own), step, exit_code, traceback=own)


def _said(said: dict[str, Any], step: int | None) -> Cause:
    error, text, raw = str(said["error"]), str(said["message"]), str(said["traceback"])
    own = users_frames(raw)
    kind = ERROR
    if error == "LostWorkerError" or (error == "WorkerError" and PARTNER_LOST.search(text)):
        kind = LOST
    elif error in ("StoppedError", "KeyboardInterrupt"):
        kind = PREEMPTED
    elif error == "UnreachableError":
        kind = UNREACHABLE
    elif said["exit_code"] == 2:
        kind = USER
    if kind in (ERROR, LOST) and OUT_OF_MEMORY.search(f"{error} {text}"):
        kind = MEMORY
    place = f"step {said['step']}" if said["step"] is not None else _place(own)
    return Cause(kind, text, error, place, step, said["exit_code"], str(said["raised_by"]), own)


def timed_out(cause: Cause, order: Order) -> Cause:
    """What an attempt died of that was ended because the job's time was up."""
    text = f"the time limit of {order.time_limit:g} s was reached"
    if order.run_id is not None:
        saved = "no checkpoint was saved" if cause.step is None else f"the last checkpoint is of step {cause.step}"
        text = f"{text}; {saved}"
    return dataclasses.replace(cause, kind=TIME, text=text, error="", place="", traceback="")


def last_traceback(log: str) -> str:
    """The last traceback that Python printed, without what follows it."""
    start = log.rfind("Traceback (most recent call last):")
    if start < 0:
        return ""
    lines = log[start:].splitlines()
    end = next((at for at, line in enumerate(lines[1:], 1) if line and not line.startswith((" ", "\t"))), len(lines))
    return "\n".join(lines[: end + 1])


FRAME = re.compile(r'^\s+File "(?P<file>[^"]+)", line (?P<line>\d+), in ')
FOREIGN = re.compile(r"/site-packages/|/lib/python\d|^<")


def users_frames(text: str) -> str:
    """A traceback without the frames of Python, third parties and this package; the innermost one if all are."""
    lines = text.strip().splitlines()
    starts = [at for at, line in enumerate(lines) if FRAME.match(line)]
    if not starts:
        return ""
    body = next((at for at in range(starts[-1] + 1, len(lines)) if not lines[at].startswith(" ")), len(lines))
    blocks = [lines[at:end] for at, end in zip(starts, [*starts[1:], body], strict=True)]
    kept = [block for block in blocks if not _is_foreign(_file(block[0]))] or blocks[-1:]
    return "\n".join([lines[0], *(line for block in kept for line in block), *lines[body:]])


def _is_foreign(file: str) -> bool:
    return bool(FOREIGN.search(file)) or file.startswith(f"{paths.PACKAGE}/")


def _file(line: str) -> str:
    found = FRAME.match(line)
    return "" if found is None else found["file"]


def _place(traceback: str) -> str:
    found = [match for line in traceback.splitlines() if (match := FRAME.match(line))]
    return f"{found[-1]['file']}:{found[-1]['line']}" if found else ""


def read_outcome(path: Path) -> dict[str, Any] | None:
    """What an attempt left, or None if it left nothing that can be read."""
    try:
        said = json.loads(path.read_text())
        return {name: said[name] for name in ("error", "message", "traceback", "exit_code", "step", "raised_by")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def num_oom_kills(process_cgroup: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """How many processes the system has killed for memory in this process's control group and those below it, as far
    as it tells.  Version 2 adds up by itself; version 1 counts each group alone."""
    try:
        groups = {
            name: path for _, name, path in (one.split(":", 2) for one in process_cgroup.read_text().splitlines())
        }
    except (OSError, ValueError):
        return 0
    files = [root / groups[""].lstrip("/") / "memory.events"] if "" in groups else []
    if "memory" in groups:
        files += (root / "memory" / groups["memory"].lstrip("/")).rglob("memory.oom_control")
    return sum(_oom_kills(file) for file in files)


def _oom_kills(file: Path) -> int:
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return 0
    return int(next((line.split()[1] for line in lines if line.startswith("oom_kill ")), 0))


def checkpoint_step(run_folder: Path) -> int | None:
    """The step of a run's newest checkpoint."""
    try:
        return int(json.loads((run_folder / "checkpoints" / "index.json").read_text())[-1]["step"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
