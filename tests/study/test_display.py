"""How a study stands, on a line and on a terminal."""

from __future__ import annotations

import io
import sys
from datetime import datetime
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from rich.console import Console

from neurofleet.study import display as module
from neurofleet.study.display import Display

SPACE = {
    "optimizer.lr": FloatDistribution(1e-4, 1e-1, log=True),
    "family.hidden": CategoricalDistribution(["[64, 64]", "[8]"]),
}


def trial(number: int, state: TrialState, value: float | None = None) -> FrozenTrial:
    made = create_trial(
        state=state,
        value=value,
        params={"optimizer.lr": 0.001 * (number + 1), "family.hidden": "[64, 64]"},
        distributions=SPACE,
    )
    made.number, made.datetime_start = number, datetime(2026, 1, 1)
    return made


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds, as the display sees them."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def some() -> list[FrozenTrial]:
    return [
        *(trial(number, TrialState.COMPLETE, 0.5 - 0.01 * number) for number in range(4)),
        *(trial(number, TrialState.PRUNED, 0.9) for number in range(4, 6)),
        trial(6, TrialState.FAIL),
        *(trial(number, TrialState.RUNNING) for number in range(7, 10)),
        trial(10, TrialState.WAITING),
    ]


def test_the_plain_line(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    shown = Display("tries", 16, 100, {"val/loss": 1})
    shown.show(list, None)
    shown.tick(1)  # time counts from here
    clock[0] += 8.0
    trials = some()
    shown.show(lambda: trials, trials[3])
    line = "study 7/16 trials, 3 training, 2 pruned, 1 failed, best val/loss 0.47 (trial 3) eta=10"
    assert shown.line() == line  # seven in eight seconds, nine to go
    assert capsys.readouterr().out.splitlines() == ["study 0/16 trials", line]


def test_steps_count_towards_the_end(clock: list[float]) -> None:
    shown = Display("tries", 4, 100, {"val/loss": 1})
    clock[0] += 50.0  # in which actors start
    shown.show(lambda: [trial(0, TrialState.RUNNING), trial(1, TrialState.RUNNING)], None)
    clock[0] += 5.0
    assert shown.eta() is None
    shown.tick(100)
    assert shown.eta() == pytest.approx(15.0)  # one trial's steps in five seconds
    assert shown.line().endswith("eta=15")


def test_trials_of_earlier_sessions_took_no_time_of_this_one(clock: list[float]) -> None:
    before = [trial(number, TrialState.COMPLETE, 1.0) for number in range(8)]
    shown = Display("tries", 12, 100, {"val/loss": 1})
    shown.show(lambda: before, before[0])
    shown.tick(1)
    assert shown.eta() is None
    clock[0] += 6.0
    after = [*before, trial(8, TrialState.COMPLETE, 1.0), trial(9, TrialState.PRUNED, 1.0)]
    shown.show(lambda: after, before[0])
    assert shown.eta() == pytest.approx(6.0)


def test_a_line_a_second_at_most(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Display("tries", 4, 100, {"val/loss": 1}) as shown:
        for _ in range(30):
            clock[0] += 0.1
            shown.tick(1)
    lines = capsys.readouterr().out.splitlines()
    assert 3 <= len(lines) <= 5
    assert all(line.startswith("study 0/4 trials") for line in lines)


def drawn(trials: list[FrozenTrial], objectives: dict[str, int], width: int = 80) -> list[str]:
    shown: Any = Display("wine-mlp-random-1", 16, 100, objectives)
    shown.show(lambda: trials, trials[3])
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(shown._drawn())
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_the_table_fits_a_terminal() -> None:
    lines = drawn(some(), {"val/loss": 1})
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("wine-mlp-random-1 ")
    assert "7/16" in lines[0]
    assert lines[1] == "4 done   3 training   2 pruned   1 failed"
    rows = [line for line in lines if "0.4" in line or "0.5" in line]
    assert [float(row.replace("│", " ").split()[1]) for row in rows] == [0.47, 0.48, 0.49, 0.5], "best first"
    heads = [word.strip() for word in lines[4].split("┃")]
    assert heads == ["", "trial", "val/loss", "lr", "hidden", ""]


def test_many_keys_stay_readable(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = ["optimizer.lr", "optimizer.weight_decay", "family.dropout", "schedule.warmup", "family.encoder.dropout"]
    monkeypatch.setattr(sys.modules[__name__], "SPACE", {key: FloatDistribution(0, 1) for key in keys})
    made = create_trial(value=0.5, params=dict.fromkeys(keys, 0.123456), distributions=SPACE)
    monkeypatch.setattr(made, "number", 3)
    lines = drawn([made] * 4, {"val/loss": 1})
    assert max(map(len, lines)) <= 80
    rows = [[cell.strip() for cell in line.split("┃")[1:-1]] for line in lines if "┃" in line]
    heads = ["".join(column) for column in zip(*rows, strict=True)]
    assert heads == [
        *("trial", "val/loss", "lr", "weight_decay", "family.dropout", "warmup", "family.encoder.dropout")
    ], "two keys that end alike are told apart"
    assert any("0.1235" in line for line in lines)
    assert "…" not in "".join(lines)


def test_higher_may_be_better() -> None:
    rows = [line for line in drawn(some(), {"val/accuracy": -1}) if "0.4" in line or "0.5" in line]
    assert [float(row.replace("│", " ").split()[1]) for row in rows] == [0.5, 0.49, 0.48, 0.47]


def test_no_more_rows_than_fit() -> None:
    many = [trial(number, TrialState.COMPLETE, 0.4 + 0.001 * number) for number in range(16)]
    rows = [line for line in drawn(many, {"val/loss": 1}) if "0.40" in line or "0.41" in line or " 0.4 " in line]
    assert len(rows) == module.MOST_ROWS


def test_no_table_before_the_first_trial_is_over() -> None:
    shown: Any = Display("tries", 4, 100, {"val/loss": 1})
    shown.show(lambda: [trial(0, TrialState.RUNNING), trial(1, TrialState.PRUNED, 0.9)], None)
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    console.print(shown._drawn())
    assert "best by" not in console.file.getvalue()  # type: ignore[attr-defined]
