"""A study's journal: what is flushed is there, what is torn is cut off, and optuna reads the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from neurofleet.errors import ConfigError, RunError
from neurofleet.experiment import Dimension
from neurofleet.study import storage

MINIMIZE = [StudyDirection.MINIMIZE]
SPACE = {
    "optimizer.lr": Dimension("float", low=1e-4, high=1e-1, log=True),
    "family.dropout": Dimension("float", low=0.0, high=0.5, step=0.1),
    "family.width": Dimension("int", low=4, high=64, log=True, step=1),
    "family.depth": Dimension("int", low=1, high=7, step=2),
    "family.hidden": Dimension("categorical", choices=([8], [8, 8], [])),
    "family.activation": Dimension("categorical", choices=("relu", "tanh", None, True, 3)),
    "family.augmentation": Dimension("categorical", choices=({"degrees": 0.0}, {"degrees": 9.0})),
}

pytestmark = pytest.mark.usefixtures("home")


def filled(opened: storage.Opened) -> None:
    distributions = {key: storage.distribution(one) for key, one in SPACE.items()}
    for number in range(4):
        trial = opened.study.ask(distributions)
        opened.storage.set_trial_intermediate_value(trial._trial_id, 1, 0.1 * number)
        opened.storage.set_trial_user_attr(trial._trial_id, "scores", {"val/loss": 0.1 * number})
        state = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, None)[number]
        if state is not None:
            opened.study.tell(number, 0.5 if state == TrialState.COMPLETE else None, state)
    opened.describe({"overrides": ["family=mlp"], "space": {key: one.to_dict() for key, one in SPACE.items()}})


def plain(trials: list[FrozenTrial]) -> list[Any]:
    names = ("number", "state", "values", "params", "distributions", "user_attrs", "intermediate_values")
    return [[getattr(one, name) for name in (*names, "datetime_start", "datetime_complete")] for one in trials]


def test_a_study_makes_the_round() -> None:
    with storage.opened("tries", MINIMIZE) as opened:
        filled(opened)
        before = plain(opened.study.get_trials())
    with storage.opened("tries", MINIMIZE) as again:
        assert plain(again.study.get_trials()) == before
        assert again.best is not None
        assert again.best.number == 0
    known = storage.attributes("tries")
    assert known is not None
    assert {key: Dimension.from_dict(one) for key, one in known["space"].items()} == SPACE
    assert storage.names() == ["tries"]


def test_optuna_reads_the_same_from_the_same_file() -> None:
    """As optuna-dashboard does."""
    with storage.opened("tries", MINIMIZE) as opened:
        filled(opened)
        ours = plain(opened.study.get_trials())
        path = opened.folder / "journal.log"
    backend = JournalFileBackend(str(path))
    study = optuna.load_study(study_name="tries", storage=JournalStorage(backend))
    assert plain(study.get_trials()) == ours
    assert study.user_attrs["overrides"] == ["family=mlp"]
    assert list(backend.read_logs(0)) == list(storage.Journal(path).read_logs(0))


def test_what_optuna_wrote_can_be_gone_on_with(tmp_path: Path) -> None:
    path = storage.folder("theirs") / "journal.log"
    path.parent.mkdir(parents=True)
    study = optuna.create_study(study_name="theirs", storage=JournalStorage(JournalFileBackend(str(path))))
    study.tell(study.ask({"x": FloatDistribution(0, 1)}), 0.25)
    with storage.opened("theirs", MINIMIZE) as opened:
        assert [trial.value for trial in opened.study.get_trials()] == [0.25]


def test_nothing_is_on_disk_before_it_is_flushed() -> None:
    with storage.opened("tries", MINIMIZE) as opened:
        opened.flush()
        path = opened.folder / "journal.log"
        before = path.read_bytes()
        opened.study.ask({"x": FloatDistribution(0, 1)})
        assert path.read_bytes() == before
        opened.flush()
        after = path.read_bytes()
        assert after.startswith(before)
        assert len(after) > len(before)
        opened.flush()
        assert path.read_bytes() == after


@pytest.mark.parametrize("cut", [1, 7])
def test_a_torn_last_line_is_cut_off(cut: int) -> None:
    with storage.opened("tries", MINIMIZE) as opened:
        opened.study.tell(opened.study.ask({"x": FloatDistribution(0, 1)}), 1.0)
        opened.flush()
        opened.study.ask({"x": FloatDistribution(0, 1)})
        path = opened.folder / "journal.log"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:-cut])
    with storage.opened("tries", MINIMIZE) as again:
        assert again.study.get_trials()[0].state == TrialState.COMPLETE
        again.study.tell(again.study.ask({"x": FloatDistribution(0, 1)}), 2.0)
    whole = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert whole[: len(lines) - 1] == [json.loads(line) for line in lines[:-1]]


def test_a_line_that_is_no_json_is_named() -> None:
    path = storage.folder("broken") / "journal.log"
    path.parent.mkdir(parents=True)
    path.write_bytes(b'{"op_code": 0}\nnonsense\n')
    with pytest.raises(RunError, match="needs to hold a study as JSON lines"):
        storage.attributes("broken")


def test_a_study_that_was_cut_before_it_began_is_no_study() -> None:
    assert storage.attributes("tries") is None
    with storage.opened("tries", MINIMIZE):
        pass
    assert storage.attributes("tries") is None


HOLD = """
import sys, time
from optuna.study import StudyDirection
from neurofleet.study import storage
with storage.opened("tries", [StudyDirection.MINIMIZE]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_two_processes_on_one_study_are_refused() -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    complaint = "study tries is still going in another process"
    with pytest.raises(ConfigError, match=complaint), storage.opened("tries", MINIMIZE):
        pass
    holder.kill()
    holder.communicate()
    with storage.opened("tries", MINIMIZE):  # what held it is dead
        pass


def test_a_study_is_held_by_one() -> None:
    with storage.opened("tries", MINIMIZE):
        with pytest.raises(ConfigError, match="still going"), storage.opened("tries", MINIMIZE):
            pass
        with storage.opened("others", MINIMIZE):
            pass


def test_a_name_that_is_unknown_gets_the_nearest() -> None:
    with storage.opened("digits-mlp", MINIMIZE):
        pass
    with pytest.raises(ConfigError, match=r"no study 'digit-mlp'.*digits-mlp"):
        storage.need("digit-mlp")
    storage.need("digits-mlp")


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("optimizer.lr", FloatDistribution(1e-4, 1e-1, log=True)),
        ("family.dropout", FloatDistribution(0.0, 0.5, step=0.1)),
        ("family.width", IntDistribution(4, 64, log=True)),
        ("family.depth", IntDistribution(1, 7, step=2)),
        ("family.hidden", CategoricalDistribution(["[8]", "[8, 8]", "[]"])),
        ("family.activation", CategoricalDistribution(["relu", "tanh", None, True, 3])),
    ],
)
def test_dimensions_are_what_optuna_calls_them(key: str, expected: object) -> None:
    assert storage.distribution(SPACE[key]) == expected


def test_values_and_params_are_inverse() -> None:
    for choice in range(2):
        values = {key: one.choices[choice] if one.choices else one.low for key, one in SPACE.items()}
        params = storage.params(SPACE, values)
        assert storage.values(SPACE, params) == values
        json.dumps(params)


def test_an_interrupt_after_writing_writes_nothing_twice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    journal = storage.Journal(tmp_path / "journal.log")
    journal.append_logs([{"a": 1}, {"b": 2}])

    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            journal.flush()
    journal.flush()
    journal.append_logs([{"c": 3}])
    journal.flush()
    assert (tmp_path / "journal.log").read_text() == '{"a":1}\n{"b":2}\n{"c":3}\n'
