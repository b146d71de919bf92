"""Finders measure with the steps of a run, suggest what the measurements say, and leave a run in MLflow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from neurofleet import experiment as experiments
from neurofleet.errors import ConfigError, MismatchError
from neurofleet.run import plan
from neurofleet.steps import Context
from neurofleet.study import batch_size_finder, finder
from neurofleet.study.batch_size_finder import BatchSizeFinder
from neurofleet.study.lr_finder import STANDSTILL, LearningRateFinder
from neurofleet.tracking import store_uri

# MLflow with SQLAlchemy 2.1
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")
DIGITS = ["family=mlp", "data=digits", "trainer.accelerator=cpu"]
RATES = {"min_lr": 1e-6, "max_lr": 10.0, "num_steps": 100, "early_stop_threshold": 4.0, "num_seeds": 3}
SIZES = {"min_batch_size": 8, "max_batch_size": None, "seconds": 0.02, "tolerance": 0.1}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NEUROFLEET_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def found(*overrides: str) -> tuple[finder.Found, Any, set[str]]:
    """What a finder found, its run, and the paths of the run's artifacts."""
    result = finder.find(finder.order([*DIGITS, *overrides]))
    client = MlflowClient(store_uri())
    artifacts = {one.path for folder in ("", "figures") for one in client.list_artifacts(result.run_id, folder)}
    return result, client.get_run(result.run_id), artifacts


# The range test.


def test_a_learning_rate_is_found_and_recorded() -> None:
    result, run, artifacts = found("finder=lr", "optimizer.lr=0.5")
    override = result.finding.override
    assert override is not None
    rate = float(override.removeprefix("optimizer.lr="))
    assert 2e-3 < rate < 3e-2, "AdamW on digits trains best around 1e-2"
    assert result.command == f"family=mlp data=digits trainer.accelerator=cpu {override}", "it replaces the one given"
    assert run.info.status == "FINISHED"
    assert run.data.tags["finder"] == "lr"
    assert run.data.tags["finder.suggestion"] == override
    assert run.data.params["finder.num_seeds"] == "3"
    assert {"finder.json", "figures/lr_finder.png"} <= artifacts
    assert run.data.metrics["finder/lr"] > rate


def test_the_test_takes_the_steps_of_a_run() -> None:
    """A loop of plain PyTorch over the run's batches sees the same losses."""
    experiment = experiments.compose([*DIGITS, "trainer.precision=64-true", "optimizer=sgd", "seed=5"])
    measured = LearningRateFinder(**RATES | {"num_steps": 30, "max_lr": 0.1, "num_seeds": 1}).measure(experiment)
    planned = plan(experiment)
    family, losses = planned.family, []
    loader = planned.supply.loader(
        family.device, seed=5, max_epochs=20, epochs_per_round=1, cut_every=None, rank=0, world_size=1
    )
    optimizer = torch.optim.SGD(family.parameters(), lr=1.0, momentum=0.9, nesterov=True)
    for step, rate in enumerate(np.geomspace(1e-6, 0.1, 30)):
        optimizer.param_groups[0]["lr"] = rate
        chunk = loader.chunk(step, step + 1)
        loss = family.objective(chunk.batches[0], Context(5, step, step / STANDSTILL, chunk.rows[0], True, False)).loss  # type: ignore[index]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert measured["losses"][0] == pytest.approx(losses, rel=1e-9)


def curves(mean: Any, noise: float = 0.05, num_seeds: int = 3) -> dict[str, Any]:
    """A measurement whose mean loss is a function of the rate's logarithm."""
    rates = np.geomspace(1e-6, 10, 100)
    random = np.random.default_rng(0)
    losses = [(mean(np.log10(rates)) + noise * random.standard_normal(100)).tolist() for _ in range(num_seeds)]
    return {"lr": rates.tolist(), "losses": losses, "steps_per_epoch": 10}


def suggested(measured: dict[str, Any]) -> float | None:
    override = LearningRateFinder(**RATES).conclude(measured).override
    return None if override is None else float(override.removeprefix("optimizer.lr="))


@pytest.mark.parametrize("level", [2.3, -40.0])
def test_the_steepest_point_is_suggested_without_lag(level: float) -> None:
    rate = suggested(curves(lambda x: level - 2 / (1 + np.exp(-4 * (x + 3)))))
    assert rate is not None
    assert abs(np.log10(rate) + 3) < 0.2


