"""What a job costs beside its training: on one warm platform, in turns with what plain Ray would take.

submit to first step   `neurofleet submit train` of a perceptron, against `ray job submit` of a stock Lightning script
a trivial job          two workers and one epoch, from the command to its end, against plain Ray Train v2 by Ray Jobs
neurofleet jobs        1,000 jobs in the ledger
checkpoints            the time that one takes, as a share of the default interval

Run it on an idle machine: `python tests/benchmarks/jobs_speed.py [--repetitions 5]`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import contenders
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = Path(__file__).with_name("jobs")
PATIENCE = 600.0  # seconds
TWO_WORKERS = ["launcher=ray", "launcher.num_workers=2"]
PERCEPTRON = ["family=mlp", "data=digits", "trainer.max_epochs=1"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    number = parser.parse_args().repetitions
    table = Table("jobs", title_justify="left")
    for heading in ("ours, s", "plain Ray, s", "ratio (quartiles)", "wanted"):
        table.add_column(heading, justify="right")
    with tempfile.TemporaryDirectory(prefix="nf-") as folder, warm_platform(Path(folder)):
        first_step_of_ours()  # disks and file caches are warm, too
        first_step_of_ray(Path(folder), 0)
        steps = [(first_step_of_ours(), first_step_of_ray(Path(folder), turn + 1)) for turn in range(number)]
        add(table, "submit to first step", steps, "at most 1.5")
        trivial = [(trivial_job_of_ours(), ray_job(SCRIPTS / "ray_train_script.py")) for _ in range(number)]
        add(table, "a trivial job on two workers", trivial, "at most 0.33")
    with tempfile.TemporaryDirectory(prefix="nf-") as folder:
        wall, cpu = listing(Path(folder))
        table.add_row("neurofleet jobs, 1,000 in the ledger", f"{wall:.2f} (CPU {cpu:.2f})", "", "", "under 1 s")
        for family, data in (("mlp", "digits"), ("cnn", "mnist5k")):
            cost, interval = checkpoint_cost(Path(folder), family, data)
            share = f"{cost / interval:.4%} of steps/s"
            table.add_row(f"a checkpoint of {family} every {interval:.0f} s", f"{cost:.4f}", "", share, "under 2 %")
    Console(width=120).print(table)


def add(table: Table, name: str, pairs: list[tuple[float, float]], wanted: str) -> None:
    ours, plain = (sorted(side)[len(pairs) // 2] for side in zip(*pairs, strict=True))
    lower, middle, upper = contenders.quartiles([one / other for one, other in pairs])
    table.add_row(name, f"{ours:.2f}", f"{plain:.2f}", f"{middle:.2f} ({lower:.2f} to {upper:.2f})", wanted)


@contextlib.contextmanager
def warm_platform(home: Path) -> Iterator[None]:
    ports = dict(zip(("RAY", "DASHBOARD", "MLFLOW"), free_ports(3), strict=True))
    os.environ.update({f"NEUROFLEET_{name}_PORT": str(port) for name, port in ports.items()})
    os.environ |= {
        "NEUROFLEET_HOME": str(home),
        "NEUROFLEET_DATA": os.environ.get("NEUROFLEET_DATA", str(ROOT / "data")),
    }
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(home / "ray_token"), "OMP_NUM_THREADS": "1"}
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT / "platform"), os.environ.get("PYTHONPATH")]))
    neurofleet("up")
    try:
        yield
    finally:
        neurofleet("down")


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def neurofleet(*arguments: str) -> str:
    return done([sys.executable, "-m", "neurofleet.cli", *arguments])


def done(command: list[str]) -> str:
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=PATIENCE)
    if ended.returncode:
        sys.exit(f"{command}\n{ended.stdout[-3000:]}\n{ended.stderr[-3000:]}")
    return ended.stdout


def first_step_of_ours() -> float:
    """Seconds from the command to the line of the first step in the job's log."""
    began = time.time()
    job = json.loads(neurofleet("submit", "--json", "train", *PERCEPTRON))
    log = Path(os.environ["NEUROFLEET_HOME"]) / "jobs" / job["id"] / "log.txt"
    wait_for(lambda: log.exists() and "progress step=" in log.read_text())
    first = time.time() - began
    wait_for(lambda: state(job["id"]) == "SUCCEEDED")
    return first


