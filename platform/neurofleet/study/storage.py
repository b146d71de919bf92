"""Where a study lives: an optuna study in a journal of JSON lines (`optuna-dashboard` reads it) in its own folder.

A journal of optuna's own is synced to disk at every call, at 4 ms each, and a stack reports dozens of trials at a time.
Here a round's calls are written and synced together, before anything else is done with their results.  One process
writes; the folder's lock sees to that.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from neurofleet import checkpoint, paths
from neurofleet import experiment as experiments
from neurofleet.errors import ConfigError, RunError, nearest
from neurofleet.experiment import Dimension, Experiment, Space
from neurofleet.study.lane import Report

optuna.logging.set_verbosity(optuna.logging.WARNING)


DELIVERED = "delivered_until"  # a study's attribute: the tracker has all trials that were over by then


class Journal(BaseJournalBackend):
    """In memory until `flush` writes what is new to the end of the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._logs: list[dict[str, Any]] = []
        self._size = 0  # of the file, as far as it is whole and known
        if path.is_file():
            self._logs = self._read()
        self._written = len(self._logs)

    def _read(self) -> list[dict[str, Any]]:
        """All whole lines; a torn last one, of a process that was killed while writing, is written over."""
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        self._size = len(whole)
        try:
            return [json.loads(line) for line in whole.splitlines()]
        except ValueError as error:
            raise RunError(f"{self.path} needs to hold a study as JSON lines: {error}; put back a copy of it") from None

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        return self._logs[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self._logs += json.loads(json.dumps(logs))  # as they will be read

    def flush(self) -> None:
        """What was written before an interrupt, and is not known to be, is written over, never a second time."""
        new = self._logs[self._written :]
        if new:
            lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in new).encode()
            with self.path.open("r+b" if self.path.exists() else "wb") as file:
                file.seek(self._size)
                file.truncate()
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
            self._written, self._size = self._written + len(new), self._size + len(lines)


class Store(JournalStorage):
    """Optuna looks through all trials for one that waits, whenever it is asked for another.

    none_waits: whether that is known to be in vain
    """

    none_waits = False

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        if self.none_waits and states == (TrialState.WAITING,):
            return []
        return super().get_all_trials(study_id, deepcopy, states)


def folder(name: str) -> Path:
    return paths.home() / "studies" / name


def names() -> list[str]:
    return sorted(path.parent.name for path in (paths.home() / "studies").glob("*/journal.log"))


class Opened:
    """A study that this process writes: `study` in `storage`, and the best trial so far with its weights in `best/`."""

    def __init__(self, study: optuna.Study, storage: Store, journal: Journal, where: Path) -> None:
        self.study, self.storage, self.folder = study, storage, where
        self._journal = journal
        self._best: FrozenTrial | None = None
        for trial in self.trials():
            self._compare(trial)

    def describe(self, attributes: Mapping[str, Any]) -> None:
        """Write down what a later session needs to know."""
        for name, value in attributes.items():
            self.study.set_user_attr(name, value)
        self.flush()

    def flush(self) -> None:
        """Put on disk what is new."""
        self._journal.flush()

    def trials(self) -> Sequence[FrozenTrial]:
        """All trials as they are, at a cost that grows with their number."""
        return self.study.get_trials(deepcopy=False)

    def trial(self, trial_id: int) -> FrozenTrial:
        return self.storage.get_trial(trial_id)

    def tell(self, trial: FrozenTrial, values: Sequence[float] | None, state: TrialState) -> None:
        """Write down how a trial ended."""
        self.study.tell(trial.number, values, state)
        self._compare(self.trial(trial._trial_id))

    def undelivered(self) -> Iterator[FrozenTrial]:
        """Trials that are over and may not have come to the tracker."""
        until = self.study.user_attrs.get(DELIVERED, "")
        for trial in self.trials():
            over = trial.datetime_complete
            if over is not None and over.isoformat() > until and "cut" not in trial.user_attrs:
                yield trial

    @property
    def best(self) -> FrozenTrial | None:
        """The best trial that ended, where there is one objective; the first of equals."""
        return self._best

    def _compare(self, trial: FrozenTrial) -> None:
        if len(self.study.directions) > 1 or trial.state != TrialState.COMPLETE:
            return
        sign = 1 if self.study.direction == StudyDirection.MINIMIZE else -1
        if self._best is None or (sign * trial.values[0], trial.number) < (
            sign * self._best.values[0],
            self._best.number,
        ):
            self._best = trial

    def keep(self, experiment: Experiment, report: Report, overrides: Sequence[str], text: str | None) -> None:
        """Lay the best trial down as a run leaves itself: experiment, spec, weights, history; `text` is the experiment
        as a config, in `experiment/` by the study's name."""
        aside, into = self.folder / "best.part", self.folder / "best"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        experiments.save(experiment, aside / "experiment.yaml")
        experiments.build_data(experiment).spec.save(aside / "spec.json")
        checkpoint.save_weights(aside / "weights.safetensors", report.weights)
        checkpoint.write(aside / "history.json", json.dumps(report.history).encode())
        about = {"trial": report.number, "overrides": list(overrides), "scores": report.scores}
        checkpoint.write(aside / "trial.json", json.dumps(about, indent=1).encode())
        if text is not None:
            (aside / "experiment").mkdir()
            checkpoint.write(aside / "experiment" / f"{self.study.study_name}.yaml", text.encode())
        shutil.rmtree(into, ignore_errors=True)
        aside.rename(into)

    def retry_failed(self) -> int:
        """Let trials that failed be tried again, each once more; returns how many."""
        trials = self.study.get_trials(deepcopy=False)
        retried = {one.user_attrs.get("retry_of") for one in trials}
        failed = [one for one in trials if one.state == TrialState.FAIL and one.number not in retried]
        for one in failed:
            self.study.enqueue_trial(one.params, user_attrs={"retry_of": one.number})
        self.flush()
        return len(failed)


