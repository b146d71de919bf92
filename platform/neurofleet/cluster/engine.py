"""The engine that runs attempts: Ray Jobs.  Only this module knows Ray's job client."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import psutil

from neurofleet.cluster import state
from neurofleet.errors import UnreachableError
from neurofleet.launch import authentication, cluster_nodes, is_open, running

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

STOP_GRACE = 60  # seconds from SIGTERM to SIGKILL: a checkpoint, and what MLflow has to be told
# For Ray itself, in every process of a job.  Ray Train does not hand the second one on to its controller, which would
# wait half a minute for a worker that hangs to leave its process group.
RAYS_OWN = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_GRACE), "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5"}
FAILURES = (RuntimeError, OSError)  # of requests, and of Ray's client


@dataclasses.dataclass(frozen=True)
class Seen:
    """What Ray knows of an attempt: `status` is Ray's own word, `UNKNOWN` where Ray has never heard of it."""

    status: str
    exit_code: int | None = None
    message: str = ""

    @property
    def has_ended(self) -> bool:
        return self.status in ("SUCCEEDED", "FAILED", "STOPPED", "UNKNOWN")


class Engine:
    """One cluster.  Every call raises UnreachableError where it does not answer."""

    def __init__(self, address: str = "") -> None:
        """address: of the cluster; empty for the platform's own, wherever that is at the time of a call"""
        self.address = address
        self._client: JobSubmissionClient | None = None
        self._connected_to = ""

    def warm_up(self) -> None:
        """Import what the first job would wait for."""
        os.environ.update(authentication())  # Ray reads it when it is imported
        import ray.autoscaler.v2.sdk
        import ray.job_submission  # noqa: F401

    def is_gone(self) -> bool:
        """Whether the platform's head is dead, and all that ran on it: its GCS, or its raylet, which runs it."""
        if self.address:
            return False
        platform = state.load()
        if platform is None or not is_open(platform.ray.address):
            return True
        return not any(_name(process).startswith("raylet") for process in running(platform.ray.processes))

    def client(self) -> JobSubmissionClient:
        platform = None if self.address else state.load()
        address = self.address or (platform.dashboard if platform is not None else "")
        if not address:
            raise UnreachableError("jobs need a running platform, and none is up here; start it with: neurofleet up")
        if self._client is None or self._connected_to != address:
            os.environ.update(authentication())
            from ray.job_submission import JobSubmissionClient

            logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
            try:
                self._client, self._connected_to = JobSubmissionClient(address), address
            except FAILURES as error:
                raise UnreachableError(
                    f"submit needs the Jobs API of Ray at {address}, which does not answer ({_first_line(error)}); "
                    "mend RAY_ADDRESS, or unset it and start a platform here with: neurofleet up"
                ) from None
        return self._client

    def start(
        self, submission: str, entrypoint: str, environment: Mapping[str, str], cpus: float, gpus: float, what: str
    ) -> None:
        """Submitting the same id twice is submitting it once."""
        try:
            self.client().submit_job(
                entrypoint=entrypoint,
                submission_id=submission,
                runtime_env={"env_vars": {**environment, **RAYS_OWN}},
                metadata={"command": what},
                entrypoint_num_cpus=cpus or None,
                entrypoint_num_gpus=gpus or None,
            )
        except FAILURES as error:
            if "already exists" not in str(error):
                raise self._away(error) from None

    def look(self, submission: str) -> Seen:
        try:
            info = self.client().get_job_info(submission)
        except FAILURES as error:
            if "404" in str(error):
                return Seen("UNKNOWN", message="the cluster's head that ran it is gone")
            raise self._away(error) from None
        lines = (info.message or "").strip().splitlines()
        return Seen(str(info.status), info.driver_exit_code, lines[0] if lines else "")

    def stop(self, submission: str) -> None:
        """SIGTERM; returns at once."""
        try:
            self.client().stop_job(submission)
        except FAILURES as error:
            if "404" not in str(error):
                raise self._away(error) from None

    def capacity(self) -> dict[str, float] | None:
        """CPUs and GPUs of the whole cluster; None where it does not tell, and queues by itself."""
        platform = state.load()
        if self.address or platform is None:
            return None
        nodes = cluster_nodes(platform.ray.address)
        return {kind: sum(node.total_resources().get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU")}

    def _away(self, error: Exception) -> UnreachableError:
        self._client = None
        return UnreachableError(f"Ray at {self._connected_to} does not answer ({_first_line(error)})")


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.NoSuchProcess:
        return ""


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
