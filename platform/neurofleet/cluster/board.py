"""What `neurofleet jobs` shows: from the ledger and the logs alone, so that it is there after `down`."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from neurofleet import progress
from neurofleet.cluster import logs
from neurofleet.cluster.causes import ADVICE
from neurofleet.cluster.job import ENDS, FAILED, PREEMPTED, RUNNING, TIMED_OUT, Job
from neurofleet.cluster.keeper import runs_of
from neurofleet.cluster.ledger import Ledger
from neurofleet.progress import Progress

# Of a terminal.
COLOURS = {"SUCCEEDED": 32, "FAILED": 31, "RUNNING": 36, "STOPPED": 33, "PREEMPTED": 33, "TIMED_OUT": 31}
TITLES = ("id", "pipeline", "experiment", "state", "progress", "eta", "age", "run")
STATE, WIDEST = TITLES.index("state"), 48
SHOWN = 20  # ended jobs in the table, unless all are asked for
LOG_LINES = 12


def listing(*, every: bool) -> list[dict[str, Any]]:
    """The jobs, newest first: all that run or wait, and the last that ended (or `every` one)."""
    with Ledger() as book:
        jobs = book.jobs()[::-1]
    if not every:
        ended = [job for job in jobs if job.state in ENDS]
        left_out = {job.id for job in ended[SHOWN:]}
        jobs = [job for job in jobs if job.id not in left_out]
    return [row(job) for job in jobs]


def row(job: Job) -> dict[str, Any]:
    """One job as plain values; seconds since 1970, eta in seconds."""
    seen = _progress(job)
    run_id = next(iter(runs_of(job)), None)
    return {
        "id": job.id,
        "name": job.key,
        "pipeline": job.order.pipeline,
        "arguments": job.order.arguments,
        "experiment": job.order.what,
        "state": job.state,
        "priority": job.priority,
        "time_limit": job.order.time_limit,
        "attempts": job.attempts,
        "step": None if seen is None else seen.step,
        "num_steps": None if seen is None else seen.num_steps,
        "eta": seen.eta if seen is not None and job.state == RUNNING else None,
        "submitted": job.submitted,
        "started": job.started,
        "ended": job.ended,
        "exit_code": job.exit_code,
        "run_id": run_id,
        "run": _link(run_id),
    }


def details(job_id: str) -> dict[str, Any]:
    """All of one job: its row, its events, what it died of, the end of its log, and what to do."""
    with Ledger() as book:
        job = book.find(job_id)
        events, tried = book.events(job.id), book.causes(job)
    died = job.state in (FAILED, PREEMPTED, TIMED_OUT) and bool(job.cause)
    return row(job) | {
        "project": job.order.project,
        "log": str(logs.path(job.id)),
        "cause": job.cause if died else None,
        "attempts_ended": [cause["kind"] for cause in tried],
        "events": events,
        "last_lines": logs.last_lines(job.id, LOG_LINES),
        "next": _advice(job),
    }


def _advice(job: Job) -> str | None:
    if job.state in (FAILED, TIMED_OUT):
        return ADVICE[job.cause["kind"]].format(id=job.id)
    if job.state == "STOPPED":
        return f"to go on from the last checkpoint: neurofleet jobs retry {job.id}"
    return None


def _progress(job: Job) -> Progress | None:
    if job.state == RUNNING:
        return logs.last_progress(job.id)
    return None if job.progress is None else progress.parse(job.progress)


def _link(run_id: str | None) -> str | None:
    """The run's page, or how to find it; None where this machine has nothing of it."""
    if run_id is None:
        return None
    from neurofleet.tracking import ui_address

    with contextlib.suppress(OSError, ValueError, KeyError):
        return ui_address(run_id)
    return None


def print_listing(rows: Sequence[dict[str, Any]]) -> None:
    """A table by hand: a library's takes 1.6 s over a thousand rows, and this is typed often."""
    if not rows:
        print("there are no jobs yet; neurofleet submit train family=mlp data=digits")
        return
    lines = [TITLES, *(_cells(one) for one in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(TITLES))]
    colourful = sys.stdout.isatty()
    for line, one in zip(lines, [None, *rows], strict=True):
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        if colourful and one is not None:
            cells[STATE] = f"\x1b[{COLOURS.get(one['state'], 0)}m{cells[STATE]}\x1b[0m"
            if (link := one["run"] or "").startswith("http"):
                cells[-1] = f"\x1b]8;;{link}\x1b\\{cells[-1]}\x1b]8;;\x1b\\"
        print("  ".join(cells).rstrip())


def _cells(one: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"{one['id']} ({one['name']})" if one["name"] else one["id"],
        one["pipeline"],
        one["experiment"] if len(one["experiment"]) <= WIDEST else f"{one['experiment'][: WIDEST - 3]}...",
        one["state"],
        "" if one["step"] is None else f"{one['step']}/{one['num_steps']}",
        "" if one["eta"] is None else _span(one["eta"]),
        _span(time.time() - one["submitted"]),
        one["run_id"] or "",
    )


def print_details(job: dict[str, Any]) -> None:
    """Plain text, so that it can be pasted into a message."""
    lasted = "" if job["ended"] is None or job["started"] is None else f" after {_span(job['ended'] - job['started'])}"
    facts = {
        "job": job["id"] + (f" ({job['name']})" if job["name"] else ""),
        "command": " ".join([job["pipeline"], *job["arguments"]]),
        "experiment": job["experiment"],
        "state": f"{job['state']}{lasted}",
        "attempts": job["attempts"],
        "progress": "" if job["step"] is None else f"step {job['step']} of {job['num_steps']}",
        "run": job["run"],
        "log": job["log"],
    }
    for name, value in facts.items():
        if value not in (None, ""):
            print(f"{name:12} {value}")
    for event in job["events"]:
        when = time.strftime("%F %T", time.localtime(event["time"]))
        print(f"  {when}  {event['state']:10} {event['text'] or ''}".rstrip())
    cause = job["cause"]
    if cause and "kind" in cause:
        by = f", {cause['by']}" if cause["by"] else ""
        step = "" if cause["step"] is None else f", last checkpoint at step {cause['step']}"
        print(f"\n{'cause':12} {cause['kind']}{by}{step}\n{'':12} {_words(cause)}")
        if cause["traceback"]:
            print(f"\n{cause['traceback']}")
    if job["state"] in (FAILED, PREEMPTED, TIMED_OUT) and job["last_lines"]:
        print("\nlast lines of the log")
        print("\n".join(f"  {line}" for line in job["last_lines"]))
    if job["next"]:
        print(f"\n{'next':12} {job['next']}")


def _words(cause: dict[str, Any]) -> str:
    error, text = cause["error"], cause["text"]
    return text if not error or text.startswith(error) else f"{error}: {text}"


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def _span(seconds: float) -> str:
    seconds = int(seconds)
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit}{seconds % size // (size // 60 if unit != 'd' else 3600):02d}"
    return f"{seconds}s"
