"""Jobs: the same command that runs here runs on the cluster, through Ray Jobs, and its progress is drawn here.

The project folder is used in place (a local cluster sees the same disk), the job's working directory is the project,
and the platform's environment goes along.  Only this module knows Ray's job client.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from neurofleet import paths, progress
from neurofleet.cluster import platform as platforms
from neurofleet.cluster import state
from neurofleet.errors import ConfigError, RunError, UnreachableError
from neurofleet.launch import authentication, passed_on

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

# What Ray itself writes at the head of every log.
RAYS_OWN = re.compile(r"INFO job_manager\.py|^Running entrypoint for job ")
COMMAND = [sys.executable, "-m", "neurofleet.cli"]
PATIENCE = 20.0  # seconds that Ray may take from the end of a log to the end of its job


def submit(arguments: Sequence[str]) -> int:
    """Run `neurofleet ARGUMENTS` on the cluster and follow it; returns the exit code of the pipeline.

    Raises:
        UnreachableError: no platform is up, or RAY_ADDRESS does not answer.
    """
    client = _client()
    command = shlex.join([*COMMAND, *arguments])
    job_id = client.submit_job(
        entrypoint=f"cd {shlex.quote(str(paths.project()))} && exec {command}",
        runtime_env={"env_vars": passed_on()},
        metadata={"command": shlex.join(arguments)},
    )
    print(f"submitted {job_id}: {shlex.join(arguments)}", flush=True)
    return _follow(client, job_id)


def follow(job_id: str) -> int:
    """Show a job's log from its beginning, its progress as a bar, until it ends; returns its exit code."""
    client = _client()
    _need_job(client, job_id)
    return _follow(client, job_id)


def show_log(job_id: str) -> None:
    """Print what a job wrote so far."""
    client = _client()
    _need_job(client, job_id)
    lines = client.get_job_logs(job_id).splitlines()
    print("\n".join(line for line in lines if not RAYS_OWN.search(line)), flush=True)


def _need_job(client: JobSubmissionClient, job_id: str) -> None:
    try:
        client.get_job_info(job_id)
    except RuntimeError as error:
        if "404" not in str(error):
            raise
        raise ConfigError(f"no job {job_id!r} on this cluster; `neurofleet status` lists the running ones") from None


def _client() -> JobSubmissionClient:
    platform = state.load()
    address = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    if not address:
        if platform is None or not platforms.is_up(platform, "ray"):
            raise UnreachableError("submit needs a running platform, and none is up here; start it with: neurofleet up")
        address = platform.dashboard
        os.environ.update(authentication())
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)  # how its connection closed
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UnreachableError(
            f"submit needs the Jobs API of Ray at {address}, which does not answer ({reason}); mend RAY_ADDRESS, or "
            "unset it and start a platform here with: neurofleet up"
        ) from None


def _follow(client: JobSubmissionClient, job_id: str) -> int:
    try:
        for line in _lines(client, job_id):
            print(line, flush=True)
        return _exit_code(client, job_id)
    except KeyboardInterrupt:
        print(f"\ndetached; the job goes on. See it again with: {_again(job_id)}", flush=True)
        return 130


def _lines(client: JobSubmissionClient, job_id: str) -> Iterator[str]:
    """The job's log, line by line, without the progress lines: those move a bar while they come."""
    bar: progress.Bar | None = None
    pieces = client.tail_job_logs(job_id)
    rest = ""

    async def next_piece() -> str:
        return await anext(pieces)

    runner = asyncio.Runner()
    try:
        while True:
            try:
                piece = runner.run(next_piece())
            except StopAsyncIteration:
                break
            except (RuntimeError, OSError) as error:
                raise _lost(job_id, error) from None
            *lines, rest = (rest + piece).replace("\r\n", "\n").split("\n")
            for line in lines:
                seen = progress.parse(line)
                if seen is None:
                    if not RAYS_OWN.search(line):
                        yield line
                    continue
                if bar is None:
                    bar = progress.Bar("training")
                    bar.__enter__()
                bar.update(seen)
        if rest:
            yield rest
    finally:
        if bar is not None:
            bar.__exit__(None, None, None)
        runner.close()


def _exit_code(client: JobSubmissionClient, job_id: str) -> int:
    deadline = time.monotonic() + PATIENCE
    try:
        while not (info := client.get_job_info(job_id)).status.is_terminal() and time.monotonic() < deadline:
            time.sleep(0.2)
    except (RuntimeError, OSError) as error:
        raise _lost(job_id, error) from None
    if str(info.status) == "SUCCEEDED":
        return 0
    if not info.status.is_terminal():
        raise RunError(f"job {job_id} still runs, and its log has ended; see it again with: {_again(job_id)}")
    code = info.driver_exit_code
    print(f"job {job_id} {str(info.status).lower()}" + (f" with exit code {code}" if code else f": {info.message}"))
    print(f"its log again: neurofleet jobs logs {job_id}", flush=True)
    return code if code is not None and code > 0 else 1


def _again(job_id: str) -> str:
    return f"neurofleet jobs logs -f {job_id}"


def _lost(job_id: str, error: Exception) -> RunError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return RunError(
        f"the connection to the cluster was lost ({reason}); the job may go on; see it again with: {_again(job_id)}"
    )