def test_what_falls_after_an_explosion_has_not_learnt() -> None:
    def loss(x: np.ndarray) -> np.ndarray:
        fall = 2.3 - 2 / (1 + np.exp(-4 * (x + 3)))
        return np.where(x > -1, 300 * np.exp(-4 * (x + 1)), fall)

    rate = suggested(curves(loss))
    assert rate is not None
    assert abs(np.log10(rate) + 3) < 0.3


@pytest.mark.parametrize("num_seeds", [1, 3])
@pytest.mark.parametrize("noise", [0, 0.01, 1])
def test_chance_is_no_fall(noise: float, num_seeds: int) -> None:
    assert suggested(curves(lambda x: np.full(100, 2.3), noise, num_seeds)) is None


def test_a_loss_that_never_falls_suggests_nothing() -> None:
    result, run, artifacts = found("finder=lr", "finder.min_lr=1e-9", "finder.max_lr=1e-8", "finder.num_seeds=1")
    assert result.finding.override is None
    assert result.command is None
    assert "no suggestion" in result.finding.report
    assert run.info.status == "FINISHED"
    assert run.data.tags["finder.suggestion"] == "none"
    assert "figures/lr_finder.png" in artifacts


def test_a_loss_that_explodes_at_once_suggests_nothing() -> None:
    result, _, _ = found("finder=lr", "optimizer=sgd", "finder.min_lr=1e3", "finder.max_lr=1e6", "finder.num_seeds=1")
    assert result.finding.override is None
    assert "lower finder.min_lr" in result.finding.report


def test_the_progress_of_training_stands_still() -> None:
    """A map whose radius shrinks would lower its loss at any rate."""
    experiment = experiments.compose(["family=som", "data=digits", "trainer.max_epochs=3", "trainer.accelerator=cpu"])
    settings = RATES | {"min_lr": 1e-9, "max_lr": 1e-8}
    measured = LearningRateFinder(**settings).measure(experiment)
    assert LearningRateFinder(**settings).conclude(measured).override is None


WORKER = """
import json, sys
import torch.distributed as dist
from neurofleet.study import finder
dist.init_process_group("gloo")
measured = finder.work(json.loads(sys.argv[1]))
if dist.get_rank() == 1:
    print(json.dumps(measured))
dist.destroy_process_group()
"""


@pytest.mark.parametrize("name", ["lr", "batch_size"])
def test_two_workers_measure_together(name: str, free_port: int) -> None:
    experiment = experiments.compose([*DIGITS, "trainer.precision=64-true"])
    targets = {"lr": "lr_finder.LearningRateFinder", "batch_size": "batch_size_finder.BatchSizeFinder"}
    settings = {"lr": RATES | {"num_seeds": 1}, "batch_size": SIZES | {"min_batch_size": 64}}[name]
    task = {"experiment": experiment, "finder": {"_target_": f"neurofleet.study.{targets[name]}", **settings}}
    place = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port)}
    command = [sys.executable, "-c", WORKER, json.dumps(task)]
    workers = [
        subprocess.Popen(
            command, env={**os.environ, **place, "RANK": rank, "LOCAL_RANK": rank}, stdout=subprocess.PIPE, text=True
        )
        for rank in "01"
    ]
    try:  # on a busy machine they have taken 82 s, nearly all of it imports
        said, told = [worker.communicate(timeout=300)[0].splitlines() for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0]
    measured = json.loads(told[-1])
    assert len(told) == 1, "one of them speaks"
    if name == "lr":
        assert len(said) == 1
        [alone] = finder.work(task)["losses"]
        [together] = measured["losses"]
        assert together[:50] == pytest.approx(alone[:50], rel=1e-9)
    else:
        assert measured["num_workers"] == 2
        assert [row["batch_size"] for row in measured["rows"]][:3] == [64, 128, 256]


# Batch sizes.


def rows(*rates: float) -> dict[str, Any]:
    table = [
        {"batch_size": 8 * 2**index, "rows_per_second": rate, "step_ms": 1.0, "memory_mib": 1.0 + index}
        for index, rate in enumerate(rates)
    ]
    return {"rows": table, "stopped": "", "num_workers": 1, "num_rows": 1000, "batch_size": 32}


@pytest.mark.parametrize(("tolerance", "size"), [(0.0, 64), (0.1, 32), (0.5, 16)])
def test_the_smallest_batch_near_the_best_is_suggested(tolerance: float, size: int) -> None:
    finding = BatchSizeFinder(**SIZES | {"tolerance": tolerance}).conclude(rows(10, 50, 91, 100, 95))
    assert finding.override == f"data.batch_size={size}"


