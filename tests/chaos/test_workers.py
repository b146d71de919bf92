"""Ray workers that are killed, stopped or told to go, under a job of a real platform."""

from __future__ import annotations

import contextlib
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest

from neurofleet import cluster, paths, tracking
from neurofleet.cluster import attempts, board, causes, jobs, logs, processes
from neurofleet.cluster import state as clusters
from neurofleet.cluster.job import Job
from neurofleet.cluster.ledger import Ledger
from neurofleet.submit import submit
from neurofleet.tracking import records

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),  # MLflow under SQLAlchemy
]
INTERVAL = 50  # steps from one checkpoint to the next
TIMEOUT = 15  # seconds after which a worker that does not answer is lost
SETTINGS = ["family=mlp", "data=digits", "family.dropout=0.2", "launcher=ray", "launcher.num_workers=2"]
SETTINGS += [
    f"trainer.checkpoint.every_n_steps={INTERVAL}",
    "trainer.log_every_n_steps=1",
    "trainer.checkpoint.every_n_minutes=null",
]


KILLED = f"finished, {INTERVAL} steps made again each, no orphan after 30 s, 1 run, an undisturbed one's weights"


@pytest.fixture(scope="module", autouse=True)
def platform(start_platform: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", str(TIMEOUT))
        with start_platform(tmp_path_factory.mktemp("broken")):
            yield


def wait_for(condition: Callable[[], Any], seconds: float = 180.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
    return found


def state(job: Job) -> str:
    return jobs.find(job.id).state


def step(job: Job) -> int:
    """The last that its log tells."""
    seen = logs.last_progress(job.id)
    return 0 if seen is None else seen.step


def saved(job: Job) -> int:
    assert job.order.run_id is not None
    return causes.checkpoint_step(paths.run(job.order.run_id)) or 0


def ranks(job: Job) -> list[psutil.Process]:
    """The processes that train, by rank."""
    found = {}
    for process in psutil.process_iter():
        try:
            if attempts.is_of(process, jobs.find(job.id).submission) and "RayTrainWorker" in process.name():
                found[process.pid] = process
        except psutil.NoSuchProcess:
            continue
    return [found[pid] for pid in sorted(found)]


def driver(job: Job) -> psutil.Process:
    mine = [one for one in psutil.process_iter() if attempts.is_of(one, jobs.find(job.id).submission)]
    (found,) = [one for one in mine if "neurofleet.cli" in one.cmdline()]
    return found


def left_over(job: Job) -> list[str]:
    """Processes of any attempt of a job."""
    names = [f"{job.id}-{number}" for number in range(1, jobs.find(job.id).attempts + 1)]
    return [str(one) for one in psutil.process_iter() if any(attempts.is_of(one, name) for name in names)]


def runs_of(job: Job) -> list[tuple[str, str]]:
    """(id, status) of every MLflow run that was begun for it."""
    store = mlflow.MlflowClient(tracking.store_uri(), tracking.store_uri())
    run = store.get_run(job.order.run_id)
    found = store.search_runs([run.info.experiment_id], f"attributes.run_name = '{run.info.run_name}'")
    return [(one.info.run_id, one.info.status) for one in found]


def events(job: Job) -> list[str]:
    with Ledger() as book:
        return [event["state"] for event in book.events(job.id)]


@pytest.fixture(scope="module")
def endless(platform: Any) -> Job:
    """A training that is hurt by one test after the other, and goes on each time."""
    return submit("train", [*SETTINGS, "trainer.max_epochs=1000000", "name=endless"])


def until_it_trains(job: Job) -> int:
    """Wait for steps that the running attempt has made itself; its number."""
    number = wait_for(lambda: jobs.find(job.id).attempts if state(job) == "RUNNING" else 0)
    begin = f"{logs.ATTEMPT}{number}:" if number > 1 else "starting"
    wait_for(lambda: "progress step=" in logs.end(job.id).partition(begin)[2])
    return int(number)


def cause(job: Job) -> dict[str, Any]:
    """What the last attempt that ended died of."""
    with Ledger() as book:
        return book.causes(job)[-1]


@pytest.mark.chaos("SIGSTOP of one of 2 ranks", allowed=f"named, restarted within {TIMEOUT} + 30 s")
def test_a_rank_that_stops_is_named_and_replaced(endless: Job, reached: Callable[[str], None]) -> None:
    number = until_it_trains(endless)
    _, stopped = ranks(endless)
    began = time.monotonic()
    stopped.suspend()
    try:
        wait_for(lambda: jobs.find(endless.id).attempts > number)
        seconds = time.monotonic() - began
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            stopped.kill()
    died = cause(endless)
    reached(f"{seconds:.1f} s; {died['by']}: {died['text']}")
    assert died["kind"] == "lost"
    assert died["text"].startswith(f"{died['by']} did not answer for {TIMEOUT} s")
    assert seconds < TIMEOUT + 30


@pytest.mark.chaos(
    "SIGTERM to the driver of 2 workers", allowed="checkpoint at most one step old, exit 143, PREEMPTED, goes on"
)
def test_sigterm_to_the_driver_saves_a_checkpoint(endless: Job, reached: Callable[[str], None]) -> None:
    number = until_it_trains(endless)
    began = time.monotonic()
    driver(endless).terminate()
    wait_for(lambda: jobs.find(endless.id).attempts > number)
    seconds = time.monotonic() - began
    died = cause(endless)
    stopped_at = re.fullmatch(r"stopped by SIGTERM at step (\d+)", died["text"])
    reached(f"{died['text']}, saved step {died['step']}, exit {died['exit_code']}, {seconds:.1f} s to the next attempt")
    assert (died["kind"], died["exit_code"]) == ("preempted", 143)
    assert stopped_at is not None
    assert int(stopped_at[1]) - died["step"] <= 1
    assert events(endless)[-2:] == ["PREEMPTED", "RUNNING"]


@pytest.mark.chaos("raylet killed", allowed="re-queued once, goes on after `up`")
def test_a_raylet_that_is_killed(endless: Job, reached: Callable[[str], None]) -> None:
    reached(f"{cut_and_up(endless, 'raylet'):.1f} s from `up` to the next attempt; {cause(endless)['text']}")


@pytest.mark.chaos("GCS killed", allowed="re-queued once, goes on after `up`")
def test_a_head_that_is_killed(endless: Job, reached: Callable[[str], None]) -> None:
    reached(f"{cut_and_up(endless, 'gcs_server'):.1f} s from `up` to the next attempt; {cause(endless)['text']}")


def cut_and_up(job: Job, name: str) -> float:
    number = until_it_trains(job)
    before = saved(job)
    platform = clusters.load()
    assert platform is not None
    (process,) = [one for one in processes.alive(platform.ray) if one.name() == name]
    process.kill()
    wait_for(lambda: state(job) == "PREEMPTED")
    time.sleep(10)  # a keeper that sends it where nobody can run it
    assert (state(job), jobs.find(job.id).attempts) == ("PREEMPTED", number)
    assert cause(job)["kind"] == "lost"
    assert left_over(job) == []
    began = time.monotonic()
    cluster.up()
    wait_for(lambda: jobs.find(job.id).attempts > number)
    seconds = time.monotonic() - began
    assert until_it_trains(job) == number + 1
    assert step(job) >= before > 0
    return seconds


@pytest.mark.chaos("time limit, 2 workers", allowed="TIMED_OUT within the grace of 60 s, with a checkpoint")
def test_a_time_limit_leaves_a_checkpoint(endless: Job, reached: Callable[[str], None]) -> None:
    until_it_trains(endless)
    with Ledger() as book:  # from here on, however long this machine took to come here
        limit = book.seconds_run(endless) + 1
        book.connection.execute("UPDATE jobs SET content = json_set(content, '$.time_limit', ?)", (limit,))
        began = time.monotonic()
    assert jobs.follow(endless.id) == 143
    seconds = time.monotonic() - began - 1
    told = board.details(endless.id)
    reached(f"{state(endless)} after {seconds:.1f} s more; {told['cause']['text']}")
    assert told["state"] == "TIMED_OUT"
    assert seconds < 60
    assert told["cause"]["text"].endswith(f"the last checkpoint is of step {saved(endless)}")
    assert saved(endless) >= step(endless) > 0
    assert [run_id for run_id, _ in runs_of(endless)] == [endless.order.run_id]


@pytest.mark.chaos("10 s time limit, a script that sleeps", allowed="TIMED_OUT within the grace of 60 s")
def test_a_time_limit_of_a_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reached: Callable[[str], None]
) -> None:
    own_pipeline(tmp_path, monkeypatch, "sleep", "import time; time.sleep(1000)")
    job = submit("sleep", [], time_limit=10.0)
    assert jobs.follow(job.id) == 143
    with Ledger() as book:
        seconds = book.seconds_run(jobs.find(job.id))
    reached(f"{state(job)} after {seconds:.1f} s")
    assert state(job) == "TIMED_OUT"
    assert 10 <= seconds < 70


@pytest.mark.chaos("the same crash every time", allowed="2 attempts, FAILED, the user's own lines alone")
def test_a_deterministic_crash_is_not_tried_on_and_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reached: Callable[[str], None]
) -> None:
    own_pipeline(tmp_path, monkeypatch, "crash", "import json\n\njson.loads('{')\n")
    job = submit("crash", [])
    assert jobs.follow(job.id) == 1
    told = board.details(job.id)
    reached(f"{told['attempts']} attempts, {told['state']}, {told['cause']['text']}")
    assert (told["attempts"], told["state"]) == (2, "FAILED")
    assert "the same error twice" in told["events"][-1]["text"]
    assert "site-packages" not in told["cause"]["traceback"]
    assert "crash.py" in told["cause"]["traceback"]


