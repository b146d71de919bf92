"""The ledger of jobs: one truth for many processes, whoever dies."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from neurofleet import errors
from neurofleet.cluster.job import ENDS, FAILED, PREEMPTED, RUNNING, STOPPED, SUBMITTED, SUCCEEDED, Job, Order
from neurofleet.cluster.ledger import Ledger

ORDER = Order("train", ["family=mlp"], ["true"], "/", what="mlp on digits")


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("NEUROFLEET_HOME", str(tmp_path))
    return tmp_path


SUBMIT = """
import sys
from neurofleet.cluster.job import Order
from neurofleet.cluster.ledger import Ledger
print("ready", flush=True)
sys.stdin.read(1)
with Ledger() as book:
    job, is_new = book.submit(Order("train", ["family=mlp"], ["true"], "/"), key="nightly")
print(job.id, is_new)
"""


@pytest.mark.chaos("20 identical submits at once", allowed="1 job")
def test_twenty_identical_submits_at_once_are_one_job(reached: Callable[[str], None]) -> None:
    command = [sys.executable, "-c", SUBMIT]
    pipe = subprocess.PIPE
    begun = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(20)]
    for one in begun:
        assert one.stdout is not None
        one.stdout.readline()  # all have imported what they need, and none has submitted
    for one in begun:
        assert one.stdin is not None
        one.stdin.write("x")
        one.stdin.flush()
    told = [one.communicate(timeout=120)[0].split() for one in begun]
    assert len({job_id for job_id, _ in told}) == 1
    assert sorted(is_new for _, is_new in told) == ["False"] * 19 + ["True"]
    with Ledger() as book:
        assert len(book.jobs()) == 1
    reached(f"{len({job_id for job_id, _ in told})} job")


def race(job: Job, state: str, barrier: threading.Barrier, won: list[str]) -> None:
    with Ledger() as book:
        barrier.wait()
        if book.close(job, state, {"exit_code": 0}):
            won.append(state)


@pytest.mark.chaos("cancel races the finish, 100 times", allowed="one end state each")
def test_a_cancel_that_races_the_finish_gives_one_end(reached: Callable[[str], None]) -> None:
    ends = []
    for _ in range(100):
        with Ledger() as book:
            submitted, _ = book.submit(ORDER)
            job = book.begin(submitted)
        assert job is not None
        barrier, won = threading.Barrier(2), list[str]()
        threads = [threading.Thread(target=race, args=(job, state, barrier, won)) for state in (SUCCEEDED, STOPPED)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with Ledger() as book:
            assert won == [book.find(job.id).state]
            assert [event["state"] for event in book.events(job.id) if event["state"] in ENDS] == won
        ends += won
    assert len(ends) == 100
    reached(f"{ends.count(SUCCEEDED)} SUCCEEDED, {ends.count(STOPPED)} STOPPED")


def test_a_waiting_job_is_stopped_at_once_and_a_running_one_is_asked() -> None:
    with Ledger() as book:
        waiting, running, ended = (book.submit(ORDER)[0] for _ in range(3))
        assert book.ask_stop(waiting).state == STOPPED
        assert book.begin(waiting) is None
        assert book.begin(running) is not None
        asked = book.ask_stop(running)
        assert (asked.state, asked.stop_asked) == (RUNNING, True)
        begun = book.begin(ended)
        assert begun is not None
        assert book.close(begun, SUCCEEDED, {"exit_code": 0})
        assert book.ask_stop(ended).state == SUCCEEDED
        assert not book.close(begun, FAILED, {})


def test_an_attempt_that_is_over_cannot_close_the_next_one() -> None:
    with Ledger() as book:
        first = book.begin(book.submit(ORDER)[0])
        assert first is not None
        assert book.close(first, PREEMPTED, {"kind": "lost"})
        second = book.begin(book.find(first.id))
        assert second is not None
        assert (first.submission, second.submission) == (f"{first.id}-1", f"{first.id}-2")
        assert not book.close(first, FAILED, {})
        assert book.find(first.id).state == RUNNING
        assert book.causes(second) == [{"kind": "lost"}]


def test_retry_opens_what_ended_badly_with_a_fresh_budget() -> None:
    with Ledger() as book:
        job = book.begin(book.submit(ORDER)[0])
        assert job is not None
        with pytest.raises(errors.ConfigError, match=f"retry needs a job that FAILED, .*{job.id}, which is RUNNING"):
            book.retry(job)
        book.close(job, FAILED, {"kind": "error", "exit_code": 1})
        again = book.retry(book.find(job.id))
        assert (again.state, again.exit_code, again.attempts) == (SUBMITTED, None, 1)
        assert book.causes(again) == []


def test_the_queue_goes_by_priority_then_age() -> None:
    with Ledger() as book:
        low, first, second, high = (book.submit(ORDER, priority=one)[0] for one in (-1, 0, 0, 5))
        assert [job.id for job in book.queue()] == [high.id, first.id, second.id, low.id]


def test_a_name_stands_for_one_order_and_a_wrong_id_has_neighbours() -> None:
    with Ledger() as book:
        job, _ = book.submit(ORDER, key="nightly")
        other = Order("train", ["family=cnn"], ["true"], "/")
        with pytest.raises(errors.ConfigError, match=f"'nightly' is {job.id}: train family=mlp; take another name"):
            book.submit(other, key="nightly")
        assert book.find("nightly").id == job.id
        with pytest.raises(errors.ConfigError, match=r"no job 'nightlu'; did you mean nightly\?"):
            book.find("nightlu")


def test_the_ledger_is_private(home: Path) -> None:
    with Ledger() as book:
        book.submit(ORDER)
    assert (home / "jobs.db").stat().st_mode & 0o777 == 0o600