@contextlib.contextmanager
def opened(name: str, directions: Sequence[StudyDirection]) -> Iterator[Opened]:
    """The study of that name, new or old, which this process alone writes as long as the context lasts.

    Raises:
        ConfigError: another process has it.
    """
    where = folder(name)
    where.mkdir(parents=True, exist_ok=True)
    with (where / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"study {name} is still going in another process; wait for it or stop it") from None
        journal = Journal(where / "journal.log")
        store = Store(journal)
        study = optuna.create_study(storage=store, study_name=name, directions=directions, load_if_exists=True)
        try:
            yield Opened(study, store, journal, where)
        finally:
            journal.flush()


def attributes(name: str) -> dict[str, Any] | None:
    """What was written down about a study when it began, or None if there is none of that name."""
    path = folder(name) / "journal.log"
    if not path.is_file():
        return None
    try:
        found = dict(optuna.load_study(study_name=name, storage=JournalStorage(Journal(path))).user_attrs)
    except KeyError:
        return None
    return found or None  # it was cut before it had begun


def trials(name: str) -> list[FrozenTrial]:
    """All trials of a study, whoever writes it."""
    return optuna.load_study(study_name=name, storage=JournalStorage(Journal(folder(name) / "journal.log"))).trials


def need(name: str) -> None:
    """Raise ConfigError unless there is such a study."""
    if not (folder(name) / "journal.log").is_file():
        raise ConfigError(f"there is no study {name!r} to go on with; {nearest(name, names())}")


# What optuna calls a dimension.


def distribution(dimension: Dimension) -> BaseDistribution:
    if dimension.kind == "categorical":
        return CategoricalDistribution([_word(choice) for choice in dimension.choices])
    low, high, step, log = dimension.low, dimension.high, dimension.step, dimension.log
    if dimension.kind == "int":
        return IntDistribution(int(low or 0), int(high or 0), log=log, step=1 if log else int(step or 1))
    return FloatDistribution(float(low or 0), float(high or 0), log=log, step=None if log else step)


def _word(choice: Any) -> Any:
    """What optuna takes for a choice: itself, or JSON where it is a list or a dict."""
    return json.dumps(choice) if isinstance(choice, list | dict) else choice


def values(space: Space, params: Mapping[str, Any]) -> dict[str, Any]:
    """The config's values of a trial's params."""
    found = {}
    for key, dimension in space.items():
        words = {_word(choice): choice for choice in dimension.choices if isinstance(choice, list | dict)}
        value = params[key]
        if isinstance(value, str):
            value = words.get(value, value)
        elif dimension.kind == "float" and not dimension.log:
            value = dimension.nearest(value)  # optuna adds steps up
        found[key] = value
    return found


def last_values(space: Space, trial: FrozenTrial) -> dict[str, Any]:
    """The values that a trial ended with: its own, or what it took over while it trained."""
    inherited = trial.user_attrs.get("inherited")
    return dict(inherited[-1]["values"]) if inherited else values(space, trial.params)


def params(space: Space, values: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `values`."""
    return {key: _word(values[key]) for key in space}
