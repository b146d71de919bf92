"""Trials of a study that are over, each as one run below the study's own run.

A trial is known by its parent and its number, the tags `mlflow.parentRunId` and `trial.number`; one that has its run
is left alone, so that a record may be sent again.  Where the store is sqlite the rows are written directly, as
`bulk.py` does with metrics and for the same reason: a trial of 60 params and 80 points takes 2 ms of CPU, through
`MlflowClient` 50.  The id of its run follows there from parent and number, and all its rows come in one transaction.
"""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurofleet.tracking.bulk import connect, insert_points
from neurofleet.tracking.lineage import shorten
from neurofleet.tracking.records import Trial, chunks

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PARENT, NUMBER, NAME = "mlflow.parentRunId", "trial.number", "mlflow.runName"
INHERITED = ("mlflow.user", "mlflow.source.name", "mlflow.source.type", "mlflow.source.git.commit")
PARAMS_PER_BATCH = 100
METRICS_PER_BATCH = 900  # MLflow takes 1,000 of both together
RUNS_PER_PAGE = 1000

RUN = (
    "INSERT INTO runs (run_uuid, name, source_type, source_name, entry_point_name, user_id, status, "
    "start_time, end_time, source_version, lifecycle_stage, artifact_uri, experiment_id) "
    "VALUES (?, ?, 'UNKNOWN', '', '', ?, ?, ?, ?, '', 'active', ?, ?) "
    "ON CONFLICT (run_uuid) DO NOTHING"
)
PARAM = "INSERT INTO params (key, value, run_uuid) VALUES (?, ?, ?)"
TAG = "INSERT INTO tags (key, value, run_uuid) VALUES (?, ?, ?)"
KNOWN = (
    "SELECT numbers.value FROM tags AS numbers JOIN tags AS parents USING (run_uuid) "
    "WHERE numbers.key = ? AND parents.key = ? AND parents.value = ?"
)


class TrialRuns:
    """The runs below `parent_id`.

    database: the sqlite file whose tables are those that this package knows, else None
    refuse: takes the reason why something of a trial was left out
    """

    def __init__(
        self, client: MlflowClient, parent_id: str, database: Path | None, refuse: Callable[[str], None]
    ) -> None:
        self.client, self.parent_id, self.database, self.refuse = client, parent_id, database, refuse
        self.connection: sqlite3.Connection | None = None
        self.faults: dict[tuple[str, str], str] = {}
        self.parent: Run | None = None
        self.found: dict[str, tuple[str, str]] | None = None  # number -> id and status of its run

    def write(self, trials: Sequence[Trial]) -> None:
        """Make the runs of those that have none, or only a part of one.

        Raises:
            MlflowException, sqlite3.Error: the store did not take them; calling again goes on.
        """
        if self.parent is None:
            self.parent = self.client.get_run(self.parent_id)
        trials = [self._legal(trial) for trial in trials]
        if self.database is not None:
            self._insert(trials, self.parent)
            return
        try:
            self._send(trials, self.parent)
        except BaseException:
            self.found = None  # whether the last request was obeyed is not known
            raise

    def _insert(self, trials: Sequence[Trial], parent: Run) -> None:
        """One transaction: all of it or nothing."""
        from mlflow.utils.uri import append_to_uri_path

        assert self.database is not None
        experiment_id = parent.info.experiment_id
        if self.connection is None:
            self.artifacts = self.client.get_experiment(experiment_id).artifact_location
            self.connection = connect(self.database)
        connection = self.connection
        # some may have come through a server that keeps them in this file, under ids of its own
        known = {number for (number,) in connection.execute(KNOWN, (NUMBER, PARENT, self.parent_id))}
        with connection:
            for trial in trials:
                run_id = uuid.uuid5(uuid.UUID(self.parent_id), str(trial.number)).hex
                tags = self._tags(trial, parent)
                folder = append_to_uri_path(self.artifacts, run_id, "artifacts")
                run = (run_id, trial.name, tags.get("mlflow.user", "unknown"), trial.status, trial.start_time)
                if str(trial.number) in known or not (
                    connection.execute(RUN, (*run, trial.end_time, folder, int(experiment_id))).rowcount
                ):
                    continue
                connection.executemany(PARAM, [(name, value, run_id) for name, value in trial.params.items()])
                connection.executemany(TAG, [(name, value, run_id) for name, value in tags.items()])
                insert_points(connection, run_id, trial.points)

    def _send(self, trials: Sequence[Trial], parent: Run) -> None:
        from mlflow.entities import Metric, Param

        if self.found is None:
            self.found = self._search(parent)
        for trial in trials:
            number = str(trial.number)
            run_id, status = self.found.get(number, ("", "RUNNING"))
            if status != "RUNNING":
                continue
            if not run_id:
                tags = self._tags(trial, parent)
                made = self.client.create_run(parent.info.experiment_id, trial.start_time, tags, trial.name)
                run_id = made.info.run_id
            params = [Param(*param) for param in trial.params.items()]
            metrics = [Metric(*point) for point in trial.points]
            batches = zip_longest(chunks(metrics, METRICS_PER_BATCH), chunks(params, PARAMS_PER_BATCH))
            for some_metrics, some_params in batches:
                self.client.log_batch(run_id, metrics=some_metrics or [], params=some_params or [])
            self.client.set_terminated(run_id, trial.status, trial.end_time)
            self.found[number] = (run_id, trial.status)

    def _search(self, parent: Run) -> dict[str, tuple[str, str]]:
        from mlflow.entities import ViewType

        found: dict[str, tuple[str, str]] = {}
        question, token = f"tags.`{PARENT}` = '{self.parent_id}'", None
        while True:
            page = self.client.search_runs(
                [parent.info.experiment_id], question, ViewType.ALL, RUNS_PER_PAGE, page_token=token
            )
            found |= {
                run.data.tags[NUMBER]: (run.info.run_id, run.info.status) for run in page if NUMBER in run.data.tags
            }
            token = page.token
            if not token:
                return found

    def _tags(self, trial: Trial, parent: Run) -> dict[str, str]:
        inherited = {name: parent.data.tags[name] for name in INHERITED if name in parent.data.tags}
        own = {PARENT: self.parent_id, NUMBER: str(trial.number), NAME: trial.name}
        return inherited | trial.tags | own

    def _legal(self, trial: Trial) -> Trial:
        """Without the names that MLflow refuses, and with no value longer than it takes."""
        return trial._replace(
            params={name: shorten(value) for name, value in trial.params.items() if self._allows("param", name)},
            tags={name: shorten(value) for name, value in trial.tags.items() if self._allows("tag", name)},
            points=[point for point in trial.points if self._allows("metric", point.name)],
        )

    def _allows(self, kind: str, name: str) -> bool:
        if (kind, name) not in self.faults:
            self.faults[kind, name] = fault(kind, name)
            if self.faults[kind, name]:
                self.refuse(self.faults[kind, name])
        return not self.faults[kind, name]


def fault(kind: str, name: str) -> str:
    """What MLflow says against the name of a `param`, `tag` or `metric`; empty if nothing."""
    from mlflow.exceptions import MlflowException
    from mlflow.utils import validation

    checks: dict[str, Callable[[], Any]] = {
        "param": lambda: validation._validate_param(name, ""),
        "tag": lambda: validation._validate_tag(name, ""),
        "metric": lambda: validation._validate_metric(name, 0.0, 0, 0),
    }
    try:
        checks[kind]()
    except MlflowException as error:
        return str(error)
    return ""
