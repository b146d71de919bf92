"""The keeper, on a cluster that a test plays."""

from __future__ import annotations

import dataclasses
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from neurofleet.cluster import attempts, board, keeper, logs, webhook
from neurofleet.cluster.engine import Seen
from neurofleet.cluster.job import (
    FAILED,
    PREEMPTED,
    RUNNING,
    STOPPED,
    SUBMITTED,
    SUCCEEDED,
    TIMED_OUT,
    Job,
    Order,
    folder,
    seconds,
)
from neurofleet.cluster.keeper import Keeper
from neurofleet.cluster.ledger import Ledger
from neurofleet.errors import ConfigError, UnreachableError

ORDER = Order("train", ["family=mlp"], ["true"], "/", what="mlp on digits")


class Played:
    """A cluster: what a test says of each submission."""

    def __init__(self) -> None:
        self.seen: dict[str, Seen] = {}
        self.started: list[str] = []
        self.stopped: list[str] = []
        self.gone = self.away = False

    def client(self) -> None:
        if self.away:
            raise UnreachableError("Ray does not answer")

    def is_gone(self) -> bool:
        return self.gone

    def capacity(self) -> dict[str, float]:
        return {"CPU": 4.0, "GPU": 0.0}

    def start(self, submission: str, *_: Any) -> None:
        self.started.append(submission)

    def look(self, submission: str) -> Seen:
        self.client()
        return self.seen.get(submission, Seen("RUNNING"))

    def stop(self, submission: str) -> None:
        self.stopped.append(submission)


@dataclasses.dataclass
class Stage:
    book: Ledger
    keeper: Keeper
    cluster: Played

    def submit(self, **changes: Any) -> str:
        priority = changes.pop("priority", 0)
        return self.book.submit(dataclasses.replace(ORDER, **changes), priority=priority)[0].id

    def job(self, job_id: str) -> Job:
        return self.book.find(job_id)

    def die(self, job_id: str, seen: Seen, said: dict[str, Any] | None = None) -> str:
        """The attempt that runs ends so; the job's state then."""
        job = self.job(job_id)
        if said is not None:
            attempts.outcome(job).write_text(json.dumps(said))
        self.keeper.finish(job, seen)
        return self.job(job_id).state


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Stage]:
    monkeypatch.setenv("NEUROFLEET_HOME", str(tmp_path))
    with Ledger() as book:
        played = Played()
        kept = Keeper(book)
        kept._engines[""] = played  # type: ignore[assignment]
        yield Stage(book, kept, played)


def said(error: str, message: str = "boom", **more: Any) -> dict[str, Any]:
    return {"error": error, "message": message, "traceback": "", "exit_code": 1, "step": None, "raised_by": ""} | more


def test_jobs_start_by_priority_then_age_while_there_is_room(stage: Stage) -> None:
    low, wide, urgent = stage.submit(), stage.submit(cpus=3.0), stage.submit(cpus=2.0, priority=1)
    stage.keeper.turn()
    # The wide one is next and has no room; the younger ones do not overtake it, what is older has begun.
    assert stage.cluster.started == [f"{urgent}-1", f"{low}-1"]
    narrow = stage.submit()
    stage.keeper.turn()
    assert len(stage.cluster.started) == 2
    stage.die(urgent, Seen("SUCCEEDED", 0))
    stage.keeper.turn()
    assert stage.cluster.started[2:] == [f"{wide}-1"]
    stage.die(low, Seen("SUCCEEDED", 0))
    stage.keeper.turn()
    assert stage.cluster.started[3:] == [f"{narrow}-1"]


