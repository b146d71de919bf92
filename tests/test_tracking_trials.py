"""Trials become runs below the study's own, each once and whole, whichever way they are written."""

from __future__ import annotations

import math
import os
import signal
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from neurofleet import paths
from neurofleet.errors import RunError
from neurofleet.tracking import Tracker, prepare_store, records, store_uri
from neurofleet.tracking.delivery import Delivery
from neurofleet.tracking.trials import PARAMS_PER_BATCH, TrialRuns

# MLflow with SQLAlchemy 2.1
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")
TABLES = {
    "runs": "name, source_type, source_name, entry_point_name, user_id, status, start_time, end_time, source_version, "
    "lifecycle_stage, experiment_id, deleted_time, replace(artifact_uri, run_uuid, 'ID')",
    "params": "key, value",
    "tags": "key, value",
    "metrics": "key, value, timestamp, step, is_nan",
    "latest_metrics": "key, value, timestamp, step, is_nan",
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NEUROFLEET_HOME", str(tmp_path / "home"))
    prepare_store()
    return tmp_path / "home"


def database() -> Path:
    return Path(store_uri().removeprefix("sqlite:///"))


def query(question: str, *values: Any) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(database(), timeout=20)
    try:
        return connection.execute(question, values).fetchall()
    finally:
        connection.close()


def made(number: int, **changes: Any) -> dict[str, Any]:
    """A trial of 3 epochs, as the engine logs it."""
    points = [
        (name, value, 10 * epoch, 5000 + epoch)
        for epoch in range(3)
        for name, value in [("val/loss", 1 / (epoch + number + 1)), ("val/accuracy", epoch / 3)]
    ]
    return {
        "number": number,
        "name": f"search trial {number}",
        "status": "FINISHED",
        "params": {"optimizer": {"lr": 0.01 * number}, "family": {"width": 64}, "seed": number},
        "tags": {"trial.state": "COMPLETE"},
        "start_time": 4000,
        "end_time": 6000 + number,
        "points": points,
        **changes,
    }


def decoded(trial: dict[str, Any]) -> records.Trial:
    flat = {f"p{index}": "value" for index in range(PARAMS_PER_BATCH + 20)}
    return records.decode_trial(records.decode(records.encode_trial(trial | {"params": flat}))["trial"])


def below(parent: str) -> dict[str, str]:
    """Run ids of the trials of a study, by number."""
    return dict(
        query(
            "SELECT numbers.value, run_uuid FROM tags AS numbers JOIN tags AS parents USING (run_uuid) "
            "WHERE numbers.key = 'trial.number' AND parents.key = 'mlflow.parentRunId' AND parents.value = ?",
            parent,
        )
    )


def contents(run_id: str) -> dict[str, list[tuple[Any, ...]]]:
    return {
        table: query(f"SELECT {columns} FROM {table} WHERE run_uuid = ? ORDER BY 1, 2, 3", run_id)
        for table, columns in (TABLES | {"params": "key, value, 0", "tags": "key, value, 0"}).items()
    }


def ignored(reason: str) -> None:
    raise AssertionError(reason)


def test_a_trial_comes_back_exactly() -> None:
    trial = made(3, points=[("a", 0.1, 7, 1000), ("b", -math.inf, 8, 1001)])
    found = records.decode_trial(records.decode(records.encode_trial(trial | {"params": {"seed": 3}}))["trial"])
    assert found.points == [records.Point("a", 0.1, 1000, 7), records.Point("b", -math.inf, 1001, 8)]
    assert (found.number, found.params, found.end_time) == (3, {"seed": "3"}, 6003)


def test_direct_rows_are_those_of_the_client() -> None:
    client = MlflowClient(store_uri())
    given = {"mlflow.user": "ada", "mlflow.source.name": "neurofleet tune", "mlflow.source.type": "LOCAL", "other": "x"}
    parents = [client.create_run("0", tags=given).info.run_id for _ in range(2)]
    odd = [("worst", math.nan, 2, 5000), ("worst", math.inf, 2, 5000), ("low", -math.inf, 1, 1), ("low", 1.0, 1, 1)]
    trials = [
        decoded(made(0, points=odd)),
        decoded(made(1, status="KILLED", tags={"trial.state": "PRUNED", "note": "y" * 7000})),
        decoded(made(2, status="FAILED", points=[("loss", 1.0, step, step) for step in range(1100)])),
        decoded(made(3, points=[])),
    ]
    for parent, file in zip(parents, (None, database()), strict=True):
        TrialRuns(client, parent, file, ignored).write(trials)
    through_client, direct = (below(parent) for parent in parents)
    assert sorted(direct) == sorted(through_client) == ["0", "1", "2", "3"]
    for number in direct:
        expected = contents(through_client[number])
        found = contents(direct[number])
        expected["tags"] = [
            tuple(each.replace(parents[0], parents[1]) if isinstance(each, str) else each for each in row)
            for row in expected["tags"]
        ]
        assert found == expected
        assert len(found["params"]) == PARAMS_PER_BATCH + 20
    assert query("SELECT count(*) FROM metrics WHERE run_uuid = ?", direct["2"]) == [(1100,)]
    others = query("SELECT name FROM sqlite_master WHERE type = 'table'")
    filled = {name for (name,) in others if query(f'SELECT count(*) FROM "{name}"') != [(0,)]}
    assert filled <= {*TABLES, "experiments", "workspaces", "alembic_version"}


def test_a_study_and_its_trials() -> None:
    tracker = Tracker.start(experiment="spine", run_name="search", tags={}, params={})
    for number in range(5):
        tracker.log_trial(made(number))
    tracker.log_trial(made(5, status="KILLED", tags={"trial.state": "PRUNED"}))
    tracker.log_many([(6, math.nan, {"best/val/loss": 0.25})])
    tracker.finish()
    [(experiment,)] = query("SELECT experiment_id FROM runs WHERE run_uuid = ?", tracker.run_id)
    client = MlflowClient(store_uri())
    found = client.search_runs(
        [str(experiment)], f"tags.`mlflow.parentRunId` = '{tracker.run_id}'", order_by=["start_time"]
    )
    assert sorted(run.info.run_name for run in found) == [f"search trial {number}" for number in range(6)]
    run = next(run for run in found if run.data.tags["trial.number"] == "4")
    assert run.data.params == {"optimizer.lr": "0.04", "family.width": "64", "seed": "4"}
    assert run.data.metrics == {"val/loss": 1 / 7, "val/accuracy": 2 / 3}
    assert run.data.tags["mlflow.source.name"] == " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    assert (run.info.status, run.info.start_time, run.info.end_time) == ("FINISHED", 4000, 6004)
    curve = client.get_metric_history(run.info.run_id, "val/loss")
    assert [(point.step, point.value, point.timestamp) for point in curve] == [
        (0, 1 / 5, 5000),
        (10, 1 / 6, 5001),
        (20, 1 / 7, 5002),
    ]
    pruned = next(run for run in found if run.data.tags["trial.number"] == "5")
    assert (pruned.info.status, pruned.data.tags["trial.state"]) == ("KILLED", "PRUNED")
    assert run.info.artifact_uri.endswith(f"{run.info.run_id}/artifacts")


def test_trials_sent_twice_arrive_once() -> None:
    tracker = Tracker.start(experiment="spine", run_name="search", tags={}, params={})
    tracker.log_trial(made(0))
    tracker.log_trial(made(1))
    while len(below(tracker.run_id)) < 2:
        pass
    first = below(tracker.run_id)
    os.kill(tracker._child.pid, signal.SIGKILL)  # after sending, as if before remembering
    tracker._child.wait()
    for file in tracker._spool_path.parent.glob("*.state"):
        file.unlink()
    tracker.log_trial(made(2))
    tracker.finish("KILLED")
    again = Tracker.resume(tracker.run_id)
    for number in range(4):  # who goes on with a study need not know which trials were logged
        again.log_trial(made(number, end_time=9999))
    again.finish()
    assert sorted(below(tracker.run_id)) == ["0", "1", "2", "3"]
    assert first.items() <= below(tracker.run_id).items()
    assert query("SELECT count(*) FROM runs") == [(5,)]
    assert query("SELECT count(*) FROM metrics WHERE key = 'val/loss'") == [(12,)]
    assert query("SELECT end_time FROM runs WHERE run_uuid = ?", first["1"]) == [(6001,)]


@pytest.mark.parametrize("direct_first", [True, False])
def test_a_trial_that_came_the_other_way_is_known(direct_first: bool) -> None:
    """A server may keep its runs in the file that another process writes directly."""
    client = MlflowClient(store_uri())
    parent = client.create_run("0").info.run_id
    for file in (database(), None) if direct_first else (None, database()):
        TrialRuns(client, parent, file, ignored).write([decoded(made(0)), decoded(made(1))])
    assert sorted(below(parent)) == ["0", "1"]
    assert query("SELECT count(*) FROM runs") == [(3,)]


@pytest.mark.parametrize("method", ["create_run", "log_batch", "set_terminated"])
def test_a_server_that_goes_away_in_the_middle(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It obeyed, and its answer was lost: the trial is gone on with, none is made twice."""
    client = MlflowClient(store_uri())
    parent = client.create_run("0").info.run_id
    runs = TrialRuns(client, parent, None, ignored)
    answer = getattr(client, method)

    def lose(*arguments: Any, **named: Any) -> None:
        answer(*arguments, **named)
        monkeypatch.undo()
        raise MlflowException("connection lost")

    monkeypatch.setattr(client, method, lose)
    home = paths.home()
    with pytest.raises(MlflowException, match="connection lost"):
        runs.write([decoded(made(0)), decoded(made(1))])
    monkeypatch.setenv("NEUROFLEET_HOME", str(home))  # undone too
    runs.write([decoded(made(0)), decoded(made(1))])
    assert query("SELECT name, status FROM runs WHERE name LIKE 'search%' ORDER BY 1") == [
        ("search trial 0", "FINISHED"),
        ("search trial 1", "FINISHED"),
    ]
    assert query("SELECT count(*) FROM params") == [(2 * (PARAMS_PER_BATCH + 20),)]
    assert query("SELECT count(*) FROM metrics") == [(12,)]


def test_a_failure_in_the_middle_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    client = MlflowClient(store_uri())
    parent = client.create_run("0").info.run_id
    runs = TrialRuns(client, parent, database(), ignored)
    broken = decoded(made(1))._replace(status="ODD")  # the tables refuse it
    with pytest.raises(sqlite3.IntegrityError):
        runs.write([decoded(made(0)), broken])
    assert below(parent) == {}
    runs.write([decoded(made(0))])
    assert sorted(below(parent)) == ["0"]


def test_what_mlflow_refuses_is_left_out_and_reported() -> None:
    tracker = Tracker.start(experiment="spine", run_name="search", tags={}, params={})
    tracker.log_trial(
        made(0, points=[("good", 1.0, 0, 0), ("bad?", 1.0, 0, 0)], params={"x" * 300: 1, "lr": "y" * 7000})
    )
    tracker.log_trial(made(1))
    with pytest.raises(RunError, match=r"(?s)bad\?"):
        tracker.finish()
    runs = below(tracker.run_id)
    assert [name for (name,) in query("SELECT key FROM metrics WHERE run_uuid = ?", runs["0"])] == ["good"]
    assert query("SELECT key, length(value) FROM params WHERE run_uuid = ?", runs["0"]) == [("lr", 6000)]
    assert query("SELECT count(*) FROM metrics WHERE run_uuid = ?", runs["1"]) == [(6,)]


def test_a_damaged_trial_costs_the_others_nothing(tmp_path: Path) -> None:
    client = MlflowClient(store_uri())
    parent = client.create_run("0").info.run_id
    spool = tmp_path / "1.jsonl"
    flat = made(1, params={"seed": 1})
    spool.write_bytes(b'{"trial": {"number": 0}}\n' + records.encode_trial(flat) + records.encode({"end": "FINISHED"}))
    delivery = Delivery(client, parent, spool)
    delivery.ship()
    assert sorted(below(parent)) == ["1"]
    assert [reason.split(":")[0] for reason in delivery.refused] == [f"a damaged record in {spool}"]
    delivery.file.close()


def test_a_trial_ends_as_runs_do() -> None:
    tracker = Tracker.start(experiment="spine", run_name="search", tags={}, params={})
    with pytest.raises(ValueError, match="got 'PRUNED'"):
        tracker.log_trial(made(0, status="PRUNED"))
    tracker.finish()
