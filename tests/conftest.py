"""What every test may rely on: no state, address or thread count comes from the caller's shell.

The environment is set while this file is imported, before any test module imports torch, and it is the environment
that the processes started by tests inherit.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PROJECT_ROOT = Path(__file__).resolve().parents[1]
HOME = Path(tempfile.mkdtemp(prefix="neurofleet-tests-"))  # short: Ray and gRPC put sockets below it

LEFT_OUT = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME")
LEFT_OUT += ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_JOB_HEADERS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
LEFT_OUT += ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

LEFT_OUT += tuple(name for name in os.environ if name.startswith("NEUROFLEET_"))

for variable in LEFT_OUT:
    os.environ.pop(variable, None)
os.environ.update(
    NEUROFLEET_HOME=str(HOME),
    NEUROFLEET_DATA=str(PROJECT_ROOT / "data"),
    # Child processes test this checkout as pytest itself does, whichever version is installed.
    PYTHONPATH=str(PROJECT_ROOT / "platform"),
    # One thread each: the same sums on every machine, and idle OpenMP threads that spin starve the other workers.
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    OPENBLAS_NUM_THREADS="1",
    OMP_WAIT_POLICY="PASSIVE",
    MPLBACKEND="Agg",
    # A proxy that the shell names would be asked for 127.0.0.1 too.
    NO_PROXY="127.0.0.1,localhost",
    no_proxy="127.0.0.1,localhost",
    DVC_NO_ANALYTICS="1",
    RAY_USAGE_STATS_ENABLED="0",
    MLFLOW_DISABLE_TELEMETRY="true",
)
# A shell that starts tests in the background has them ignore Ctrl-C, and so would the processes that they press it for.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_unconfigure() -> None:
    shutil.rmtree(HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def project_root() -> Path:
    """The top of the repository."""
    return PROJECT_ROOT


@pytest.fixture
def free_port() -> int:
    """A TCP port of 127.0.0.1 on which nothing listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def to_the_end() -> Callable[[Any], list[Any]]:
    """Trains a cohort of trials on to its end; gives them by number."""

    def train(cohort: Any) -> list[Any]:
        ended = list[Any]()
        while not cohort.finished:
            ended += cohort.round(lambda num_steps: None)
        return sorted(ended, key=lambda trial: trial.number)

    return train