def first_step_of_ray(folder: Path, turn: int) -> float:
    mark = folder / f"first-step-{turn}"
    began = time.time()
    ray_job(SCRIPTS / "lightning_script.py", str(mark), str(Path(os.environ["NEUROFLEET_DATA"]) / "digits"))
    return float(mark.read_text()) - began


def trivial_job_of_ours() -> float:
    return timed([sys.executable, "-m", "neurofleet.cli", "submit", "train", *PERCEPTRON, *TWO_WORKERS])


def ray_job(script: Path, *arguments: str) -> float:
    """Seconds that `ray job submit` takes to the job's end."""
    dashboard = f"http://127.0.0.1:{os.environ['NEUROFLEET_DASHBOARD_PORT']}"
    command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", dashboard]
    variables = {"OMP_NUM_THREADS": "1", "RAY_TRAIN_V2_ENABLED": "1"}
    command += ["--runtime-env-json", json.dumps({"env_vars": variables}), "--"]
    return timed([*command, sys.executable, str(script), *arguments])


def timed(command: list[str]) -> float:
    began = time.time()
    done(command)
    return time.time() - began


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            sys.exit("waited in vain")
        time.sleep(0.02)


def state(job_id: str) -> str:
    from neurofleet.cluster.ledger import Ledger

    with Ledger() as book:
        return book.find(job_id).state


def listing(home: Path) -> tuple[float, float]:
    """Wall and CPU seconds of `neurofleet jobs --all` with 1,000 jobs that have ended, each with its log."""
    from neurofleet.cluster.job import SUCCEEDED, Order
    from neurofleet.cluster.ledger import Ledger

    os.environ["NEUROFLEET_HOME"] = str(home)
    content = json.dumps(dataclasses.asdict(Order("train", PERCEPTRON, ["true"], "/", what="mlp on digits")))
    with Ledger() as book:
        book.connection.executemany(
            "INSERT INTO jobs (id, content, priority, state, submitted, started, ended) VALUES (?, ?, 0, ?, 1, 1, 2)",
            [(f"train-{number:05d}", content, SUCCEEDED) for number in range(1000)],
        )
    neurofleet("jobs", "--all")  # Python compiles what it imports for the first time
    before, began = os.times(), time.perf_counter()
    assert neurofleet("jobs", "--all").count(SUCCEEDED) == 1000
    wall, after = time.perf_counter() - began, os.times()
    return wall, after.children_user + after.children_system - before.children_user - before.children_system


def checkpoint_cost(folder: Path, family: str, data: str) -> tuple[float, float]:
    """Median seconds that training stands still for a checkpoint, and the default interval in seconds."""
    from neurofleet import experiment as experiments
    from neurofleet.run import run
    from neurofleet.watch import Watch

    default = experiments.compose([f"family={family}", f"data={data}"])["trainer"]["checkpoint"]["every_n_minutes"]
    save, taken = Watch.save, list[float]()

    def timed_save(watch: Watch, trainer: Any, module: Any) -> None:
        began = time.perf_counter()
        save(watch, trainer, module)
        taken.append(time.perf_counter() - began)

    Watch.save = timed_save  # type: ignore[method-assign]
    settings = ["trainer.max_epochs=1", "trainer.checkpoint.every_n_steps=2"]
    run(experiments.compose([f"family={family}", f"data={data}", *settings]), folder=folder / family)
    Watch.save = save  # type: ignore[method-assign]
    return statistics.median(taken), default * 60


if __name__ == "__main__":
    main()
