"""`python tests/benchmarks/study_overhead.py`: what a trial costs that trains nothing, here and under Ray Tune.

A stub says one score and is over.  Ours are asked of the sampler, composed, written to the study's journal and tracked
in MLflow; Ray Tune's are scheduled and tracked by nobody.  Seconds are from the start of the search to the end of the
last trial, Ray warm, two CPUs for all; an actor a trial is measured on fewer.

    one process    `neurofleet tune`, random search
    fuse=off       the same under Ray Tune, an actor a trial
    Tune, reuse    Ray Tune, two actors that are reused
    Tune           Ray Tune, an actor a trial
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("NEUROFLEET_DATA", str(Path(__file__).resolve().parents[2] / "data"))
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ["NEUROFLEET_HOME"] = tempfile.mkdtemp(prefix="study-overhead-")

from rich.console import Console
from rich.table import Table

from neurofleet import tracking
from neurofleet.experiment import Experiment
from neurofleet.launch import authentication, ensure_token
from neurofleet.study import session
from neurofleet.study.lane import Report

SPACE = ["family=mlp", "data=digits", "optimizer.lr=tag(log,interval(3e-4,1e-2))"]


class Stubs:
    """`engine.Lanes` that know every score at once."""

    num_devices = 1

    def __init__(self) -> None:
        self.training: set[int] = set()

    def begin(self, experiments: Mapping[int, Experiment]) -> tuple[list[Report], list[str]]:
        self.training |= set(experiments)
        return [], []

    def round(self, tick: Any) -> list[Report]:
        reports = [said(number) for number in sorted(self.training)]
        self.training.clear()
        return reports


def said(number: int) -> Report:
    loss = {"val/loss": 1.0 + number / 7 % 1}
    return Report(number, 1.0, loss, "COMPLETE", points=[(40, 1.0, loss)], num_parameters=1)


@contextlib.contextmanager
def stubs(*_: Any) -> Iterator[Stubs]:
    yield Stubs()


def stub_of_tune(config: dict[str, Any], task: Mapping[str, Any]) -> None:
    from neurofleet.study.stock_trial import _tell

    _tell(said(config["number"]), 40, task["lane"]["rank"])


def ours(num_trials: int, *more: str) -> float:
    from neurofleet.study import stock_trial

    tracking.warm_up()
    time.sleep(8)  # MLflow's import in the tracking child is the machine's, not the study's
    ends: list[float] = []
    lanes, train = session._lanes, stock_trial.train
    session._lanes = session._lanes if more else stubs
    stock_trial.train = stub_of_tune
    try:
        order = session.order([*SPACE, *more, f"search.num_trials={num_trials}", "search=random"])
        planned = session.begin(order)
        begin = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            ended = session.conduct(order, planned, lambda _: ends.append(time.perf_counter()))
    finally:
        session._lanes, stock_trial.train = lanes, train
    assert ended.counts == {"complete": num_trials}, ended.counts
    return ends[0] - begin


def tune(num_trials: int, *, reuse: bool) -> float:
    from ray import tune as ray_tune

    class Stub(ray_tune.Trainable):
        def step(self) -> dict[str, Any]:
            return {"val/loss": 1.0 + self.config["number"] / 7 % 1, "done": True}

        def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
            return {}

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.config = new_config
            return True

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        tuner = ray_tune.Tuner(
            ray_tune.with_resources(Stub, {"cpu": 1}),
            param_space={"number": ray_tune.grid_search(list(range(num_trials)))},
            tune_config=ray_tune.TuneConfig(reuse_actors=reuse, max_concurrent_trials=2),
            run_config=ray_tune.RunConfig(storage_path=folder, verbose=0),
        )
        begin = time.perf_counter()
        results = tuner.fit()
        seconds = time.perf_counter() - begin
    assert not results.errors, results.errors
    assert len(results) == num_trials
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--trials-an-actor", type=int, default=32)
    options = parser.parse_args()
    many, few = options.trials, options.trials_an_actor
    os.environ.update(authentication())  # Ray reads it when it is imported, whoever does that first
    ensure_token()
    ours(10)  # imports and caches
    table = Table("", title="stub trials", title_justify="left")
    for heading in ("trials", "seconds", "ms a trial"):
        table.add_column(heading, justify="right")

    def row(name: str, num_trials: int, seconds: float) -> None:
        table.add_row(name, str(num_trials), f"{seconds:.1f}", f"{seconds / num_trials * 1e3:.1f}")

    row("one process", many, ours(many))
    import ray

    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", _node_ip_address="127.0.0.1"
    )
    ray.get([ray.remote(lambda: None).remote() for _ in range(2)])
    row("fuse=off", few, ours(few, "search.fuse=off"))
    row("Tune, reuse", many, tune(many, reuse=True))
    row("Tune", few, tune(few, reuse=False))
    ray.shutdown()
    Console(width=80).print(table)


if __name__ == "__main__":
    main()
