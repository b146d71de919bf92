"""What every test may rely on: no state, address or thread count comes from the caller's shell.

The environment is set while this file is imported, before any test module imports torch, and it is the environment
that the processes started by tests inherit.

The chaos suite is every test that is marked `chaos("what is done", allowed="what may come of it")`, wherever it stands;
its fixture `reached` takes the figures.  `--chaos` (`make chaos`) runs these alone, also the long ones, and prints them
as a table; without it the rows that say `long=True` are left out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--chaos", action="store_true", help="the chaos suite alone, all of its rows, and their figures")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chaos, kept, left_out = config.getoption("--chaos"), list[pytest.Item](), list[pytest.Item]()
    for item in items:
        row = item.get_closest_marker("chaos")
        if row is not None:
            item.user_properties += [("row", row.args[0]), ("allowed", row.kwargs["allowed"])]
        wanted = row is not None if chaos else row is None or not row.kwargs.get("long", False)
        (kept if wanted else left_out).append(item)
    items[:] = kept
    if left_out:
        config.hook.pytest_deselected(items=left_out)


@pytest.fixture
def reached(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Says what a row of the chaos suite came to."""
    return lambda figures: record_property("reached", figures)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not config.getoption("--chaos"):
        return
    rows: dict[str, list[Any]] = {}  # a row's allowance, what it came to, outcomes, seconds
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            said = dict(getattr(report, "user_properties", ()))
            if "row" in said:
                row = rows.setdefault(said["row"], [said["allowed"], "", [], 0.0])
                row[1] = row[1] or said.get("reached", "")
                if outcome == "skipped":
                    row[1] = str(report.longrepr[2]).removeprefix("Skipped: ")
                row[2] += [outcome]
                row[3] += report.duration
    lines = [("what was done", "came to", "allowed", "", "s")]
    for name, (allowed, came_to, outcomes, seconds) in rows.items():
        told = " ".join(f"{outcomes.count(one)} {one}" for one in dict.fromkeys(outcomes))
        lines.append((name, came_to, allowed, told, f"{seconds:.0f}"))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    terminalreporter.section("chaos")
    for line in lines:
        terminalreporter.write_line("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))


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


@dataclasses.dataclass
class Up:
    cpus: float


def choose_ports() -> dict[str, str]:
    """Three free ports, as the environment names them."""
    probes = [socket.socket() for _ in range(3)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    numbers = [str(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return dict(zip((f"NEUROFLEET_{name}_PORT" for name in ("RAY", "DASHBOARD", "MLFLOW")), numbers, strict=True))


@pytest.fixture
def free_ports() -> dict[str, str]:
    return choose_ports()


@contextlib.contextmanager
def running_platform(home: Path) -> Iterator[Up]:
    """A platform of its own.  This process becomes its client, as far as the environment goes, while it lasts."""
    from neurofleet import cluster, launch, paths
    from neurofleet.cluster import state
    from neurofleet.cluster.status import resources

    launch.ensure_token()
    token = paths.home() / "ray_token"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEUROFLEET_HOME", str(home))
        # Ray reads a token once in a process, and another test file's may have made it do so.
        shutil.copy2(token, paths.home() / "ray_token")
        settings = choose_ports() | launch.authentication() | {launch.LOOPBACK: "0"}
        for name, value in settings.items():
            patch.setenv(name, value)
        platform = cluster.up()
        try:
            yield Up(cpus=resources(platform.ray.address)["CPU"][1])
        finally:
            if state.location().exists():
                cluster.down()


@pytest.fixture(scope="session")
def platform_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """For all tests of `cluster`, the last of which takes it down."""
    with running_platform(tmp_path_factory.mktemp("platform")) as up:
        yield up


@pytest.fixture(scope="session")
def start_platform() -> Callable[[Path], contextlib.AbstractContextManager[Up]]:
    """For the tests of one file that end parts of theirs; takes its home."""
    return running_platform