EAT = """
import os
with open({group!r} + "/cgroup.procs", "w") as procs:
    procs.write(str(os.getpid()))
eaten = []
while True:
    eaten.append(bytearray(8 << 20))
"""


@pytest.fixture
def small_memory() -> Iterator[Path]:
    """A control group of 200 MB below this process's own, where the keeper is, too."""
    groups = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    if "memory" not in groups:
        pytest.skip(
            "needs version 1 of control groups for memory: in version 2 a group with processes has none below it"
        )
    group = Path("/sys/fs/cgroup/memory") / groups["memory"].lstrip("/") / f"neurofleet-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    (group / "memory.limit_in_bytes").write_text(str(200 << 20))
    yield group
    group.rmdir()


@pytest.mark.chaos("OOM in a memory cgroup", allowed="reason memory, 2 attempts, the head alive")
def test_a_job_that_eats_its_memory(
    small_memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reached: Callable[[str], None]
) -> None:
    own_pipeline(tmp_path, monkeypatch, "eat", EAT.format(group=str(small_memory)))
    job = submit("eat", [])
    assert jobs.follow(job.id) != 0
    told = board.details(job.id)
    head = cluster.status()["ray"]["up"]
    reached(f"{told['attempts_ended']}, {told['state']}, head up: {head}; {told['cause']['text']}")
    assert told["attempts_ended"] == ["memory", "memory"]
    assert (told["state"], head) == ("FAILED", True)


