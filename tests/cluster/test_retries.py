"""What becomes of a job: the table of causes, and how a cause is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from neurofleet import paths
from neurofleet.cluster import causes
from neurofleet.cluster.causes import ERROR, LOST, MEMORY, PREEMPTED, UNREACHABLE, USER, Cause
from neurofleet.cluster.retries import LONGEST_DELAY, MOST_WITHOUT_PROGRESS, decide


def died(kind: str, *, text: str = "boom", place: str = "", step: int | None = None) -> dict[str, Any]:
    return Cause(kind, text, "ValueError", place, step).to_dict()


@pytest.mark.parametrize(
    ("history", "state"),
    [
        ([died(USER)], "FAILED"),
        ([died(ERROR)], "SUBMITTED"),
        ([died(ERROR, place="my.py:3"), died(ERROR, place="my.py:3")], "FAILED"),
        ([died(ERROR, place="step 7"), died(ERROR, place="step 9")], "SUBMITTED"),
        ([died(ERROR, text="a"), died(ERROR, text="b")], "SUBMITTED"),
        ([died(ERROR, text="a"), died(ERROR, text="b"), died(ERROR, text="c")], "FAILED"),
        ([died(ERROR, text="a"), died(LOST), died(ERROR, text="a")], "FAILED"),
        ([died(LOST)], "PREEMPTED"),
        ([died(PREEMPTED)], "PREEMPTED"),
        ([died(LOST, step=step) for step in range(50)], "PREEMPTED"),
        ([died(LOST, step=7)] * MOST_WITHOUT_PROGRESS, "FAILED"),
        ([died(ERROR, text="a"), *[died(LOST, step=step) for step in range(9)], died(ERROR, text="b")], "SUBMITTED"),
        ([died(MEMORY)], "SUBMITTED"),
        ([died(MEMORY), died(LOST), died(MEMORY)], "FAILED"),
        ([died(UNREACHABLE)] * 5, "SUBMITTED"),
        ([died(UNREACHABLE)] * 6, "FAILED"),
    ],
)
def test_the_policy(history: list[dict[str, Any]], state: str) -> None:
    assert decide(history).state == state


def test_the_first_retry_of_a_lost_job_waits_for_nothing_and_later_ones_ever_longer() -> None:
    delays = [decide([died(LOST)] * count).delay for count in range(1, MOST_WITHOUT_PROGRESS)]
    assert delays[:4] == [0, 1, 2, 4]
    assert max(delays) <= LONGEST_DELAY


def said(error: str, message: str = "boom", **more: Any) -> dict[str, Any]:
    return {"error": error, "message": message, "traceback": "", "exit_code": 1, "step": None, "raised_by": ""} | more


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        (said("ConfigError", exit_code=2), USER),
        (said("UnreachableError", exit_code=2), UNREACHABLE),
        (said("StoppedError", exit_code=143), PREEMPTED),
        (said("KeyboardInterrupt", "", exit_code=130), PREEMPTED),
        (said("DivergedError", step=7), ERROR),
        (said("WorkerError", "worker 1 raised ValueError: no"), ERROR),
        (said("WorkerError", "worker 0 raised RuntimeError: [gloo] Connection closed by peer"), LOST),
        (said("LostWorkerError", "a worker died (ActorDiedError): SIGKILL"), LOST),
        (said("LostWorkerError", "a worker died (OutOfMemoryError): node ran low"), MEMORY),
        (said("MemoryError", ""), MEMORY),
        (said("OutOfMemoryError", "CUDA out of memory"), MEMORY),
    ],
)
def test_what_an_attempt_says_itself_is_its_cause(told: dict[str, Any], kind: str) -> None:
    assert causes.classify(said=told, exit_code=1, message="", log="", step=3, oom_kill=False).kind == kind


@pytest.mark.parametrize(
    ("exit_code", "oom_kill", "kind", "shown"),
    [
        (-9, False, LOST, 137),
        (137, False, LOST, 137),
        (-9, True, MEMORY, 137),
        (-15, False, PREEMPTED, 143),
        (143, False, PREEMPTED, 143),
        (-11, False, LOST, 139),
        (None, False, LOST, None),
        (None, True, MEMORY, None),
        (2, False, USER, 2),
        (1, False, ERROR, 1),
    ],
)
def test_else_its_exit_code_tells(exit_code: int | None, oom_kill: bool, kind: str, shown: int | None) -> None:
    found = causes.classify(
        said=None, exit_code=exit_code, message="the head is gone", log="last words", step=None, oom_kill=oom_kill
    )
    assert (found.kind, found.exit_code) == (kind, shown)


def test_a_worker_that_the_system_killed_for_memory_is_told_as_such() -> None:
    lost = said("LostWorkerError", "worker 1 died (ActorDiedError): SIGKILL")
    for oom_kill, kind in ((True, MEMORY), (False, LOST)):
        found = causes.classify(said=lost, exit_code=1, message="", log="", step=3, oom_kill=oom_kill)
        assert found.kind == kind


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/job\n", {"job/memory.events": "low 0\noom_kill 3\n"}, 3),
        ("0::/job\n", {}, 0),
        (
            "4:memory:/job\n0::/\n",
            {
                "memory/job/memory.oom_control": "under_oom 0\noom_kill 1\n",
                "memory/job/below/memory.oom_control": "oom_kill 2\n",
                "memory/other/memory.oom_control": "oom_kill 9\n",
            },
            3,
        ),
        ("nonsense", {}, 0),
    ],
)
def test_memory_kills_are_counted(groups: str, files: dict[str, str], expected: int, tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text(groups)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert causes.num_oom_kills(tmp_path / "cgroup", tmp_path) == expected
    assert causes.num_oom_kills(tmp_path / "absent", tmp_path) == 0


LOG = f"""before
Traceback (most recent call last):
  File "/home/me/pipelines/mine.py", line 12, in <module>
    main()
  File "{paths.PACKAGE}/run.py", line 100, in run
    fit()
  File "/venv/lib/python3.11/site-packages/torch/nn/modules/module.py", line 5, in __call__
    forward()
  File "/home/me/nets/wide.py", line 4, in forward
    raise ValueError("wide\\nand broken")
ValueError: wide
after
"""


def test_of_a_traceback_the_users_own_frames_are_shown() -> None:
    found = causes.classify(said=None, exit_code=1, message="", log=LOG, step=None, oom_kill=False)
    assert found.text == "ValueError: wide"
    assert found.place == "/home/me/nets/wide.py:4"
    assert [line for line in found.traceback.splitlines() if line.startswith("  File")] == [
        '  File "/home/me/pipelines/mine.py", line 12, in <module>',
        '  File "/home/me/nets/wide.py", line 4, in forward',
    ]
    assert found.traceback.endswith("ValueError: wide")


def test_a_traceback_without_a_frame_of_the_user_keeps_the_innermost_one() -> None:
    ours = "\n".join(line for line in LOG.splitlines() if "/home/me" not in line and "main()" not in line)
    kept = causes.users_frames(causes.last_traceback(ours))
    assert kept.count("  File ") == 1
    assert "torch/nn" in kept
