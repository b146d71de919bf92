"""What a job prints: one file for all its attempts, in the job's folder, so that it is there when Ray is not."""

from __future__ import annotations

from pathlib import Path

from neurofleet import progress
from neurofleet.cluster.job import folder
from neurofleet.progress import Progress

ATTEMPT = "=== attempt "  # begins the line that parts two attempts
END = 1 << 17  # bytes


def path(job_id: str) -> Path:
    return folder(job_id) / "log.txt"


def end(job_id: str) -> str:
    """The last of what a job printed."""
    try:
        with path(job_id).open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - END))
            return file.read().decode(errors="replace").replace("\r\n", "\n")
    except FileNotFoundError:
        return ""


def last_attempt(job_id: str) -> str:
    """Of that, what came from the last attempt."""
    printed = end(job_id)
    return printed.rpartition(ATTEMPT)[2].partition("\n")[2] if ATTEMPT in printed else printed


def last_lines(job_id: str, count: int) -> list[str]:
    """Without the lines of progress."""
    lines = [line for line in end(job_id).splitlines() if line.strip() and progress.parse(line) is None]
    return lines[-count:]


def last_progress(job_id: str) -> Progress | None:
    for line in reversed(end(job_id).splitlines()):
        if (seen := progress.parse(line)) is not None:
            return seen
    return None


def part(job_id: str, number: int, words: str) -> None:
    """Write the line that begins another attempt."""
    before = end(job_id)
    with path(job_id).open("a") as file:
        cut = "\n" if before and not before.endswith("\n") else ""  # in the middle of a line
        file.write(f"{cut}{ATTEMPT}{number}: {words} ===\n")
