"""`neurofleet train` with a stopwatch on all that waits for the tracker; imports nothing heavy before it runs."""

from __future__ import annotations

import json
import resource
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from neurofleet.tracking import Tracker


class Waits:
    """Adds up how long the training process waits for its tracker, whichever way it calls it."""

    CALLS = ("start", "log_many", "log_metrics", "log_params", "set_tags", "log_dataset", "log_artifact", "finish")

    def __init__(self) -> None:
        self.seconds = 0.0
        self.longest: dict[str, float] = {}
        self._inside = False
        for name in self.CALLS:
            found = Tracker.__dict__[name]
            timed = self._timed(name, found.__func__ if isinstance(found, classmethod) else found)
            setattr(Tracker, name, classmethod(timed) if isinstance(found, classmethod) else timed)
        run_id = Tracker.__dict__["run_id"].fget
        Tracker.run_id = property(self._timed("run_id", run_id))  # type: ignore[method-assign, assignment]

    def _timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            if self._inside:
                return call(*arguments, **named)
            self._inside, begin = True, time.perf_counter()
            try:
                return call(*arguments, **named)
            finally:
                seconds = time.perf_counter() - begin
                self.seconds += seconds
                self.longest[name] = max(self.longest.get(name, 0.0), seconds)
                self._inside = False

        return timed


def timed_train() -> None:
    """Run pipelines/train.py with this command's overrides; the last line on stderr says how long it waited."""
    waits = Waits()
    try:
        runpy.run_path(str(Path(__file__).resolve().parents[2] / "pipelines" / "train.py"), run_name="__main__")
    finally:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        child = usage.ru_utime + usage.ru_stime
        print(json.dumps({"waits": waits.seconds, "longest": waits.longest, "child": child}), file=sys.stderr)


if __name__ == "__main__":
    timed_train()
