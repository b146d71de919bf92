"""Which Ray a run uses, how one connects to it, and whether it has what the run needs.

RAY_ADDRESS (which Ray Jobs set for what they start) comes first, then the head that `neurofleet up` started, then a
private Ray that lives as long as the run.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from neurofleet import paths
from neurofleet.errors import ResourceError, UnreachableError
from neurofleet.launch.machine import is_open, num_cpus, num_gpus, running
from neurofleet.launch.size import bounds, places

# Set to 0, Ray leaves 127.0.0.1 alone on every system; else it takes it for the machine's outward address, and finds
# nobody there.
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
# Where Ray's own actors (the cleaner of Ray Train) find the dashboard.  Without it they look for a Ray on this machine,
# give up if there are two, and a run waits for their time-outs at its end.
API_SERVER = "RAY_API_SERVER_ADDRESS"
# What jobs and workers must know to act as if they ran here.  Ray's token is not among them: the cluster has it.
PASSED_ON = (
    *("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"),
    *("MLFLOW_S3_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    *("AWS_DEFAULT_REGION", "NEUROFLEET_TARGETS", "PYTHONPATH"),
)


def passed_on() -> dict[str, str]:
    """The environment of jobs and workers, as far as it comes from here."""
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    return environment | {"NEUROFLEET_HOME": str(paths.home()), "NEUROFLEET_DATA": str(paths.data())}


@contextlib.contextmanager
def environment(settings: Mapping[str, str]) -> Iterator[None]:
    """This process's environment with `settings`, as long as the context lasts."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def bundle(launcher: Mapping[str, Any]) -> dict[str, float]:
    return {"CPU": launcher["cpus_per_worker"]} | ({"GPU": 1} if launcher["use_gpu"] else {})


def check_room(launcher: Mapping[str, Any]) -> None:
    """Raise, before anything is started or written, if the Ray that a run would use can never hold its workers.

    Raises:
        ResourceError: more workers than it has CPUs or GPUs for.
        UnreachableError: nobody answers at RAY_ADDRESS.
    """
    address = _address()
    if address is None:
        _need(launcher, [_this_machine()])
    elif address != "auto" and "://" not in address:
        if not is_open(address):
            raise _unreachable(address, "nobody listens there")
        _need(launcher, [node.total_resources() for node in cluster_nodes(address)])


def cluster_nodes(address: str) -> list[Any]:
    """The nodes of the cluster at host:port that are alive, without joining it.

    Raises:
        UnreachableError: what listens there is no Ray, or wants another token.
    """
    with environment(_settings(address)):
        from ray.autoscaler.v2.sdk import get_cluster_status
        from ray.exceptions import RayError

        try:
            status = get_cluster_status(address)
        except (RayError, RuntimeError, OSError) as error:
            raise _unreachable(address, _first_line(error)) from None
    return [*status.active_nodes, *status.idle_nodes]


class Node(NamedTuple):
    """What is free on a node, and all that it has."""

    free: dict[str, float]
    whole: dict[str, float]


def room() -> list[Node]:
    """The nodes of the connected cluster.  One that does not answer is left out: Ray itself may take half a minute to
    find out that it is dead."""
    import ray

    found = {node["NodeID"]: f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}" for node in ray.nodes()}
    nodes = cluster_nodes(ray.get_runtime_context().gcs_address)
    answering = [node for node in nodes if is_open(found.get(node.node_id, ""))]
    return [Node(node.available_resources(), node.total_resources()) for node in answering]


def _settings(address: str | None) -> dict[str, str]:
    """The environment in which a client of the Ray at `address` has to be; Ray reads some of it when it is imported."""
    on_loopback = address is None or address.startswith("127.")
    return authentication() | ({LOOPBACK: "0"} if on_loopback else {})


def _address() -> str | None:
    """RAY_ADDRESS, or the platform's head, or None for a private Ray."""
    address = os.environ.get("RAY_ADDRESS") or _platform_address()
    return None if address == "local" else address


