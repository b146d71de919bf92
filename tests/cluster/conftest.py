"""One real platform for all tests of this folder, in a home of its own, on free ports."""

from __future__ import annotations

import dataclasses
import shutil
import socket
from collections.abc import Iterator

import pytest

from neurofleet import cluster, launch, paths
from neurofleet.cluster import state
from neurofleet.cluster.status import resources


@dataclasses.dataclass
class Up:
    cpus: float


def choose_ports() -> dict[str, str]:
    probes = [socket.socket() for _ in range(3)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    numbers = [str(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return dict(zip((f"NEUROFLEET_{name}_PORT" for name in ("RAY", "DASHBOARD", "MLFLOW")), numbers, strict=True))


@pytest.fixture
def free_ports() -> dict[str, str]:
    """Three free ports, as the environment names them."""
    return choose_ports()


@pytest.fixture(scope="session")
def platform_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A running platform.  This process becomes its client, as far as the environment goes, until the session ends."""
    launch.ensure_token()
    token = paths.home() / "ray_token"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEUROFLEET_HOME", str(tmp_path_factory.mktemp("platform")))
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