def test_batch_sizes_are_measured_and_recorded() -> None:
    result, run, artifacts = found("finder=batch_size", "finder.seconds=0.02", "finder.max_batch_size=100")
    kept = json.loads((result.folder / "finder.json").read_text())
    table = kept["measured"]["rows"]
    assert [row["batch_size"] for row in table] == [8, 16, 32, 64, 100]
    assert table[-1]["rows_per_second"] > 1.5 * table[0]["rows_per_second"], "8 rows a step are mostly overhead"
    memory = [row["memory_mib"] for row in table]
    assert memory == sorted(memory)
    # 64 inputs, a target and what the layers 64-64-10 keep; weights, gradients and two moments of AdamW
    assert (memory[-1] - memory[0]) * 2**20 > (100 - 8) * (64 * 4 + 64 * 4)
    assert memory[0] * 2**20 > 4 * 4 * (64 * 64 + 64 * 10)
    assert kept["override"] == result.finding.override == run.data.tags["finder.suggestion"]
    assert {"finder.json", "figures/batch_size_finder.png"} <= artifacts


def test_a_batch_beyond_the_memory_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_size_finder, "_free", lambda bench: 40 * (64 * 4 + 64 * 4 + 10 * 4))
    measured = BatchSizeFinder(**SIZES).measure(experiments.compose(DIGITS))
    assert measured["stopped"].startswith("memory does not hold batches of")
    assert measured["rows"][-1]["batch_size"] in (16, 32)


def test_a_device_that_is_out_of_memory_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    take = finder.Bench.try_out

    def refuse(self: finder.Bench, batch: Any, context: Context) -> None:
        if len(batch[0]) > 32:
            raise torch.OutOfMemoryError("CUDA out of memory")
        take(self, batch, context)

    monkeypatch.setattr(finder.Bench, "try_out", refuse)
    measured = BatchSizeFinder(**SIZES).measure(experiments.compose(DIGITS))
    assert [row["batch_size"] for row in measured["rows"]] == [8, 16, 32]
    assert measured["stopped"] == "memory does not hold batches of 64"
    nothing = BatchSizeFinder(**SIZES).conclude(measured | {"rows": []})
    assert nothing.override is None
    assert "memory does not hold" in nothing.report


# Mistakes.


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["finder=lrr"], "there is no finder/lrr; did you mean lr"),
        (["finder=lr", "finder.max=1"], "did you mean finder.max_lr"),
        (["finder=lr", "finder.min_lr=1", "finder.max_lr=0.1"], "0 < finder.min_lr < finder.max_lr"),
        (["finder=lr", "finder.num_steps=3"], "finder.num_steps needs at least 20, got 3"),
        (["finder=batch_size", "finder.tolerance=2"], "0 <= tolerance < 1"),
        (["finder.max_lr=1"], "take finder=lr or finder=batch_size"),
        (["finder=lr", "launcher=ray", "launcher.num_workers=[1,2]"], "a finder needs a number of workers that stays"),
        (["finder=lr", "optimizer.lr=0.1,0.2"], "several values for optimizer.lr"),
        (["finder=lr", "search=tpe"], "got search=tpe; leave it out"),
        (["finder=lr", "study=mine"], "got study=mine; leave it out"),
        (["finder=lr", "family=gan", "data=mnist5k"], "got GAN: the loss of a game"),
        (["finder=lr", "family=dbn", "data=mnist5k"], "family.pretraining=0"),
        (["finder=lr", "family=dqn", "data=env/cartpole"], "got DQN: an agent's loss"),
        (["finder=batch_size", "family=ppo", "data=env/cartpole"], "needs a dataset of rows, got PPO"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(overrides: list[str], message: str, home: Path) -> None:
    assert finder.asked(overrides)
    with pytest.raises(ConfigError) as told:
        finder.order(overrides)
    assert message in f"{told.value}"
    assert not home.exists()


def test_a_family_that_does_not_fit_is_told() -> None:
    with pytest.raises(MismatchError, match="families that fit"):
        finder.order(["finder=lr", "family=cnn", "data=wine"])


def test_a_study_asks_for_no_finder() -> None:
    assert not finder.asked(["family=mlp", "optimizer.lr=0.1,0.2", "study=finder"])