@contextlib.contextmanager
def connected(launcher: Mapping[str, Any]) -> Iterator[bool]:
    """A connection to a Ray that has what the launcher asks for; yields whether all of it is on 127.0.0.1."""
    address = _address()
    private = address is None
    if private:
        _need(launcher, [_this_machine()])
        print("starting a private Ray for this run: 10 to 40 s (`neurofleet up` keeps one ready) ...", flush=True)
        ensure_token()
    dashboard_port = _free_port()
    settings = _settings(address) | ({API_SERVER: f"http://127.0.0.1:{dashboard_port}"} if private else {})
    with environment(settings):
        import ray

        mine = not ray.is_initialized()
        if mine:
            _connect(address, dashboard_port)
        try:
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            _need(launcher, nodes)
            _say_if_busy(launcher, ray.available_resources())
            yield all(node["NodeManagerAddress"] == "127.0.0.1" for node in ray.nodes() if node["Alive"])
        finally:
            if mine:
                ray.shutdown()


def _connect(address: str | None, dashboard_port: int) -> None:
    import ray

    options: dict[str, Any] = {"address": address, "logging_level": "ERROR", "log_to_driver": True}
    if address is None:
        # With a dashboard: see the top.
        options |= {"address": "local", "include_dashboard": True, "dashboard_host": "127.0.0.1"}
        options |= {"dashboard_port": dashboard_port, "_node_ip_address": "127.0.0.1", "num_cpus": num_cpus()}
    elif address and address != "auto" and not is_open(address.removeprefix("ray://")):  # Ray itself tries for minutes
        raise _unreachable(address, "nobody listens there")
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        raise _unreachable(address, _first_line(error)) from None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _unreachable(address: str | None, reason: str) -> UnreachableError:
    return UnreachableError(
        f"a Ray cluster is needed at {address}, got: {reason}; "
        "mend or unset RAY_ADDRESS and RAY_AUTH_TOKEN_PATH, or use launcher=local"
    )


def _need(launcher: Mapping[str, Any], nodes: list[dict[str, float]]) -> None:
    """Raise ResourceError if the workers can never all run at once."""
    share = bundle(launcher)
    has_room = places(share, nodes)
    if has_room >= bounds(launcher)[0]:
        return
    has = ", ".join(f"{sum(node.get(kind, 0) for node in nodes):g} {kind}s" for kind in share)
    wants = " and ".join(f"{amount:g} {kind}" for kind, amount in share.items())
    raise ResourceError(
        f"launcher.num_workers={launcher['num_workers']} with {wants} each needs more than the cluster has: {has} on "
        f"{len(nodes)} node(s), room for {has_room} worker(s); lower launcher.num_workers or launcher.cpus_per_worker"
    )


def _say_if_busy(launcher: Mapping[str, Any], free: dict[str, float]) -> None:
    for kind, amount in bundle(launcher).items():
        wanted = amount * bounds(launcher)[0]
        if free.get(kind, 0) < wanted:
            print(f"waiting for {wanted:g} {kind}s, {free.get(kind, 0):g} are free now ...", flush=True)


def _this_machine() -> dict[str, float]:
    """What a private Ray will have, seen without starting it."""
    return {"CPU": num_cpus(), "GPU": num_gpus()}


def _platform_address() -> str | None:
    """host:port of the Ray head that `neurofleet up` started, if its processes live and its door is open."""
    try:
        ray = json.loads((paths.home() / "platform.json").read_text())["ray"]
    except FileNotFoundError:
        return None
    recorded = {int(pid): begun for pid, begun in ray["processes"].items()}
    lives = bool(recorded) and len(running(recorded)) == len(recorded)
    return str(ray["address"]) if lives and is_open(ray["address"]) else None


def authentication() -> dict[str, str]:
    """Ray's settings for token authentication: the user's if there are any, else this platform's token."""
    names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    settings = {name: os.environ[name] for name in names if os.environ.get(name)}
    settings.setdefault("RAY_AUTH_MODE", "token")
    if "RAY_AUTH_TOKEN" not in settings:
        settings.setdefault("RAY_AUTH_TOKEN_PATH", str(paths.home() / "ray_token"))
    return settings


def ensure_token() -> None:
    """Make the token that Ray's clients and servers share, readable by this user alone, unless there is one."""
    file = authentication().get("RAY_AUTH_TOKEN_PATH")
    if file and not Path(file).exists():
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        # Whole or not at all, and the first of many processes wins: a link is made to a file that is written.
        descriptor, scratch = tempfile.mkstemp(dir=Path(file).parent, prefix=".ray_token.")  # mode 0600
        try:
            with os.fdopen(descriptor, "w") as token:
                token.write(secrets.token_hex(32))
            with contextlib.suppress(FileExistsError):
                os.link(scratch, file)
        finally:
            os.unlink(scratch)
