"""SIGTERM to the driver of workers."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from neurofleet.errors import StoppedError
from neurofleet.launch import stopping
from neurofleet.watch import STOP


def test_the_first_sigterm_asks_the_workers_and_the_second_does_not_wait(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stopping.stopping(tmp_path):
        assert (tmp_path / STOP).read_text() == ""
        os.kill(os.getpid(), signal.SIGTERM)
        assert (tmp_path / STOP).read_text() == "15"
        assert "the workers save a checkpoint" in capsys.readouterr().out
        with pytest.raises(StoppedError, match="before the workers could save") as caught:
            os.kill(os.getpid(), signal.SIGTERM)
        assert caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert list(tmp_path.iterdir()) == []


def test_workers_that_take_too_long_are_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "PATIENCE", 0.05)

    def late() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(20)

    with pytest.raises(StoppedError), stopping.stopping(tmp_path):
        late()
