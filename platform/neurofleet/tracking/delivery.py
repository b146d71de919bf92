"""From a spool file to MLflow: in order, each record once.

The offset up to which a spool was delivered lies beside it (`<spool>.state`, replaced atomically and synced after
each batch).  A child that died between sending and saving sends that batch again; MLflow keeps one row.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from neurofleet.tracking import records
from neurofleet.tracking.bulk import METRICS_PER_TRANSACTION, SqliteMetrics
from neurofleet.tracking.lineage import dataset_input, shorten
from neurofleet.tracking.records import Point, Trial
from neurofleet.tracking.store import schema_is_known, sqlite_file
from neurofleet.tracking.trials import TrialRuns

if TYPE_CHECKING:
    from mlflow import MlflowClient

READ_BYTES = 1 << 17
METRICS_PER_BATCH = 1000
PARAMS_PER_BATCH = 100
PERMANENT = {
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "INVALID_STATE",
    "MALFORMED_REQUEST",
    "ENDPOINT_NOT_FOUND",
}
"""MLflow's answers that stay the same however often one asks; any other failure is tried again"""


class Delivery:
    """One spool on its way; `ship()` sends what lies there, and raises what MLflow raised when it cannot go on."""

    def __init__(self, client: MlflowClient, run_id: str, spool: Path) -> None:
        self.client, self.run_id, self.spool = client, run_id, spool
        self.file = open(spool, "rb")  # noqa: SIM115  (holds the lock)
        self.state_file = spool.with_suffix(".state")
        state = json.loads(self.state_file.read_text()) if self.state_file.exists() else {}
        self.offset: int = state.get("offset", 0)
        self.epoch: float | None = state.get("epoch")
        self.refused: list[str] = state.get("refused", [])
        self.ended: bool = state.get("ended", False)
        self.end: str | None = state.get("end")
        self.concluded: bool = state.get("concluded", False)
        self.known: set[tuple[str, float, int]] | None = None
        self.names: set[str] = set()
        self.refused_names: set[str] = set()
        database = sqlite_file(client.tracking_uri) if schema_is_known() else None
        self.bulk = SqliteMetrics(database, run_id) if database else None
        self.trial_runs = TrialRuns(client, run_id, database, self._refuse)

    def lock(self) -> bool:
        """Whether this process may deliver the spool; held until the process ends."""
        self.lock_file = open(self.spool.with_suffix(".lock"), "w")  # noqa: SIM115
        return try_lock(self.lock_file)

    def close(self) -> None:
        """Let go of the spool and of the database; for a process that lives on."""
        connections = [self.bulk.connection if self.bulk else None, self.trial_runs.connection]
        for one in (self.file, getattr(self, "lock_file", None), *connections):
            if one is not None:
                one.close()

    def ship(self) -> int:
        """Send all whole lines; the number of records sent."""
        num_records = 0
        while not self.ended:
            lines = self._read()
            if not lines:
                break
            epoch = self.epoch
            try:
                self._deliver(lines)
            except BaseException:
                self.epoch = epoch  # all of these lines will be sent again
                raise
            self.offset += sum(len(line) for line in lines)
            num_records += len(lines)
            self.save()
        return num_records

    def _deliver(self, lines: list[bytes]) -> None:
        points: list[Point] = []
        trials: list[Trial] = []
        for line in lines:
            try:
                record = records.decode(line)
                if "trial" in record:
                    trials.append(records.decode_trial(record["trial"]))
                    continue
                found, self.epoch = records.decode_points(record, self.epoch) if "rows" in record else ([], self.epoch)
            except records.DAMAGED as error:
                self._refuse(f"a damaged record in {self.spool}: {error}")
                continue
            if "rows" in record:
                points += self._unknown(found)
            else:
                points, trials = self._metrics(points), self._trials(trials)
                self._send(record)
        self._metrics(points)
        self._trials(trials)

    def _read(self) -> list[bytes]:
        """The next whole lines, about READ_BYTES of them; a last line without an end is still being written."""
        self.file.seek(self.offset)
        block = self.file.read(READ_BYTES)
        if block and b"\n" not in block:
            block += self.file.readline()
        return block[: block.rfind(b"\n") + 1].splitlines(keepends=True)

    def _metrics(self, points: list[Point]) -> list[Point]:
        from mlflow.entities import Metric

        def through_client(batch: list[Any]) -> None:
            self.client.log_batch(self.run_id, metrics=[Metric(*point) for point in batch])

        if self.bulk is None:
            for batch in records.chunks(points, METRICS_PER_BATCH):
                self.attempt(through_client, batch)
            return []
        firsts = {point.name: point for point in reversed(points) if point.name not in self.names}
        self.attempt(through_client, list(firsts.values()))
        self.names |= firsts.keys()
        for batch in records.chunks(points, METRICS_PER_TRANSACTION):
            self.bulk.write([point for point in batch if point.name not in self.refused_names])
        return []

    def _trials(self, trials: list[Trial]) -> list[Trial]:
        self.attempt(self.trial_runs.write, trials)
        return []

    def _send(self, record: dict[str, Any]) -> None:
        from mlflow.entities import Param, RunTag

        for batch in records.chunks(record.get("params", {}).items(), PARAMS_PER_BATCH):
            self.attempt(
                lambda some: self.client.log_batch(
                    self.run_id, params=[Param(name, shorten(value)) for name, value in some]
                ),
                batch,
            )
        for batch in records.chunks(record.get("tags", {}).items(), PARAMS_PER_BATCH):
            self.attempt(
                lambda some: self.client.log_batch(
                    self.run_id, tags=[RunTag(name, shorten(value)) for name, value in some]
                ),
                batch,
            )
        if "dataset" in record:
            self.attempt(
                lambda some: self.client.log_inputs(self.run_id, [dataset_input(each) for each in some]),
                [record["dataset"]],
            )
        if "artifact" in record:
            self.attempt(lambda some: self._artifact(*some[0]), [(record["artifact"], record["folder"])])
        if "end" in record:
            self.ended, self.end = True, record["end"]

    def _artifact(self, path: str, folder: str) -> None:
        from mlflow.exceptions import MlflowException

        send = self.client.log_artifacts if os.path.isdir(path) else self.client.log_artifact
        try:
            send(self.run_id, path, folder or None)
        except (MlflowException, OSError):
            raise
        # Every kind of store raises its own (botocore: no credentials, no bucket; a missing package), with no base
        # class in common, and after its own retries.  The file stays in the run's folder, and `finish` says so.
        except Exception as error:  # noqa: BLE001
            self._refuse(f"{path} could not be stored: {type(error).__name__}: {error}")

    def attempt(self, send: Callable[[list[Any]], object], batch: list[Any]) -> None:
        """Send; where MLflow refuses for good, send one by one the kinds in the batch, and note what is refused."""
        from mlflow.exceptions import MlflowException

        if not batch:
            return
        try:
            send(batch)
        except FileNotFoundError as error:
            self._refuse(f"{error.strerror}: {error.filename}")
        except MlflowException as error:
            if error.error_code not in PERMANENT:
                raise
            kinds = {item[0] for item in batch if isinstance(item, tuple)}
            if len(kinds) <= 1:
                self._refuse(str(error))
                self.refused_names |= kinds
                return
            for kind in sorted(kinds):
                self.attempt(send, [item for item in batch if item[0] == kind])

    def _refuse(self, reason: str) -> None:
        if reason not in self.refused and len(self.refused) < 20:
            self.refused.append(reason)

    def save(self) -> None:
        state = {
            "offset": self.offset,
            "epoch": self.epoch,
            "refused": self.refused,
            "ended": self.ended,
            "end": self.end,
            "concluded": self.concluded,
        }
        temporary = self.state_file.with_suffix(".state-new")
        with open(temporary, "w") as file:
            file.write(json.dumps(state))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.state_file)

    def _unknown(self, points: list[Point]) -> list[Point]:
        """Without the metrics that an earlier spool of this run holds: a resumed run repeats the steps since its
        checkpoint, with the same values, and each shall appear once."""
        if self.known is None:
            first = min((point.step for point in points), default=0)
            self.known = {(point.name, point.value, point.step) for point in self._earlier() if point.step >= first}
        if not self.known:
            return points
        return [point for point in points if (point.name, point.value, point.step) not in self.known]

    def _earlier(self) -> Iterator[Point]:
        for spool in sorted(self.spool.parent.glob("*.jsonl")):
            if spool.name >= self.spool.name:
                return
            epoch = None
            with spool.open("rb") as lines:
                for line in lines:
                    if line.startswith(b'{"since"') and line.endswith(b"\n"):
                        try:
                            points, epoch = records.decode_points(records.decode(line), epoch)
                        except records.DAMAGED:  # was refused, and reported, when that spool was delivered
                            continue
                        yield from points


def try_lock(file: IO[Any]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
