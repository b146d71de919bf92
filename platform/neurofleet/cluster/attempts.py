"""An attempt of a job, as the system sees it: its command, its environment, and what may be left of it."""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path

import psutil

from neurofleet import errors
from neurofleet.cluster import logs
from neurofleet.cluster.job import Job, folder
from neurofleet.launch import runs
from neurofleet.tracking import RUNS

ATTEMPT = "NEUROFLEET_ATTEMPT"
"""in the environment of all its processes: its submission"""
GRACE = 15.0  # seconds for what is left of one, from SIGTERM to SIGKILL


def entrypoint(job: Job) -> str:
    """Its command for a shell, which leaves its exit code on disk: a head that dies just then knows none."""
    log, ended, project = (shlex.quote(str(one)) for one in (logs.path(job.id), _ended(job), job.order.project))
    # A signal is for the command; the trap is not inherited, and keeps the shell until the command has ended.
    command = f"trap : INT TERM; cd {project} && {shlex.join(job.order.command)} >> {log} 2>&1"
    return f"{command}; code=$?; echo $code > {ended}; exit $code"


def exit_code(job: Job) -> int | None:
    """Of the last attempt, as its shell left it; None where it died first."""
    try:
        return int(_ended(job).read_text())
    except (OSError, ValueError):
        return None


def _ended(job: Job) -> Path:
    return folder(job.id) / f"attempt-{job.attempts}.exit"


def environment(job: Job) -> dict[str, str]:
    own = {ATTEMPT: job.submission, errors.OUTCOME: str(outcome(job)), RUNS: str(folder(job.id) / "runs.txt")}
    return job.order.environment | own


def outcome(job: Job) -> Path:
    """Where the last attempt says what it died of."""
    return folder(job.id) / f"attempt-{job.attempts}.json"


def end_leftovers(submission: str) -> None:
    """End what still runs of an attempt that is over: two that write one run's checkpoints must never be."""
    found = [process for process in psutil.process_iter() if is_of(process, submission)]
    for process in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() == psutil.STATUS_STOPPED:  # it would hear of SIGTERM when it goes on
                process.kill()
            else:
                process.terminate()
    _, stubborn = psutil.wait_procs(found, timeout=GRACE)
    for process in stubborn:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(stubborn, timeout=GRACE)


def is_of(process: psutil.Process, submission: str) -> bool:
    """Whether it belongs to an attempt; a tracking process does not: it ends when it has delivered what there is."""
    try:
        ours = process.environ().get(ATTEMPT) == submission and runs(process)
        return ours and "neurofleet.tracking" not in process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
        return False