def test_what_can_never_fit_holds_nobody_up(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    huge, small = stage.submit(gpus=1.0), stage.submit()
    for _ in range(3):
        stage.keeper.turn()
    assert stage.cluster.started == [f"{small}-1"]
    assert stage.job(huge).state == SUBMITTED
    assert capsys.readouterr().out.count(f"{huge} needs") == 1


def test_a_job_ends_as_its_process_does(stage: Stage) -> None:
    fine, wrong = stage.submit(), stage.submit()
    stage.keeper.turn()
    logs.path(fine).write_text("progress step=4/4 epoch=2/2 train/loss=0.5 eta=0\n")
    stage.cluster.seen = {f"{fine}-1": Seen("SUCCEEDED", 0), f"{wrong}-1": Seen("FAILED", 2)}
    attempts.outcome(stage.job(wrong)).write_text(json.dumps(said("ConfigError", "no such thing", exit_code=2)))
    stage.keeper.turn()
    assert (stage.job(fine).state, stage.job(wrong).state) == (SUCCEEDED, FAILED)
    assert stage.job(wrong).exit_code == 2
    assert board.row(stage.job(fine))["step"] == 4
    told = board.details(wrong)
    assert (told["cause"]["kind"], told["cause"]["text"]) == ("user", "no such thing")
    assert told["next"] == "mend what the message names, and submit again"


def test_lost_attempts_go_on_and_the_same_error_twice_does_not(stage: Stage) -> None:
    job_id = stage.submit()
    for number, (seen, told, state) in enumerate(
        [
            (Seen("FAILED", -9), None, PREEMPTED),
            (Seen("UNKNOWN", message="the head is gone"), None, PREEMPTED),
            (Seen("FAILED", 143), said("StoppedError", exit_code=143), PREEMPTED),
            (Seen("FAILED", 1), said("DivergedError", step=7), SUBMITTED),
            (Seen("FAILED", 1), said("DivergedError", step=7), FAILED),
        ],
        start=1,
    ):
        stage.book.connection.execute("UPDATE jobs SET not_before = 0")
        stage.keeper.turn()
        assert stage.cluster.started[-1] == f"{job_id}-{number}"
        assert stage.die(job_id, seen, told) == state
    assert stage.job(job_id).attempts == 5
    assert f"{logs.ATTEMPT}5: boom" in logs.end(job_id)
    assert board.details(job_id)["attempts_ended"] == ["lost", "lost", "preempted", "error", "error"]


def test_a_job_that_is_asked_to_stop_gets_one_sigterm_and_is_stopped(stage: Stage) -> None:
    job_id = stage.submit()
    stage.keeper.turn()
    stage.book.ask_stop(stage.job(job_id))
    for _ in range(3):
        stage.keeper.turn()
    assert stage.cluster.stopped == [f"{job_id}-1"]
    assert stage.die(job_id, Seen("STOPPED"), said("StoppedError", exit_code=143)) == STOPPED
    assert stage.job(job_id).exit_code == 143


def test_a_job_that_ended_before_it_could_be_stopped_keeps_its_end(stage: Stage) -> None:
    job_id = stage.submit()
    stage.keeper.turn()
    stage.book.ask_stop(stage.job(job_id))
    assert stage.die(job_id, Seen("SUCCEEDED", 0)) == SUCCEEDED


def ran_for(stage: Stage, job_id: str, seconds: float) -> None:
    """As if the attempt that runs had begun so long ago."""
    began = time.time() - seconds
    stage.book.connection.execute("UPDATE attempts SET began = ? WHERE job = ? AND ended IS NULL", (began, job_id))


def test_a_job_whose_time_is_up_gets_one_sigterm_and_is_timed_out(stage: Stage) -> None:
    job_id, other = stage.submit(time_limit=60.0, run_id="0" * 32), stage.submit()
    stage.keeper.turn()
    for one in (job_id, other):
        ran_for(stage, one, 50.0)
    stage.keeper.turn()
    assert stage.cluster.stopped == []
    for one in (job_id, other):
        ran_for(stage, one, 60.0)
    for _ in range(3):
        stage.keeper.turn()
    assert stage.cluster.stopped == [f"{job_id}-1"]
    assert stage.die(job_id, Seen("STOPPED"), said("StoppedError", exit_code=143)) == TIMED_OUT
    told = board.details(job_id)
    assert told["cause"]["text"] == "the time limit of 60 s was reached; no checkpoint was saved"
    assert told["next"] == f"to go on from the last checkpoint for as long again: neurofleet jobs retry {job_id}"
    assert [event["text"] for event in told["events"]][-2:] == ["its time is up: asked to stop", told["cause"]["text"]]
    assert stage.book.seconds_run(stage.book.retry(stage.job(job_id))) == 0.0
    assert stage.job(other).state == RUNNING


def test_what_a_job_waits_is_not_of_its_time_and_what_it_ran_before_is(stage: Stage) -> None:
    job_id = stage.submit(time_limit=60.0)
    stage.keeper.turn()
    ran_for(stage, job_id, 40.0)
    assert stage.die(job_id, Seen("FAILED", -9)) == PREEMPTED
    stage.book.connection.execute("UPDATE attempts SET began = began - 100, ended = ended - 100")  # it waits
    stage.keeper.turn()
    assert stage.cluster.stopped == []
    ran_for(stage, job_id, 20.0)
    stage.keeper.turn()
    assert stage.cluster.stopped == [f"{job_id}-2"]


@pytest.mark.parametrize(
    ("seen", "told", "state"),
    [
        (Seen("SUCCEEDED", 0), None, SUCCEEDED),
        (Seen("FAILED", 2), said("ConfigError", exit_code=2), FAILED),
        (Seen("FAILED", -9), None, TIMED_OUT),  # there is no time left to go on in
    ],
)
def test_a_job_that_ends_while_its_time_is_up_ends_as_itself(
    stage: Stage, seen: Seen, told: dict[str, Any] | None, state: str
) -> None:
    job_id = stage.submit(time_limit=60.0)
    stage.keeper.turn()
    ran_for(stage, job_id, 60.0)
    assert stage.die(job_id, seen, told) == state


def test_durations() -> None:
    assert [seconds(text) for text in ("90s", "30m", "1h30m", "2d", "1d1s")] == [90, 1800, 5400, 172800, 86401]
    for text in ("", "90", "0s", "1.5h", "m", "-5s", "1m1h", "5 s"):
        with pytest.raises(ConfigError, match=f"needs a duration like 90s, .*got '{text}'"):
            seconds(text)


def test_a_head_that_is_gone_cuts_its_jobs_which_wait_for_the_next_one(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "PATIENCE", 0.0)
    job_id = stage.submit()
    stage.keeper.turn()
    stage.cluster.gone = True
    for _ in range(4):
        stage.keeper.turn()
    assert stage.job(job_id).state == PREEMPTED
    assert stage.job(job_id).cause["text"] == "the cluster's head is gone"
    stage.cluster.gone = False
    stage.keeper.turn()
    assert stage.cluster.started == [f"{job_id}-1", f"{job_id}-2"]


def test_a_cluster_that_does_not_answer_costs_no_attempt(stage: Stage) -> None:
    running, waiting = stage.submit(cpus=3.0), stage.submit(cpus=3.0)
    stage.keeper.turn()
    stage.cluster.away = True
    for _ in range(3):
        stage.keeper.turn()
    assert [stage.job(one).state for one in (running, waiting)] == [RUNNING, SUBMITTED]
    stage.cluster.away = False
    stage.cluster.seen = {f"{running}-1": Seen("SUCCEEDED", 0)}
    stage.keeper.turn()
    assert stage.cluster.started == [f"{running}-1", f"{waiting}-1"]


def test_what_is_left_of_an_attempt_is_ended_before_the_next(stage: Stage) -> None:
    job_id = stage.submit()
    stage.keeper.turn()
    environment = os.environ | {attempts.ATTEMPT: f"{job_id}-1"}
    sleeping = [sys.executable, "-c", "import time; print(1, flush=True); time.sleep(60)"]
    left = subprocess.Popen(sleeping, env=environment, stdout=subprocess.PIPE)
    other = subprocess.Popen(sleeping, env=os.environ | {attempts.ATTEMPT: "train-other-1"}, stdout=subprocess.PIPE)
    try:
        for child in (left, other):
            assert child.stdout is not None
            child.stdout.readline()
        assert stage.die(job_id, Seen("UNKNOWN", message="gone")) == PREEMPTED
        assert left.poll() is not None
        assert other.poll() is None
    finally:
        for child in (left, other):
            child.kill()
            child.communicate()


@pytest.mark.parametrize(("code", "state"), [(0, SUCCEEDED), (2, FAILED), (None, PREEMPTED)])
def test_what_ended_while_the_head_died_has_ended(stage: Stage, code: int | None, state: str, tmp_path: Path) -> None:
    script = "import sys; sys.exit(int(sys.argv[1]))"
    job_id = stage.submit(command=[sys.executable, "-c", script, str(code)], project=str(tmp_path))
    stage.keeper.turn()
    if code is not None:
        ended = subprocess.run(["sh", "-c", attempts.entrypoint(stage.job(job_id))], check=False)
        assert ended.returncode == code
    assert stage.die(job_id, Seen("UNKNOWN", message="the cluster's head is gone")) == state
    assert stage.job(job_id).exit_code == code


def test_a_signal_is_for_the_command_and_its_exit_code_is_kept(stage: Stage, tmp_path: Path) -> None:
    script = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); print('up', flush=True)"
    )
    job_id = stage.submit(command=[sys.executable, "-c", f"{script}; time.sleep(60)"], project=str(tmp_path))
    stage.keeper.turn()
    job = stage.job(job_id)
    shell = subprocess.Popen(["sh", "-c", attempts.entrypoint(job)], start_new_session=True)
    wait_for(lambda: logs.end(job_id) == "up\n")
    os.killpg(shell.pid, signal.SIGTERM)
    assert shell.wait(timeout=20) == 143
    assert attempts.exit_code(job) == 143


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """An incoming webhook on loopback; what it was told."""
    told: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(500 if len(told) > 1 else 200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv(webhook.VARIABLE, f"http://127.0.0.1:{server.server_port}/secret")
    yield told
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_end_of_a_job_is_told_once_and_no_webhook_is_fatal(
    stage: Stage, hook: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    job_id = stage.submit(what="a <b> & c")
    stage.keeper.turn()
    stage.cluster.seen = {f"{job_id}-1": Seen("SUCCEEDED", 0)}
    for _ in range(3):
        stage.keeper.turn()
    wait_for(lambda: len(hook) == 1)
    assert list(hook[0]) == ["text"]
    assert hook[0]["text"].startswith(f"*{job_id}* SUCCEEDED after ")
    assert "a &lt;b&gt; &amp; c" in hook[0]["text"]
    stage.book.ask_stop(stage.job(stage.submit()))
    stage.keeper.turn()
    said: list[str] = []
    wait_for(lambda: bool(said.append(capsys.readouterr().out)) or "was not taken" in "".join(said))
    assert "500" in "".join(said)
    assert "secret" not in "".join(said)


def test_without_an_address_nobody_is_told(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(webhook.VARIABLE, raising=False)
    assert webhook.notify(stage.job(stage.submit())) is None


def test_one_keeper_at_a_time(stage: Stage) -> None:
    assert not keeper.is_kept()
    with keeper.alone():
        assert keeper.is_kept()
    assert not keeper.is_kept()


def wait_for(condition: Any, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_thousand_jobs_are_listed_within_a_second_of_cpu(stage: Stage) -> None:
    content = json.dumps(dataclasses.asdict(ORDER))
    stage.book.connection.executemany(
        "INSERT INTO jobs (id, content, priority, state, submitted, started, ended) VALUES (?, ?, 0, ?, 1.0, 1.0, 2.0)",
        [(f"train-{number:05d}", content, SUCCEEDED) for number in range(1000)],
    )
    code = "import sys, time; sys.argv = ['neurofleet', 'jobs', '--all']\nfrom neurofleet.cli import main\n"
    code += "try: main()\nfinally: print(time.process_time(), [m for m in ('torch', 'ray', 'mlflow', 'numpy') if m in "
    code += "sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("SUCCEEDED") == 1000
    seconds, _, heavy = done.stderr.strip().splitlines()[-1].partition(" ")
    assert (float(seconds) < 1.0, heavy) == (True, "[]")
    assert not folder("train-00000").exists()
