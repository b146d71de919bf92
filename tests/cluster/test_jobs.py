"""Jobs as who submits them sees them, without a cluster."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from neurofleet import errors
from neurofleet.cluster import jobs, keeper, logs
from neurofleet.cluster.engine import Engine
from neurofleet.cluster.job import FAILED, PREEMPTED, STOPPED, SUCCEEDED, Job, Order
from neurofleet.cluster.ledger import Ledger

PARTED = "=== attempt 2: killed ==="
ORDER = Order("train", ["family=mlp"], ["true"], "/")


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Job:
    monkeypatch.setenv("NEUROFLEET_HOME", str(tmp_path))
    with Ledger() as book:
        job = book.begin(book.submit(ORDER)[0])
    assert job is not None
    logs.path(job.id).parent.mkdir(parents=True)
    return job


def close(job: Job, state: str, **cause: Any) -> None:
    with Ledger() as book:
        assert book.close(job, state, cause)


def test_a_log_is_followed_to_its_end_over_attempts_and_progress_is_drawn(
    running: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    def print_on() -> None:
        with logs.path(running.id).open("a") as log:
            for piece in ("fir", "st\nprogress step=1/4 epoch=1/2 ", "train/loss=0.5 eta=3\r\nla", "st"):
                log.write(piece)
                log.flush()
                time.sleep(jobs.PAUSE)
        close(running, PREEMPTED)
        logs.part(running.id, 2, "killed")
        with Ledger() as book:
            again = book.begin(book.find(running.id))
        assert again is not None
        close(again, SUCCEEDED, exit_code=0)

    printing = threading.Thread(target=print_on)
    printing.start()
    with keeper.alone():
        assert jobs.follow(running.id) == 0
    printing.join()
    shown = capsys.readouterr().out.splitlines()
    assert shown == ["first", "progress step=1/4 epoch=1/2 train/loss=0.5 eta=3", "last", PARTED]
    jobs.show_log(running.id)
    assert capsys.readouterr().out == f"first\nlast\n{PARTED}\n"


@pytest.mark.parametrize(
    ("state", "cause", "code"),
    [
        (SUCCEEDED, {"exit_code": 0}, 0),
        (FAILED, {"exit_code": 2}, 2),
        (FAILED, {"exit_code": None}, 1),
        (STOPPED, {"exit_code": 143}, 143),
    ],
)
def test_who_follows_ends_with_the_jobs_exit_code(
    running: Job, state: str, cause: dict[str, Any], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    close(running, state, **cause)
    assert jobs.follow(running.id) == code
    assert (f"neurofleet jobs show {running.id}" in capsys.readouterr().out) == (code != 0)


def test_a_job_that_nobody_keeps_is_told_as_such(running: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "PATIENCE", 0.0)
    with pytest.raises(errors.RunError, match=f"nobody takes care of job {running.id}, .*goes on after `neurofleet up"):
        jobs.follow(running.id)


def test_an_attempt_of_which_ray_has_never_heard_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Client:
        def __init__(self, error: Exception) -> None:
            self.error = error

        def get_job_info(self, submission: str) -> Any:
            raise self.error

        def submit_job(self, **_: Any) -> None:
            raise self.error

    engine = Engine("http://127.0.0.1:9")
    monkeypatch.setattr(engine, "client", lambda: Client(RuntimeError("Request failed with status code 404: no job")))
    assert engine.look("train-1").status == "UNKNOWN"
    monkeypatch.setattr(engine, "client", lambda: Client(RuntimeError("job train-1 already exists")))
    engine.start("train-1", "true", {}, 1, 0, "train")
    monkeypatch.setattr(engine, "client", lambda: Client(ConnectionError("refused\nand more")))
    with pytest.raises(errors.UnreachableError, match=r"does not answer \(refused\)"):
        engine.look("train-1")
