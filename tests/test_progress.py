"""Progress: the plain line is read back wherever it stands; the bar draws on a terminal and nowhere else."""

from __future__ import annotations

import math
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest

from neurofleet.progress import Bar, Progress, parse

PLAIN = Progress(120, 756, 3, 12, 12.0, {"train/loss": 0.1234, "val/accuracy": 0.9712})
EXAMPLES = [
    PLAIN,
    Progress(0, 1, 0, 1, 0.0, {}),
    Progress(1, 10**9, 0, 1000, 86_400.0, {"train/loss": 1e-12, "val/r2": -1234.0, "val/f1": 0.0, "big": 3.5e30}),
    Progress(5, 9, 1, 2, 3.0, {"train/loss": math.inf, "val/loss": -math.inf}),
    Progress(5, 9, 1, 2, 3.0, {"val/some.thing-else_2/deep": 1.0, "step": 2.0}),
]


@pytest.mark.parametrize("progress", EXAMPLES)
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", ""),
        ("(RayTrainWorker pid=1) ", "\n"),
        ("\x1b[36m(worker)\x1b[0m ", " \x1b[32m [repeated 2x]"),
        ("12:00 INFO ", "\r\n"),
    ],
)
def test_a_line_is_read_back(progress: Progress, before: str, after: str) -> None:
    assert parse(f"{before}{progress.line()}{after}") == progress


def test_the_line_is_the_one_of_the_module_text() -> None:
    assert PLAIN.line() == "progress step=120/756 epoch=3/12 train/loss=0.1234 val/accuracy=0.9712 eta=12"


def test_nan_is_read_back() -> None:
    found = parse(Progress(1, 2, 0, 1, 1.0, {"train/loss": math.nan}).line())
    assert found is not None
    assert math.isnan(found.metrics["train/loss"])


@pytest.mark.parametrize(
    "line",
    [
        "",
        "progress",
        "progress step=1/2",
        "progress step=1/2 epoch=1/2 train/loss=0.1",
        "progress step=x/2 epoch=1/2 eta=3",
        "progress step=1/2 epoch=1/2 train/loss=fine eta=3",
        "progress step=1/2 epoch=1/2 train/loss=e-. eta=3",
    ],
)
def test_other_lines_are_none(line: str) -> None:
    assert parse(line) is None


def test_off_a_terminal_it_prints_a_line_a_second(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Bar("cnn on digits") as bar:
        for step in range(101):  # ten a second, for ten seconds
            now[0] = 1000 + step / 10
            bar.update(Progress(step, 100, 0, 1, 1.0, {}))
        bar.update(Progress(100, 100, 1, 1, 0.0, {"train/loss": 0.5}), force=True)
    lines = capsys.readouterr().out.splitlines()
    found = [parse(line) for line in lines]
    assert [one.step for one in found if one is not None] == [*range(0, 101, 10), 100]
    assert lines[-1] == "progress step=100/100 epoch=1/1 train/loss=0.5 eta=0"


DRAW = """
from neurofleet.progress import Bar, Progress
with Bar("cnn on digits") as bar:
    bar.update(Progress(3, 7, 1, 2, 65.0, {"train/loss": 0.25}))
"""


def test_on_a_terminal_it_draws(project_root: Path) -> None:
    master, terminal = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "120"}
    process = subprocess.Popen([sys.executable, "-c", DRAW], stdout=terminal, cwd=project_root, env=environment)
    os.close(terminal)
    drawn = b""
    while True:
        try:
            part = os.read(master, 4096)
        except OSError:  # how Linux says that the last writer has closed the terminal
            break
        if not part:
            break
        drawn += part
    os.close(master)
    assert process.wait() == 0
    text = drawn.decode()
    for expected in ("cnn on digits", "3/7", "epoch 1/2", "train/loss 0.25", "eta 1:05"):
        assert expected in text
    assert parse(text) is None, "the plain line is for logs alone"
