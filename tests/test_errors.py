"""What a process says of its own end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neurofleet import errors


def fail(error: BaseException) -> Callable[[], None]:
    def raises() -> None:
        raise error

    return raises


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[BaseException], dict[str, Any]]:
    """What a process leaves that dies of an error."""
    place = tmp_path / "outcome.json"
    monkeypatch.setenv(errors.OUTCOME, str(place))

    def tell(error: BaseException) -> dict[str, Any]:
        with pytest.raises((SystemExit, ValueError)), errors.exit_on_error():
            fail(error)()
        return dict(json.loads(place.read_text()))

    return tell


def test_an_error_of_ours_is_told_in_a_line(told: Callable[[BaseException], dict[str, Any]]) -> None:
    diverged = told(errors.DivergedError("loss is nan", 7))
    assert diverged == {
        "error": "DivergedError",
        "message": "loss is nan",
        "traceback": "",
        "exit_code": 1,
        "step": 7,
        "raised_by": "",
    }
    assert told(errors.ConfigError("no"))["exit_code"] == 2
    assert told(errors.StoppedError("stopped", 15))["exit_code"] == 143


def test_an_unforeseen_error_brings_its_traceback(told: Callable[[BaseException], dict[str, Any]]) -> None:
    outcome = told(ValueError("a\nb"))
    assert (outcome["error"], outcome["message"], outcome["exit_code"]) == ("ValueError", "a", 1)
    assert "in raises" in outcome["traceback"]


def test_a_workers_error_brings_the_workers_rank_and_traceback(told: Callable[[BaseException], dict[str, Any]]) -> None:
    error = errors.WorkerError("worker 1 raised ValueError: no\nTraceback (most recent call last):\n  File ...")
    error.__dict__["raised_by"] = "worker 1"
    outcome = told(error)
    assert (outcome["message"], outcome["raised_by"]) == ("worker 1 raised ValueError: no", "worker 1")
    assert outcome["traceback"].startswith("Traceback")


def test_who_is_no_job_writes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(errors.OUTCOME, raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit), errors.exit_on_error():
        raise errors.ConfigError("no")
    assert list(tmp_path.iterdir()) == []
