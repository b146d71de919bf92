"""Tracking: everything arrives exactly once, in order, and no run stays RUNNING, whoever dies."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from neurofleet import paths
from neurofleet.errors import ConfigError, RunError, UnreachableError, UserError
from neurofleet.tracking import (
    RUNS,
    Tracker,
    code_tags,
    flatten,
    orphans,
    prepare_store,
    records,
    store,
    store_uri,
    ui_address,
)
from neurofleet.tracking.delivery import Delivery
from neurofleet.tracking.lineage import shorten
from neurofleet.tracking.system import SystemSampler

SPEC = {
    "name": "digits",
    "kind": "tabular",
    "task": "multiclass",
    "shape": [2],
    "inputs": ["a", "b"],
    "targets": ["y"],
    "classes": ["no", "yes"],
    "num_rows": {"train": 30, "val": 5, "test": 10},
}
DIGEST = "0123456789abcdef0123456789abcdef"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NEUROFLEET_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def start(**changes: Any) -> Tracker:
    return Tracker.start(**{"experiment": "spine", "run_name": "a run", "tags": {}, "params": {}} | changes)


def rows(first: int, last: int) -> list[tuple[int, float, dict[str, float]]]:
    return [
        (step, step // 10, {"train/loss": 1.0 / (step + 1), "train/accuracy": step / 1000})
        for step in range(first, last)
    ]


def query(question: str, *values: Any) -> list[tuple[Any, ...]]:
    """Ask the default store."""
    connection = sqlite3.connect(paths.home() / "mlflow" / "mlflow.db", timeout=20)
    try:
        return connection.execute(question, values).fetchall()
    finally:
        connection.close()


def history(run_id: str, name: str = "train/loss") -> list[tuple[int, float]]:
    """(step, value), in the order of arrival."""
    return query("SELECT step, value FROM metrics WHERE run_uuid = ? AND key = ? ORDER BY rowid", run_id, name)


def status(run_id: str) -> str:
    return str(query("SELECT status FROM runs WHERE run_uuid = ?", run_id)[0][0])


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def expected(first: int, last: int) -> list[tuple[int, float]]:
    return [(step, metrics["train/loss"]) for step, _, metrics in rows(first, last)]


OWNER = """
import os, sys, time
from neurofleet.tracking import Tracker
tracker = Tracker.start(experiment="spine", run_name="doomed", tags={}, params={"seed": 1})
print(tracker.run_id, tracker._child.pid, flush=True)
tracker.log_many([(step, step // 10, {"train/loss": 1.0 / (step + 1)}) for step in range(300)])
print("logged", flush=True)
time.sleep(600)
"""


@pytest.fixture
def owner() -> Iterator[tuple[subprocess.Popen[str], str, int]]:
    """A training process that has logged 300 steps: itself, its run id, the process id of its tracking child."""
    with subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        run_id, child = process.stdout.readline().split()
        assert process.stdout.readline() == "logged\n"
        yield process, run_id, int(child)
        process.kill()


# records


def test_rows_come_back_exactly() -> None:
    line = records.encode_rows([(3, 0, {"a": 0.1, "b": math.inf}), (7, 1, {"a": -1e-300, "b": 2.0})], 1000, 1010)
    points, epoch = records.decode_points(records.decode(line), None)
    assert points == [
        ("a", 0.1, 1005, 3),
        ("b", math.inf, 1005, 3),
        ("epoch", 0.0, 1005, 3),
        ("a", -1e-300, 1010, 7),
        ("b", 2.0, 1010, 7),
        ("epoch", 1.0, 1010, 7),
    ]
    assert epoch == 1.0


def test_epoch_is_a_metric_only_where_it_changes() -> None:
    line = records.encode_rows([(1, 4, {"a": 1.0}), (2, float("nan"), {"a": 1.0}), (3, 5, {"a": 1.0})], 0, 0)
    points, epoch = records.decode_points(records.decode(line), 4)
    assert [(point.step, point.value) for point in points if point.name == "epoch"] == [(3, 5.0)]
    assert epoch == 5


def test_rows_with_other_names_make_another_line() -> None:
    lines = records.encode_rows([(1, 0, {"a": 1.0}), (2, 0, {"a": 2.0}), (2, 0, {"val": 3.0})], 0, 9).splitlines()
    assert [json.loads(line)["names"] for line in lines] == [["a"], ["val"]]


# what a run says


def test_flatten_names_nested_settings() -> None:
    assert flatten({"family": {"width": 64, "sizes": [1, 2], "extra": {}}, "seed": 0}) == {
        "family.width": "64",
        "family.sizes": "[1, 2]",
        "family.extra": "{}",
        "seed": "0",
    }


def test_long_values_say_that_they_were_cut() -> None:
    cut = shorten("x" * 7000)
    assert len(cut) == 6000
    assert cut.endswith("... (cut: 7000 characters)")
    assert shorten("x" * 6000) == "x" * 6000


def test_code_tags_name_this_commit(project_root: Path) -> None:
    question = ["git", "-C", str(project_root), "rev-parse", "HEAD"]
    commit = subprocess.run(question, capture_output=True, text=True).stdout
    tags = code_tags()
    assert tags["git.commit"] == (commit.strip() or "none")
    assert tags["git.dirty"] in ("true", "false", "none")
    assert len(tags["lock.digest"]) == 16


# the store


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")  # MLflow with SQLAlchemy 2.1
def test_shipped_schema_is_the_migrated_one(tmp_path: Path) -> None:
    assert store.schema_is_known(), "MLflow was changed: make schema.sql again, as store.py says"
    assert statements(store.dump(tmp_path / "migrated.db")) == statements(store.SCHEMA.read_text())


def statements(script: str) -> list[list[str]]:
    """Sorted, and so are the lines of each: migrations write constraints and indexes in no fixed order."""
    return sorted(sorted(line.strip(" ,") for line in statement.splitlines()) for statement in script.split(";\n"))


@pytest.mark.chaos("many processes make one sqlite store", allowed="each finds it whole")
def test_prepare_store_by_many_processes_at_once(home: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=prepare_store) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]
    assert query("PRAGMA journal_mode") == [("wal",)]
    assert query("SELECT artifact_location FROM experiments") == [(str(home / "mlflow" / "artifacts" / "0"),)]
    assert sorted(file.name for file in (home / "mlflow").iterdir() if not file.name.startswith("mlflow.db-")) == [
        ".mlflow.db.lock",
        "mlflow.db",
    ]


def test_mlflow_tracking_uri_wins(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    assert store_uri() == f"sqlite:///{home}/mlflow/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert store_uri() == "http://127.0.0.1:1"


def test_relative_sqlite_address_is_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///some/mlflow.db")
    assert store_uri() == f"sqlite:///{tmp_path}/some/mlflow.db"


@pytest.mark.parametrize("uri", ["http://127.0.0.1:1", "postgresql://me:secret@127.0.0.1:1/mlflow"])
def test_unreachable_at_start(monkeypatch: pytest.MonkeyPatch, home: Path, uri: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    tracker = start()
    with pytest.raises(UnreachableError, match=r"127.0.0.1:1.*MLFLOW_TRACKING_URI") as caught:
        assert tracker.run_id
    assert "secret" not in str(caught.value)
    assert caught.value.exit_code == 2
    assert not home.exists()
    tracker.finish("FAILED")  # nothing to do


def test_a_port_that_speaks_no_http(free_port: int) -> None:
    with socket.create_server(("127.0.0.1", free_port)) as server:

        def greet() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(b"220 mail\r\n")

        thread = threading.Thread(target=greet)
        thread.start()
        with pytest.raises(UnreachableError, match=r"does not answer \(220 mail\)"):
            store.check_reachable(f"http://me:secret@127.0.0.1:{free_port}")
        thread.join()


@pytest.mark.parametrize("uri", ["postgresql://me:secret@host:abc/x", "postgresql://me:sec/ret@host/x", "http://[me"])
def test_address_that_cannot_be_read(uri: str) -> None:
    with pytest.raises(ConfigError, match="a port that is a number") as caught:
        store.check_reachable(uri)
    assert "sec" not in str(caught.value)


def test_file_store_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tmp_path / "mlruns"))
    with pytest.raises(ConfigError, match="needs a server"):
        assert start().run_id


def test_unwritable_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/file/mlflow.db")
    with pytest.raises(UnreachableError, match="needs a writable sqlite database"):
        prepare_store()


def test_ui_address(home: Path) -> None:
    folder = home / "runs" / "ab12" / "tracking"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"uri": store_uri(), "experiment_id": "3"}))
    assert ui_address("ab12").endswith("(to open it: neurofleet up)")
    (home / "platform.json").write_text(json.dumps({"mlflow": {"address": "http://127.0.0.1:5000"}}))
    assert ui_address("ab12") == "http://127.0.0.1:5000/#/experiments/3/runs/ab12?workflowType=machine_learning"
    (folder / "run.json").write_text(json.dumps({"uri": "https://me:secret@host/", "experiment_id": "3"}))
    assert ui_address("ab12") == "https://host/#/experiments/3/runs/ab12?workflowType=machine_learning"


@pytest.mark.parametrize(
    ("uri", "displayed"),
    [
        ("postgresql://me:s/e@t@host/x", "postgresql://host/x"),
        ("postgresql://host/x?password=secret&a=b", "postgresql://host/x?password=***&a=b"),
        ("sqlite:////home/me@host/x.db", "sqlite:////home/me@host/x.db"),
    ],
)
def test_addresses_are_shown_without_passwords(uri: str, displayed: str) -> None:
    assert store.shown(uri) == displayed
    assert store.censored(f"cannot reach {uri}: no", uri) == f"cannot reach {displayed}: no"


# one run from start to end


def test_a_run_carries_everything(tmp_path: Path) -> None:
    figure = tmp_path / "curve.png"
    figure.write_bytes(b"PNG")
    tracker = start(tags={"family": "cnn"}, params={"family": {"width": 64}, "note": "x" * 7000})
    tracker.log_many(rows(0, 20))
    tracker.log_dataset("digits", DIGEST, "sklearn.datasets.load_digits", SPEC, 45)
    tracker.log_artifact(figure, "figures")
    tracker.set_tags({"parameters": 1234})
    wait_for(lambda: bool(history(tracker.run_id, "system/cpu_utilization_percentage")))
    tracker.log_metrics(20, 2, {"test/accuracy": 0.5, "worst": math.nan, "infinite": -math.inf})
    tracker.finish()
    run_id = tracker.run_id

    assert query("SELECT status, name, end_time > start_time FROM runs") == [("FINISHED", "a run", 1)]
    assert query("SELECT name FROM experiments WHERE experiment_id = 1") == [("spine",)]
    params = dict(query("SELECT key, value FROM params"))
    assert params["family.width"] == "64"
    assert len(params["note"]) == 6000
    tags = dict(query("SELECT key, value FROM tags"))
    assert tags["family"] == "cnn"
    assert tags["parameters"] == "1234"
    assert "failure" not in tags
    assert history(run_id) == expected(0, 20)
    assert history(run_id, "epoch") == [(0, 0), (10, 1), (20, 2)]
    assert history(run_id, "test/accuracy") == [(20, 0.5)]
    assert query("SELECT key, value, is_nan FROM metrics WHERE key IN ('worst', 'infinite') ORDER BY key") == [
        ("infinite", -sys.float_info.max, 0),
        ("worst", 0.0, 1),
    ]
    assert dict(query("SELECT key, step FROM latest_metrics"))["train/loss"] == 19
    assert query("SELECT name, digest FROM datasets") == [("digits", DIGEST)]
    [(location,)] = query("SELECT artifact_uri FROM runs")
    assert Path(location, "figures", "curve.png").read_bytes() == b"PNG"
    [memory] = [value for _, value in history(run_id, "system/process_memory_megabytes")][:1]
    assert memory > 10


def test_what_mlflow_refuses_is_reported_and_holds_up_nothing(tmp_path: Path) -> None:
    tracker = start()
    tracker.log_many([(step, 0, {"good": 1.0, "bad?name": 2.0}) for step in range(3)])
    tracker.log_artifact(tmp_path / "nowhere.png")
    tracker.log_metrics(3, 0, {"good": 3.0})
    with pytest.raises(RunError, match=r"(?s)bad\?name.*nowhere.png"):
        tracker.finish()
    assert history(tracker.run_id, "good") == [(0, 1.0), (1, 1.0), (2, 1.0), (3, 3.0)]
    assert status(tracker.run_id) == "FINISHED"


def test_artifact_store_with_errors_of_its_own(tmp_path: Path) -> None:
    class NoCredentialsError(Exception):
        pass

    def log_artifact(*_: Any) -> None:
        raise NoCredentialsError("who are you?")

    spool = tmp_path / "1.jsonl"
    spool.write_bytes(records.encode({"artifact": "a.png", "folder": ""}) + records.encode({"end": "FINISHED"}))
    client: Any = SimpleNamespace(tracking_uri="http://host", log_artifact=log_artifact)
    delivery = Delivery(client, "ab12", spool)
    assert delivery.ship() == 2
    assert delivery.refused == ["a.png could not be stored: NoCredentialsError: who are you?"]
    assert delivery.end == "FINISHED"
    delivery.file.close()


def test_files_that_hold_the_address_are_private() -> None:
    tracker = start()
    folder = paths.run(tracker.run_id) / "tracking"
    tracker.finish()
    files = [folder / "run.json", folder / "child.log", *folder.glob("*.jsonl")]
    assert [oct(file.stat().st_mode & 0o777) for file in files] == ["0o600"] * 3


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")  # MLflow with SQLAlchemy 2.1
def test_bulk_writes_what_the_client_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    from neurofleet.tracking.bulk import SqliteMetrics

    prepare_store()
    client = MlflowClient(store_uri())
    points = [
        records.Point(name, value, 1000 + step % 3, step)
        for step, name, value in [
            (5, "a", 1.0),
            (1, "a", 2.0),
            (5, "a", 3.0),
            (2, "b", math.nan),
            (2, "b", math.inf),
            (3, "b", -math.inf),
            (5, "a", 1.0),
        ]
    ]
    through_client, direct = (client.create_run("0").info.run_id for _ in range(2))
    for part in (points[:3], points[3:]):
        monkeypatch.delenv("PYTEST_CURRENT_TEST", raising=False)
        client.log_batch(through_client, metrics=[Metric(*point) for point in part])
        SqliteMetrics(Path(store_uri().removeprefix("sqlite:///")), direct).write(part)
    for table in ("metrics", "latest_metrics"):
        question = f"SELECT key, value, timestamp, step, is_nan FROM {table} WHERE run_uuid = ? ORDER BY 1, 3, 4, 2"
        found = [query(question, run) for run in (through_client, direct)]
        assert found[0] == found[1]
        assert len(found[0]) == {"metrics": 6, "latest_metrics": 2}[table]


def test_attached_tracker_adds_but_does_not_end() -> None:
    tracker = start()
    attached = Tracker.attach(tracker.run_id)
    attached.log_many(rows(0, 5))
    attached.finish()
    assert history(tracker.run_id) == expected(0, 5)
    assert status(tracker.run_id) == "RUNNING"
    tracker.finish("KILLED")
    assert status(tracker.run_id) == "KILLED"


def test_attach_to_an_unknown_run() -> None:
    with pytest.raises(UserError, match="there is no run 'ab12'"):
        assert Tracker.attach("ab12").run_id


def test_resumed_run_shows_repeated_steps_once() -> None:
    first = start()
    first.log_many(rows(0, 30))
    first.finish("FAILED")
    again = Tracker.resume(first.run_id)
    assert again.run_id == first.run_id
    assert status(first.run_id) == "RUNNING"
    again.log_many(rows(20, 40))
    again.finish()
    assert history(first.run_id) == expected(0, 40)
    assert history(first.run_id, "epoch") == [(0, 0), (10, 1), (20, 2), (30, 3)]
    assert status(first.run_id) == "FINISHED"


# deaths


def test_owner_killed(owner: tuple[subprocess.Popen[str], str, int]) -> None:
    process, run_id, _ = owner
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: status(run_id) == "FAILED")
    assert history(run_id) == expected(0, 300)
    assert dict(query("SELECT key, value FROM tags"))["failure"] == "the training process died without a word"


def test_sampling_a_process_that_died_early() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert SystemSampler(process.pid, "system/").sample()["system/process_memory_megabytes"] == 0


@pytest.mark.chaos("a run and its tracking process killed", allowed="no run RUNNING, no record lost")
def test_owner_and_child_killed(owner: tuple[subprocess.Popen[str], str, int]) -> None:
    process, run_id, child = owner
    os.kill(child, signal.SIGKILL)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert status(run_id) == "RUNNING"
    start().finish()  # the next tracked run finds what they left
    assert status(run_id) == "FAILED"
    assert history(run_id) == expected(0, 300)


def test_owner_and_child_terminated(owner: tuple[subprocess.Popen[str], str, int]) -> None:
    process, run_id, child = owner
    os.kill(child, signal.SIGTERM)
    process.terminate()
    process.wait()
    wait_for(lambda: status(run_id) == "FAILED")
    assert history(run_id) == expected(0, 300)


def test_damaged_spools_harm_nobody(home: Path, owner: tuple[subprocess.Popen[str], str, int]) -> None:
    process, orphan, child = owner
    os.kill(child, signal.SIGKILL)
    process.kill()
    process.wait()
    first = start()
    first.log_many(rows(0, 10))
    first.finish("FAILED")
    garbage = bytes(64) + b"ge\xff\n" + b'{"since":0,"ti' + bytes(64) + b"\n"
    own = paths.run(first.run_id) / "tracking"
    for folder in (home / "runs" / "!bad" / "tracking", own):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "1.jsonl").write_bytes(garbage)
    again = Tracker.resume(first.run_id)
    again.log_many(rows(5, 20))
    again.finish()
    assert history(first.run_id) == expected(0, 20)
    assert status(first.run_id) == "FINISHED"
    assert status(orphan) == "FAILED"
    assert f"could not deliver {home}/runs/!bad/tracking/1.jsonl: " in (own / "child.log").read_text()


def test_spool_that_breaks_its_delivery_is_tried_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spool = tmp_path / "1.jsonl"
    spool.write_bytes(records.encode({"open": {"run_id": "ab12", "uri": "http://host", "own": True}}))
    spool.with_suffix(".state").write_text("no json")
    orphans.sweep(SimpleNamespace(tracking_uri="http://host"), [spool])  # type: ignore[arg-type]
    assert capsys.readouterr().err.count(f"could not deliver {spool}: JSONDecodeError") == 1


def test_concluded_spools_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spool = tmp_path / "1.jsonl"
    spool.write_bytes(b"never read\n")
    spool.with_suffix(".state").write_text('{"concluded": true}')
    orphans.sweep(SimpleNamespace(tracking_uri="http://host"), [spool])  # type: ignore[arg-type]
    assert capsys.readouterr().err == ""


def test_child_killed_and_interrupted() -> None:
    tracker = start()
    tracker.log_many(rows(0, 100))
    os.kill(tracker._child.pid, signal.SIGINT)
    wait_for(lambda: len(history(tracker.run_id)) == 100)
    tracker.log_many(rows(100, 200))
    os.kill(tracker._child.pid, signal.SIGKILL)
    tracker.log_many(rows(200, 250))
    tracker.finish()
    assert history(tracker.run_id) == expected(0, 250)
    assert status(tracker.run_id) == "FINISHED"


def test_batch_sent_but_not_remembered_arrives_once() -> None:
    tracker = start()
    tracker.log_many(rows(0, 50))
    wait_for(lambda: len(history(tracker.run_id)) == 50)
    os.kill(tracker._child.pid, signal.SIGKILL)
    tracker._child.wait()
    for file in tracker._spool_path.parent.glob("*.state"):
        file.unlink()
    tracker.finish()
    assert history(tracker.run_id) == expected(0, 50)


CONTENDER = """
from neurofleet.tracking import Tracker
tracker = Tracker.start(experiment="spine", run_name="one of many", tags={}, params={})
for first in range(0, 2000, 40):
    tracker.log_many([(step, 0, {"train/loss": 1.0 / (step + 1)}) for step in range(first, first + 40)])
tracker.finish()
"""


@pytest.mark.slow
@pytest.mark.chaos("sqlite contention from a cold start", allowed="4 runs of 2,000 records each, none lost")
def test_several_processes_share_the_sqlite_store() -> None:
    processes = [subprocess.Popen([sys.executable, "-c", CONTENDER]) for _ in range(4)]
    assert [process.wait() for process in processes] == [0, 0, 0, 0]
    runs = query("SELECT run_uuid, status FROM runs")
    assert [state for _, state in runs] == ["FINISHED"] * 4
    assert all(history(run_id) == expected(0, 2000) for run_id, _ in runs)
    assert query("SELECT count(*) FROM experiments WHERE name = 'spine'") == [(1,)]


# a real server


def serve(port: int, folder: Path) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    uri = f"sqlite:///{folder}/mlflow.db"
    prepare_store(uri)
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--workers",
            "1",
            "--backend-store-uri",
            uri,
            "--artifacts-destination",
            str(folder / "artifacts"),
        ],
        env=dict(os.environ, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_for(lambda: answers(port), 120)
    return process


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
            return True
    except OSError:
        return False


def stop(process: subprocess.Popen[bytes], port: int) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    wait_for(lambda: not listens(port))


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
@pytest.mark.chaos("MLflow killed while records arrive, then back", allowed="each record once, in order")
def test_server_dies_and_comes_back(tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = tmp_path / "curve.png"
    figure.write_bytes(b"PNG")
    server = serve(free_port, tmp_path / "server")
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port}")
        tracker = start()
        tracker.log_many(rows(0, 1500))
        assert tracker.run_id
        time.sleep(1.2)  # somewhere in the middle of it
        stop(server, free_port)
        tracker.log_many(rows(1500, 1600))
        tracker.log_artifact(figure, "figures")
        server = serve(free_port, tmp_path / "server")
        tracker.log_many(rows(1600, 1700))
        tracker.finish()
        connection = sqlite3.connect(tmp_path / "server" / "mlflow.db")
        found = connection.execute("SELECT step, value FROM metrics WHERE key = 'train/loss' ORDER BY rowid").fetchall()
        assert connection.execute("SELECT status FROM runs").fetchall() == [("FINISHED",)]
        connection.close()
        assert found == expected(0, 1700)
        [stored] = (tmp_path / "server" / "artifacts").glob("**/figures/curve.png")
        assert stored.read_bytes() == b"PNG"
    finally:
        stop(server, free_port)


@pytest.mark.slow
@pytest.mark.chaos("MLflow gone for good", allowed="the run ends well, says degraded; replayed once later")
def test_server_that_stays_away(
    tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The training ends well, restarts while the server is away, and all of it is replayed once and in order."""
    server = serve(free_port, tmp_path / "server")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port}")
    try:
        tracker = start()
        run_id = tracker.run_id
    finally:
        stop(server, free_port)
    tracker.log_many(rows(0, 10))
    tracker.finish("KILLED")
    assert "tracking=degraded" in capsys.readouterr().err
    again = Tracker.resume(run_id)
    again.log_many(rows(5, 20))
    again.finish()
    told = capsys.readouterr().err
    assert "tracking=degraded" in told
    assert "neurofleet runs sync" in told
    with pytest.raises(UnreachableError, match=rf"1 run\(s\) wait: .*127.0.0.1:{free_port}"):
        orphans.sync()
    server = serve(free_port, tmp_path / "server")
    try:
        assert orphans.sync() == 1
        assert orphans.sync() == 0
        connection = sqlite3.connect(tmp_path / "server" / "mlflow.db")
        question = "SELECT step, value FROM metrics WHERE run_uuid = ? AND key = 'train/loss' ORDER BY rowid"
        assert connection.execute(question, (run_id,)).fetchall() == expected(0, 20)
        assert connection.execute("SELECT status FROM runs").fetchall() == [("FINISHED",)]
        assert connection.execute("SELECT value FROM tags WHERE key = 'tracking'").fetchall() == [("degraded",)]
        connection.close()
    finally:
        stop(server, free_port)


def status_of(run_id: str) -> str:
    (found,) = query("SELECT status FROM runs WHERE run_uuid = ?", run_id)
    return str(found[0])


def settle(status: str, run_id: str) -> None:
    subprocess.run([sys.executable, "-m", "neurofleet.tracking.settle", status, run_id], check=True)


def test_a_scheduled_run_begins_later_and_is_settled_if_it_never_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(RUNS, str(tmp_path / "runs.txt"))
    about = {"experiment": "spine", "run_name": "later", "tags": {"family": "mlp"}, "params": {"seed": 3}}
    run_id = Tracker.schedule(**about)
    assert status_of(run_id) == "SCHEDULED"
    assert query("SELECT value FROM params WHERE key = 'seed' AND run_uuid = ?", run_id) == [("3",)]
    assert query("SELECT COUNT(*) FROM metrics WHERE run_uuid = ?", run_id) == [(0,)]  # nothing ran yet
    settle("KILLED", run_id)
    assert status_of(run_id) == "KILLED"
    tracker = Tracker.resume(run_id)
    assert tracker.run_id == run_id
    assert status_of(run_id) == "RUNNING"
    tracker.finish("FINISHED")
    assert status_of(run_id) == "FINISHED"
    assert (tmp_path / "runs.txt").read_text().split() == [run_id, run_id]
