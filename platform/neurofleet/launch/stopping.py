"""Stopping: SIGTERM to the driver of workers becomes a checkpoint of theirs, on whichever machines they are.

The driver writes the signal's number into a file of the run's folder, which rank 0 reads between two chunks of steps;
all workers stop at the same step (`neurofleet.watch`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from neurofleet.errors import StoppedError
from neurofleet.watch import STOP

PATIENCE = 20.0  # seconds: a spot machine goes half a minute after its notice


@contextlib.contextmanager
def stopping(folder: Path) -> Iterator[None]:
    """While this lasts, the first SIGTERM asks the workers to stop; a second one, or `PATIENCE`, does not wait.

    Raises:
        StoppedError: where it did not wait.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    file = folder / STOP
    folder.mkdir(parents=True, exist_ok=True)
    # Empty, not absent: a network's disk remembers for half a minute that there is no such file.
    file.write_text("")
    late: list[threading.Timer] = []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if late:
            raise StoppedError(f"stopped by {signal.Signals(number).name}, before the workers could save", number)
        print("SIGTERM: the workers save a checkpoint, then stop (again to stop at once)", flush=True)
        late.append(threading.Timer(PATIENCE, os.kill, (os.getpid(), number)))
        late[0].daemon = True
        late[0].start()
        file.write_text(str(int(number)))

    before = signal.signal(signal.SIGTERM, on_signal)
    try:
        yield
    finally:
        for timer in late:
            timer.cancel()
        signal.signal(signal.SIGTERM, before)
        file.unlink(missing_ok=True)
