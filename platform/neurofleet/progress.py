"""Progress of a run, as a live bar on a terminal and as one plain line a second elsewhere.

The plain line is also how progress crosses a job's log: `parse` finds it there, and the bar is drawn again where
somebody looks.

    progress step=120/756 epoch=3/12 train/loss=0.1234 val/accuracy=0.9712 eta=12
"""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import sys
import time
from typing import Any

_LINE = re.compile(
    r"progress step=(?P<step>\d+)/(?P<num_steps>\d+) epoch=(?P<epoch>\d+)/(?P<num_epochs>\d+)"
    r"(?P<metrics>(?: [\w/.-]+=(?:nan|-?inf|-?\d+(?:\.\d+)?(?:e[-+]\d+)?))*?) eta=(?P<eta>\d+)"
)


@dataclasses.dataclass(frozen=True)
class Progress:
    """step, epoch: done so far; eta: seconds left; metrics: the latest of each, by name."""

    step: int
    num_steps: int
    epoch: int
    num_epochs: int
    eta: float
    metrics: dict[str, float]

    def line(self) -> str:
        metrics = "".join(f" {name}={value:.4g}" for name, value in self.metrics.items())
        done = f"step={self.step}/{self.num_steps} epoch={self.epoch}/{self.num_epochs}"
        return f"progress {done}{metrics} eta={self.eta:.0f}"


def parse(line: str) -> Progress | None:
    """The progress that stands anywhere in a line of a log, if any does."""
    found = _LINE.search(line)
    if found is None:
        return None
    pairs = (pair.split("=") for pair in found["metrics"].split())
    return Progress(
        int(found["step"]),
        int(found["num_steps"]),
        int(found["epoch"]),
        int(found["num_epochs"]),
        float(found["eta"]),
        {name: float(value) for name, value in pairs},
    )


class Bar:
    """Context manager that shows the latest `Progress`: a rich bar on a terminal, else a line a second on stdout."""

    def __init__(self, description: str) -> None:
        self.description = description
        self._display: Any = None
        self._last_line = 0.0

    def __enter__(self) -> Bar:
        if sys.stdout.isatty() and importlib.util.find_spec("rich"):  # a bare training machine gets the plain lines
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Display
            from rich.table import Column

            whole = Column(no_wrap=True, min_width=9)
            self._display = Display(
                TextColumn("[bold]{task.description}", table_column=Column(no_wrap=True)),
                BarColumn(bar_width=24),
                TextColumn("{task.completed}/{task.total}", table_column=whole),
                TextColumn("epoch {task.fields[epoch]}", table_column=whole),
                TimeElapsedColumn(),
                TextColumn("eta {task.fields[eta]}", table_column=Column(no_wrap=True)),
                TextColumn("[cyan]{task.fields[metrics]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
                refresh_per_second=5,
            )
            self._display.start()
            self._task = self._display.add_task(self.description, total=None, epoch="-", metrics="", eta="-:--")
        return self

    def update(self, progress: Progress, *, force: bool = False) -> None:
        if self._display is not None:
            shown = [item for item in progress.metrics.items() if item[0] != "train/loss_epoch"]
            self._display.update(
                self._task,
                completed=progress.step,
                total=progress.num_steps,
                epoch=f"{progress.epoch}/{progress.num_epochs}",
                metrics="  ".join(f"{name} {value:.4g}" for name, value in shown),
                eta=f"{int(progress.eta) // 60}:{int(progress.eta) % 60:02d}",
            )
        elif force or time.monotonic() - self._last_line >= 1:
            self._last_line = time.monotonic()
            print(progress.line(), flush=True)

    def __exit__(self, *_: object) -> None:
        if self._display is not None:
            self._display.stop()