def own_pipeline(project: Path, patch: pytest.MonkeyPatch, name: str, code: str) -> None:
    (project / "pipelines").mkdir()
    (project / "pipelines" / f"{name}.py").write_text(code)
    (project / "dvc.yaml").touch()
    patch.chdir(project)


@pytest.mark.parametrize(
    "num_kills",
    [
        pytest.param(2, marks=pytest.mark.chaos("kill -9 of a rank at 2 random steps", allowed=KILLED)),
        pytest.param(20, marks=pytest.mark.chaos("kill -9 of a rank at 20 random steps", allowed=KILLED, long=True)),
    ],
)
def test_killed_ranks_cost_a_checkpoint_interval_each(num_kills: int, reached: Callable[[str], None]) -> None:
    chance = random.Random(num_kills)
    num_epochs = 10 * (num_kills + 1)  # of 40 steps
    settings = [f"trainer.max_epochs={num_epochs}", "family.hidden=[256,256]", f"name=killed{num_kills}"]
    job = submit("train", [*SETTINGS, *settings])
    for kill in range(num_kills):
        number = until_it_trains(job)
        target = 400 * kill + chance.randrange(50, 350)
        wait_for(lambda target=target: max(step(job), saved(job)) >= target)
        ranks(job)[chance.randrange(2)].kill()
        wait_for(lambda number=number: jobs.find(job.id).attempts > number)
    assert jobs.follow(job.id) == 0
    began = time.monotonic()
    wait_for(lambda: left_over(job) == [], 30)
    orphans = time.monotonic() - began
    wasted = steps_made_again(job)
    with Ledger() as book:
        kinds = [one["kind"] for one in book.causes(jobs.find(job.id))]
    whole = submit("train", [*SETTINGS, *settings])
    assert jobs.follow(whole.id) == 0
    same = weights(job) == weights(whole)
    reached(
        f"{len(kinds)} cuts, {max(wasted)} steps made again at most (mean {sum(wasted) / len(wasted):.0f}), "
        f"nothing left after {orphans:.1f} s, weights {'those' if same else 'not those'} of an undisturbed run"
    )
    assert kinds == ["lost"] * num_kills
    assert len(wasted) == num_kills
    assert max(wasted) <= INTERVAL
    assert same, "bit for bit, on as many workers"
    assert sorted(runs_of(job)) == sorted([(job.order.run_id, "FINISHED"), (whole.order.run_id, "FINISHED")])


def steps_made_again(job: Job) -> list[int]:
    """Of each attempt but the first: how many of its steps had been measured before it began."""
    counts, last = list[int](), None
    for spool in sorted((paths.run(job.order.run_id or "") / "tracking").glob("*.jsonl")):
        told = [point for line in spool.read_bytes().splitlines() if b'"rows"' in line for point in points(line)]
        steps = [point.step for point in told if point.name == "train/loss"]
        if not steps:
            continue
        if last is not None:
            counts.append(max(0, last - min(steps) + 1))
        last = max(steps)
    return counts


def points(line: bytes) -> list[records.Point]:
    try:
        return records.decode_points(records.decode(line), None)[0]
    except records.DAMAGED:  # its writer was killed in the middle of it
        return []


def weights(job: Job) -> bytes:
    return (paths.run(job.order.run_id or "") / "weights.safetensors").read_bytes()
