"""Every exception that Neurofleet raises on purpose.

    NeurofleetError                 exit code 1
    ├── UserError                   exit code 2: the caller can mend it; the message says how
    │   ├── ConfigError             unknown name or key, missing value, forbidden `_target_`, impossible size
    │   ├── DataError               dataset missing, a column lacking, NaN, a label outside the spec
    │   ├── MismatchError           a family was given a dataset that it does not accept
    │   ├── ResourceError           more workers, CPUs or GPUs asked for than there are; a port that is taken
    │   └── UnreachableError        a server (MLflow, Ray) does not answer at its address
    └── RunError                    exit code 1: the run itself went wrong
        ├── StoppedError            a signal ended it in good order, with a checkpoint; exit code 128 + signal
        ├── DivergedError           the loss became NaN or infinite
        ├── CheckpointError         no checkpoint passes its hash
        └── WorkerError             a training worker raised
            └── LostWorkerError     it was lost: killed, or with its node

A message reads: requirement, what was got, remedy.  All of them pickle, since Ray carries them between processes.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator

OUTCOME = "NEUROFLEET_OUTCOME"
"""where a process that is a job writes what it died of; see `exit_on_error`"""


class NeurofleetError(Exception):
    """Base class; `exit_code` is what the command line ends with."""

    exit_code = 1


class UserError(NeurofleetError):
    exit_code = 2


class ConfigError(UserError):
    pass


class DataError(UserError):
    pass


class MismatchError(UserError):
    pass


class ResourceError(UserError):
    pass


class UnreachableError(UserError):
    pass


class RunError(NeurofleetError):
    pass


class StoppedError(RunError):
    """A signal (Ctrl-C, SIGTERM) ended the run after it had saved a checkpoint."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message, signal_number)
        self.exit_code = 128 + signal_number

    def __str__(self) -> str:
        return str(self.args[0])


class DivergedError(RunError):
    """The loss stopped being finite at optimizer step `step`."""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message, step)
        self.step = step

    def __str__(self) -> str:
        return str(self.args[0])


class CheckpointError(RunError):
    pass


class WorkerError(RunError):
    pass


class LostWorkerError(WorkerError):
    pass


def nearest(name: str, known: Iterable[str], count: int = 3, prefix: str = "") -> str:
    """A hint that ends an error about an unknown name: the closest known names, or all of them if none is close.

    prefix: what stands before each of them, and says nothing about which is close
    """
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=count, cutoff=0.6)
    if close:
        return f"did you mean {', '.join(prefix + one for one in close)}?"
    return f"known: {', '.join(prefix + one for one in names)}" if names else "there are none yet"


@contextlib.contextmanager
def exit_on_error() -> Iterator[None]:
    """End the process as the command line promises: one message, no traceback, the error's own exit code.

    In a job, `OUTCOME` in the environment names a file that then says what it died of: error, message, traceback,
    exit_code, step, raised_by.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except NeurofleetError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        _leave_outcome(error, error.exit_code)
        sys.exit(error.exit_code)
    except KeyboardInterrupt as error:
        print("interrupted", file=sys.stderr, flush=True)
        _leave_outcome(error, 130)
        sys.exit(130)
    except Exception as error:
        _leave_outcome(error, 1)
        raise


def _leave_outcome(error: BaseException, exit_code: int) -> None:
    place = os.environ.get(OUTCOME)
    if not place:
        return
    message, _, rest = str(error).partition("\n")  # a worker's error brings the worker's own traceback along
    known = isinstance(error, NeurofleetError | KeyboardInterrupt)
    outcome = {
        "error": type(error).__name__,
        "message": message,
        "traceback": rest if known else "".join(traceback.format_exception(error)),
        "exit_code": exit_code,
        "step": getattr(error, "step", None),
        "raised_by": getattr(error, "raised_by", ""),
    }
    with contextlib.suppress(OSError):  # a full disk may be what it died of
        written = f"{place}.new"
        with open(written, "w") as file:
            json.dump(outcome, file)
        os.replace(written, place)


def _terminate(number: int, frame: object) -> None:
    raise StoppedError("stopped by SIGTERM", number)
