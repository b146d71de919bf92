"""Runs: the hot path is the loop that anybody would write by hand, however it is shared, cut, stopped or resumed."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from neurofleet import checkpoint, counter
from neurofleet import experiment as experiments
from neurofleet.data import EnvironmentDataModule
from neurofleet.errors import CheckpointError, ConfigError, DivergedError, StoppedError
from neurofleet.run import Result, plan, run
from neurofleet.watch import STOP, Row

Experiment = dict[str, Any]
QUICK = ["trainer.precision=64-true", "trainer.max_epochs=2", "trainer.checkpoint.every_n_minutes=null"]
MLP = [
    *QUICK,
    "family.hidden=[16]",
    "family.dropout=0.3",
    "data.batch_size=157",
]  # nine steps an epoch, the last of one row
CNN = [*QUICK, "family=cnn", "family.channels=[8,8]", "family.kernel_size=3", "family.hidden=16", "data.batch_size=200"]
CNN += ["family.augmentation={degrees: 10.0, scale: 0.1, translation: 0.1}"]


@pytest.fixture(scope="module")
def compose() -> Callable[..., Experiment]:
    """Composed once each: Hydra takes as long as a short run."""
    made: dict[tuple[str, ...], Experiment] = {}

    def composed(*overrides: str) -> Experiment:
        if overrides not in made:
            made[overrides] = experiments.compose(list(overrides))
        return copy.deepcopy(made[overrides])

    return composed


def weights(folder: Path) -> dict[str, Tensor]:
    return checkpoint.decode((folder / "weights.safetensors").read_bytes())[0]


def difference(first: Path, second: Path) -> float:
    left, right = weights(first), weights(second)
    assert set(left) == set(right)
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def history(folder: Path) -> list[dict[str, float]]:
    return list(json.loads((folder / "history.json").read_text()))


# Truth: a loop by hand.


def by_hand(experiment: Experiment) -> tuple[dict[str, Tensor], list[float]]:
    """The plain loop over shuffled batches, without dropout; weights, and the mean loss of every epoch."""
    data = experiments.build_data(experiment)
    inputs, targets = data.rows("train")
    inputs = inputs.double()
    network = experiments.build_family(experiment, data.spec).double()
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01, weight_decay=0.1)
    size, epochs = data.batch_size, experiment["trainer"]["max_epochs"]
    num_steps, step, means = epochs * math.ceil(len(inputs) / size), 0, []
    for epoch in range(epochs):
        losses = []
        key = counter.fold(experiment["seed"], -1, torch.tensor([epoch], dtype=torch.int32))
        for rows in counter.permutations(key, len(inputs))[0].split(size):  # type: ignore[arg-type]
            optimizer.param_groups[0]["lr"] = 0.01 * (1 + math.cos(math.pi * step / num_steps)) / 2
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(network(inputs[rows]), targets[rows])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 0.5)
            optimizer.step()
            losses.append(loss.item())
            step += 1
        means.append(sum(losses) / len(losses))
    return network.state_dict(), means


@pytest.mark.parametrize("family", [MLP, CNN], ids=["mlp", "cnn"])
def test_a_run_is_the_loop_by_hand(family: list[str], compose: Callable[..., Experiment], tmp_path: Path) -> None:
    plain = [
        "family.dropout=0.0",
        "optimizer=adamw",
        "optimizer.lr=0.01",
        "optimizer.weight_decay=0.1",
        "schedule=cosine",
    ]
    plain += ["trainer.gradient_clip_val=0.5"]
    plain += ["family.augmentation={degrees: 0.0, scale: 0.0, translation: 0.0}"] if family is CNN else []
    experiment = compose(*family, *plain)
    expected, means = by_hand(experiment)
    result = run(experiment, folder=tmp_path)
    found = weights(tmp_path)
    assert max(float((found[name] - expected[name]).abs().max()) for name in expected) < 1e-12
    rows = history(tmp_path)
    assert [row["train/loss_epoch"] for row in rows] == pytest.approx(means, rel=1e-12)
    assert result.num_steps == rows[-1]["step"]
    assert result.num_parameters == sum(value.numel() for value in expected.values())


def test_what_a_run_reports_is_true(compose: Callable[..., Experiment], tmp_path: Path) -> None:
    """The scores of held-out rows, from the predictions that the run left and by hand."""
    result = run(compose(*MLP), folder=tmp_path)
    predictions, _ = checkpoint.decode((tmp_path / "predictions.safetensors").read_bytes())
    outputs, targets = predictions["outputs"], predictions["targets"]
    assert len(targets) == 360
    assert result.metrics["test/accuracy"] == pytest.approx(
        float((outputs.argmax(1) == targets).double().mean()), rel=1e-6
    )
    assert result.metrics["test/loss"] == pytest.approx(
        float(torch.nn.functional.cross_entropy(outputs, targets)), rel=1e-6
    )
    last = history(tmp_path)[-1]
    assert {name: result.metrics[name] for name in last if "/" in name} == {n: v for n, v in last.items() if "/" in n}
    assert [row["epoch"] for row in history(tmp_path)] == [1, 2]
    assert experiments.load(tmp_path / "experiment.yaml") == compose(*MLP)
    assert {path.name for path in tmp_path.iterdir()} == {
        "experiment.yaml", "spec.json", "checkpoints", "weights.safetensors", "predictions.safetensors",
        "exhibits.safetensors", "history.json", ".writer",
    }  # fmt: skip


class Notes:
    """A tracker that remembers."""

    def __init__(self, then: Callable[[int], None] = lambda step: None) -> None:
        self.rows: list[Row] = []
        self.then = then

    def log_many(self, rows: Sequence[Row]) -> None:
        self.rows += rows
        self.then(rows[-1][0])


def test_a_tracker_hears_every_measured_step_in_order(compose: Callable[..., Experiment], tmp_path: Path) -> None:
    notes = Notes()
    run(compose(*MLP, "trainer.log_every_n_steps=4"), folder=tmp_path, tracker=notes)
    training = [(step, epoch) for step, epoch, metrics in notes.rows if "train/loss" in metrics]
    assert training == [(step, step / 9) for step in (0, 4, 8, 12, 16)]
    assert all(
        set(metrics) == {"train/loss", "train/accuracy"} for _, _, metrics in notes.rows if "train/loss" in metrics
    )
    rounds = [(step, epoch, metrics) for step, epoch, metrics in notes.rows if "val/loss" in metrics]
    assert [(step, epoch) for step, epoch, _ in rounds] == [(9, 1), (18, 2)]
    assert [metrics for *_, metrics in rounds] == [
        {n: v for n, v in row.items() if "/" in n} for row in history(tmp_path)
    ]


# The same again, and not the same.


@pytest.mark.parametrize("family", [MLP, CNN], ids=["mlp", "cnn"])
def test_the_seed_decides(family: list[str], compose: Callable[..., Experiment], tmp_path: Path) -> None:
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        torch.manual_seed(len(name))
        run(compose(*family, f"seed={seed}"), folder=tmp_path / name)
    assert difference(tmp_path / "first", tmp_path / "again") == 0
    assert history(tmp_path / "first") == history(tmp_path / "again")
    assert difference(tmp_path / "first", tmp_path / "other") > 1e-3


STEPS = ["trainer.checkpoint.every_n_steps=7", "trainer.checkpoint.keep_last=1000"]
SHARDED = ["launcher=ray", "launcher.strategy=fsdp", *STEPS]
GROUPS = {
    "mlp-2": (2, MLP),
    "mlp-3": (3, MLP),
    "mlp-uneven": (
        2,
        [*QUICK, "family.dropout=0.5", "data.batch_size=99", "optimizer=sgd", "trainer.gradient_clip_val=0.1"],
    ),
    "cnn-2": (2, CNN),
    "binary-3": (3, [*QUICK, "data=breast_cancer", "family.dropout=0.2", "data.batch_size=100"]),
    "mlp-steps": (2, [*MLP, *STEPS]),
    "mlp-sharded": (2, [*MLP, *SHARDED]),
    "cnn-sharded": (2, [*CNN, *SHARDED, "trainer.gradient_clip_val=0.5"]),
    "regression-2": (2, [*QUICK, "data=diabetes", "family.dropout=0.2", "data.batch_size=101"]),
}


def run_groups(jobs: list[dict[str, Any]], folder: Path, project_root: Path) -> None:
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, str(project_root / "tests" / "run_groups.py"), str(folder / "jobs.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory, project_root: Path, compose: Callable[..., Experiment]) -> Path:
    folder = tmp_path_factory.mktemp("groups")
    jobs = [
        {"experiment": compose(*overrides), "folder": str(folder / name), "num_workers": num_workers}
        for name, (num_workers, overrides) in GROUPS.items()
    ]
    run_groups(jobs, folder, project_root)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", GROUPS)
def test_workers_end_with_the_weights_of_one(
    name: str, groups: Path, compose: Callable[..., Experiment], tmp_path: Path
) -> None:
    num_workers, overrides = GROUPS[name]
    alone = run(compose(*overrides), folder=tmp_path)
    assert difference(tmp_path, groups / name) < 1e-9
    for mine, theirs in zip(history(tmp_path), history(groups / name), strict=True):
        assert theirs == pytest.approx(mine, rel=1e-6)
    said = [json.loads((groups / name / f"metrics-{rank}.json").read_text()) for rank in range(num_workers)]
    assert all(metrics == said[0] for metrics in said)
    assert said[0] == pytest.approx(alone.metrics, rel=1e-6)


@pytest.mark.slow
def test_workers_go_on_from_a_checkpoint_however_many_they_are_now(
    groups: Path, compose: Callable[..., Experiment], tmp_path: Path, project_root: Path
) -> None:
    jobs = []
    for name in ("mlp-sharded", "mlp-steps"):
        for num_workers in (1, 2, 3):
            folder = tmp_path / f"{name}-{num_workers}"
            shutil.copytree(groups / name, folder)
            (folder / "weights.safetensors").unlink()
            index = folder / "checkpoints" / "index.json"
            index.write_text(json.dumps(json.loads(index.read_text())[:2]))
            job = {"experiment": compose(*GROUPS[name][1]), "folder": str(folder), "num_workers": num_workers}
            # Two on one node and one on another, as a cluster may have room for them.
            jobs.append(job | {"resume": True, "nodes": {1: [1], 2: [2], 3: [2, 1]}[num_workers]})
    run_groups(jobs, tmp_path, project_root)
    for name in ("mlp-sharded", "mlp-steps"):
        assert difference(tmp_path / f"{name}-2", groups / name) == 0
        for num_workers in (1, 3):
            assert difference(tmp_path / f"{name}-{num_workers}", groups / name) < 1e-9


def test_a_sharded_run_refuses_a_kernel_that_does_not_know_shards(compose: Callable[..., Experiment]) -> None:
    with pytest.raises(ConfigError, match=r"needs an unfused SGD, got optimizer\.fused=true"):
        plan(compose("family=mlp", "optimizer=sgd", "launcher=ray", "launcher.strategy=fsdp"))


@pytest.mark.parametrize("family", ["som", "gan"])
def test_a_sharded_run_refuses_a_family_that_is_more_than_layers(
    family: str, compose: Callable[..., Experiment]
) -> None:
    with pytest.raises(ConfigError, match=r"takes weights by another way, too; set launcher\.strategy=ddp"):
        plan(compose(f"family={family}", "optimizer=adamw", "launcher=ray", "launcher.strategy=fsdp"))


# Cut and resumed.


def resumed_from(step: int, whole: Path, folder: Path, experiment: Experiment) -> Result:
    """A copy of a run as it stood when checkpoint `step` had just been written, run on to its end."""
    shutil.copytree(whole, folder)
    for product in ("weights.safetensors", "predictions.safetensors", "history.json"):
        (folder / product).unlink()
    index = folder / "checkpoints" / "index.json"
    index.write_text(json.dumps([entry for entry in json.loads(index.read_text()) if entry["step"] <= step]))
    return run(experiment, folder=folder, resume=True)


RESUMED = {
    "mlp-adamw": [*MLP, "optimizer=adamw", "schedule=cosine", "schedule.warmup=0.2"],
    "mlp-sgd": [*MLP, "optimizer=sgd", "trainer.check_val_every_n_epoch=2", "trainer.max_epochs=3"],
    "mlp-adagrad": [*MLP, "optimizer=adagrad", "optimizer.lr_decay=0.1"],
    "cnn-rmsprop": [*CNN, "optimizer=rmsprop"],
    "early-stopping": [*MLP, "trainer=early_stopping", "optimizer=sgd", "optimizer.lr=0.9", *QUICK[:1],
                       "trainer.max_epochs=9", "trainer.early_stopping.patience=2"],
}  # fmt: skip


@pytest.mark.parametrize("name", RESUMED)
def test_a_run_resumes_from_every_checkpoint_to_the_same_bits(
    name: str, compose: Callable[..., Experiment], tmp_path: Path
) -> None:
    experiment = compose(*RESUMED[name], "trainer.checkpoint.every_n_steps=7", "trainer.checkpoint.keep_last=100")
    uncut, whole = tmp_path / "uncut", tmp_path / "whole"
    run(compose(*RESUMED[name]), folder=uncut)
    result = run(experiment, folder=whole)
    assert difference(uncut, whole) == 0, "writing checkpoints changes nothing"
    steps = [entry["step"] for entry in json.loads((whole / "checkpoints" / "index.json").read_text())]
    assert steps == sorted({*range(7, result.num_steps, 7), result.num_steps})
    if name == "early-stopping":
        assert result.num_steps < 81, "it did stop early"
        rows = history(whole)
        best = min(rows, key=lambda row: row["val/loss"])
        assert best is not rows[-1]
        assert best is not rows[0], "it has to improve after a checkpoint"
        assert result.metrics["val/loss"] == best["val/loss"], "what is reported is of the weights that are kept"
    for step in steps:
        again = resumed_from(step, whole, tmp_path / str(step), experiment)
        assert difference(whole, tmp_path / str(step)) == 0, step
        assert history(tmp_path / str(step)) == history(whole), step
        assert again.metrics == result.metrics, step
        assert again.num_steps == result.num_steps


def test_the_best_weights_are_those_of_the_best_validation(compose: Callable[..., Experiment], tmp_path: Path) -> None:
    stopped = run(compose(*RESUMED["early-stopping"]), folder=tmp_path / "stopped")
    best = min(history(tmp_path / "stopped"), key=lambda row: row["val/loss"])
    experiment = compose(
        *RESUMED["early-stopping"], "trainer.early_stopping=null", f"trainer.max_epochs={int(best['epoch'])}"
    )
    short = run(experiment, folder=tmp_path / "short")
    assert difference(tmp_path / "stopped", tmp_path / "short") == 0
    assert short.metrics["test/loss"] == stopped.metrics["test/loss"]


@pytest.mark.chaos("two damaged checkpoints, then resume", allowed="the weights of a whole run")
def test_a_damaged_checkpoint_costs_only_its_steps(compose: Callable[..., Experiment], tmp_path: Path) -> None:
    experiment = compose(*MLP, "trainer.checkpoint.every_n_steps=7", "trainer.checkpoint.keep_last=100")
    run(experiment, folder=tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "damaged")
    for step in (14, 18):
        os.truncate(tmp_path / "damaged" / "checkpoints" / f"step-{step:09d}.safetensors", 1000)
    run(experiment, folder=tmp_path / "damaged", resume=True)
    assert difference(tmp_path / "whole", tmp_path / "damaged") == 0


def test_resuming_what_is_done_trains_nothing(compose: Callable[..., Experiment], tmp_path: Path) -> None:
    first = run(compose(*MLP), folder=tmp_path)
    before = (tmp_path / "weights.safetensors").read_bytes()
    notes = Notes()
    again = run(compose(*MLP), folder=tmp_path, resume=True, tracker=notes)
    assert (tmp_path / "weights.safetensors").read_bytes() == before
    assert again.metrics == first.metrics
    assert all(name.startswith("test/") for _, _, metrics in notes.rows for name in metrics)


def test_a_score_that_is_good_enough_ends_a_run(compose: Callable[..., Experiment], tmp_path: Path) -> None:
    """And its weights are the best, even if Lightning has waited since a better loss of before."""
    stopping = {"monitor": "val/accuracy", "mode": "max", "patience": 9, "min_delta": 0.9, "restore_best": True}
    experiment = compose(*MLP, "trainer.max_epochs=9")
    experiment["trainer"]["early_stopping"] = stopping | {"stopping_threshold": 0.34}
    result = run(experiment, folder=tmp_path)
    scores = [row["val/accuracy"] for row in history(tmp_path)]
    assert 1 < len(scores) < 9
    assert max(scores[:-1]) <= 0.34 < scores[-1]
    assert result.metrics["val/accuracy"] == scores[-1]
    shorter = run(compose(*MLP, f"trainer.max_epochs={len(scores)}"), folder=tmp_path / "shorter")
    assert difference(tmp_path, tmp_path / "shorter") == 0
    assert shorter.metrics["test/accuracy"] == result.metrics["test/accuracy"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.chaos(
    "a signal to a run in one process", allowed="a checkpoint at most a chunk later; the weights of a whole run"
)
def test_a_signal_leaves_a_checkpoint_to_go_on_from(
    number: signal.Signals, compose: Callable[..., Experiment], tmp_path: Path
) -> None:
    experiment = compose(*MLP, "trainer.max_epochs=4", "trainer.log_every_n_steps=10")
    run(experiment, folder=tmp_path / "whole")
    notes = Notes(then=lambda step: os.kill(os.getpid(), number) if step == 10 else None)
    handler = signal.getsignal(number)
    with pytest.raises(StoppedError, match=rf"stopped by {number.name} at step \d+") as info:
        run(experiment, folder=tmp_path / "cut", tracker=notes)
    assert info.value.exit_code == 128 + number
    assert signal.getsignal(number) is handler, "the caller's handler is back"
    _, state = checkpoint.load(tmp_path / "cut" / "checkpoints")
    assert 10 < state["step"] <= 18
    assert not (tmp_path / "cut" / "weights.safetensors").exists()
    run(experiment, folder=tmp_path / "cut", resume=True)
    assert difference(tmp_path / "whole", tmp_path / "cut") == 0
    assert history(tmp_path / "whole") == history(tmp_path / "cut")


def test_workers_whose_driver_is_told_to_stop_leave_a_checkpoint(
    compose: Callable[..., Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group of one: that all of a larger one stop at the same step is what the chaos suite sees on Ray."""
    folder = tmp_path / "cut"
    folder.mkdir()
    notes = Notes(then=lambda step: (folder / STOP).write_text("15") if step == 10 else None)
    experiment = compose(
        *MLP, "trainer.max_epochs=4", "trainer.log_every_n_steps=10", "trainer.check_val_every_n_epoch=4"
    )
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}.items():
        monkeypatch.setenv(name, str(value))
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        with pytest.raises(StoppedError, match=r"stopped by SIGTERM at step \d+") as info:
            run(experiment, folder=folder, tracker=notes)
    finally:
        dist.destroy_process_group()
    assert info.value.exit_code == 143
    assert 10 < checkpoint.load(folder / "checkpoints")[1]["step"] <= 18


@pytest.mark.chaos("a run goes on elsewhere while its cut-off writer trains", allowed="the old writer is refused")
def test_a_writer_whose_run_goes_on_elsewhere_is_refused(compose: Callable[..., Experiment], tmp_path: Path) -> None:
    experiment = compose(*MLP, "trainer.log_every_n_steps=10", "trainer.checkpoint.every_n_steps=5")
    run(experiment, folder=tmp_path / "whole")
    folder = tmp_path / "cut"

    def elsewhere(step: int) -> None:
        if step == 10:  # another process has resumed it from here
            shutil.copytree(folder, tmp_path / "other")
            run(experiment, folder=tmp_path / "other", resume=True)
            shutil.copytree(tmp_path / "other", folder, dirs_exist_ok=True)

    with pytest.raises(CheckpointError, match="one process at a time writes the checkpoints of a run"):
        run(experiment, folder=folder, tracker=Notes(then=elsewhere))
    run(experiment, folder=folder, resume=True)
    assert difference(tmp_path / "whole", folder) == 0


def test_a_second_signal_does_not_wait(compose: Callable[..., Experiment], tmp_path: Path) -> None:
    def twice(step: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the second one ends the run at once")

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run(compose(*MLP), folder=tmp_path, tracker=Notes(then=twice))
    assert not checkpoint.exists(tmp_path / "checkpoints")


# What goes wrong.

# The only step of a run: its own loss is fine, what it does to the weights is not.
ONE_BIG_STEP = ["optimizer=sgd", "optimizer.lr=1e308", "optimizer.momentum=0.0", "optimizer.nesterov=false"]
ONE_BIG_STEP += ["optimizer.weight_decay=1e10", "data.batch_size=100000", "trainer.max_epochs=1"]


@pytest.mark.parametrize(
    "overrides",
    [
        ["optimizer=sgd", "optimizer.lr=1e200"],
        ["optimizer=sgd", "optimizer.lr=1e200", "data.train_splits=[train,val]"],
        [*ONE_BIG_STEP],
        [*ONE_BIG_STEP, "data.train_splits=[train,val]"],
    ],
)
@pytest.mark.chaos("NaN at step k", allowed="DivergedError that names the step; no weights")
def test_a_diverged_run_says_where_and_leaves_no_weights(
    overrides: list[str], compose: Callable[..., Experiment], tmp_path: Path
) -> None:
    with pytest.raises(DivergedError, match=r"must stay finite.* step \d+; lower optimizer\.lr") as info:
        run(compose(*MLP, *overrides), folder=tmp_path)
    assert info.value.step < 18
    assert not (tmp_path / "weights.safetensors").exists()
    assert not checkpoint.exists(tmp_path / "checkpoints")


def test_a_disk_that_refuses_is_an_error(compose: Callable[..., Experiment], tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(CheckpointError, match="cannot write the checkpoint"):
        run(compose(*MLP), folder=tmp_path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.max_epochs=0", r"trainer\.max_epochs needs a whole number of at least 1, got 0"),
        ("trainer.check_val_every_n_epoch=0", r"trainer\.check_val_every_n_epoch needs"),
        ("trainer.log_every_n_steps=0", r"trainer\.log_every_n_steps needs"),
        ("trainer.precision=16", r"precision needs"),
        ("trainer.precision=16-true", r"trainer\.precision needs one of 32-true, 64-true, bf16-mixed, got '16-true'"),
        ("trainer.register=team/cnn", r"trainer\.register needs true, false, or a model's name of .*got 'team/cnn'"),
        ("trainer.accelerator=tpu", r"trainer\.accelerator needs auto, cpu or gpu, got 'tpu'"),
        ("trainer.gradient_clip_val=0", r"trainer\.gradient_clip_val needs a number above 0"),
        ("trainer.num_threads=0", r"trainer\.num_threads needs"),
        ("trainer.num_threads=-1", r"trainer\.num_threads needs"),
        ("trainer.checkpoint.every_n_steps=0", r"trainer\.checkpoint\.every_n_steps needs"),
        ("trainer.checkpoint.every_n_steps=-7", r"trainer\.checkpoint\.every_n_steps needs"),
        ("trainer.checkpoint.every_n_steps=often", r"trainer\.checkpoint\.every_n_steps needs"),
        ("trainer.checkpoint.every_n_minutes=0", r"trainer\.checkpoint\.every_n_minutes needs"),
        ("trainer.checkpoint.every_n_minutes=soon", r"trainer\.checkpoint\.every_n_minutes needs"),
        ("trainer.checkpoint.keep_last=0", r"trainer\.checkpoint\.keep_last needs"),
        ("trainer.checkpoint.keep_last=all", r"trainer\.checkpoint\.keep_last needs"),
        (
            "~trainer.checkpoint.keep_last",
            r"trainer\.checkpoint needs the keys every_n_minutes, every_n_steps, keep_last",
        ),
        ("+trainer.early_stopping.wait=1", r"trainer\.early_stopping needs the keys"),
        ("trainer.early_stopping.mode=less", r"trainer\.early_stopping\.mode needs min or max, got 'less'"),
        ("trainer.early_stopping.patience=-1", r"trainer\.early_stopping\.patience needs"),
        ("trainer.early_stopping.patience=long", r"trainer\.early_stopping\.patience needs"),
        ("trainer.early_stopping.min_delta=some", r"trainer\.early_stopping\.min_delta needs"),
        ("+trainer.early_stopping.stopping_threshold=high", r"trainer\.early_stopping\.stopping_threshold needs"),
        ("trainer.early_stopping.monitor=7", r"trainer\.early_stopping\.monitor needs"),
        ("data.train_splits=[train,val]", r"trainer\.early_stopping needs validation rows, got none"),
        ("family.hidden=[0]", r"family\.hidden needs"),
        ("optimizer.lr=-1", r"refuses optimizer\.lr=-1"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_written(
    override: str, message: str, compose: Callable[..., Experiment], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(compose("trainer=early_stopping", *MLP, override), folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_metric_to_watch_that_is_not_there_lists_those_that_are(
    compose: Callable[..., Experiment], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.early_stopping\.monitor needs .*'val/los'; did you mean val/loss"):
        run(compose("trainer=early_stopping", *MLP, "trainer.early_stopping.monitor=val/los"), folder=tmp_path)


def test_refitting_on_train_and_val(compose: Callable[..., Experiment], tmp_path: Path) -> None:
    result = run(compose(*MLP, "data.train_splits=[train,val]"), folder=tmp_path)
    assert result.num_steps == 2 * math.ceil((1257 + 180) / 157)
    assert [name for name in result.metrics if name.startswith("val/")] == []
    assert result.metrics["test/accuracy"] > 0.1
    assert json.loads((tmp_path / "spec.json").read_text())["num_rows"] == {"train": 1437, "val": 0, "test": 360}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_lower_precision_learns_too(precision: str, compose: Callable[..., Experiment], tmp_path: Path) -> None:
    overrides = [*MLP[1:], "data.batch_size=32", "optimizer.lr=0.01", f"trainer.precision={precision}"]
    result = run(compose(*overrides), folder=tmp_path)
    assert result.metrics["test/accuracy"] > 0.85
    assert {tensor.dtype for tensor in weights(tmp_path).values()} == {torch.float32}


def test_the_number_of_threads_is_the_callers_again(compose: Callable[..., Experiment], tmp_path: Path) -> None:
    before = torch.get_num_threads()
    run(compose(*MLP, "trainer.num_threads=2", "trainer.max_epochs=1"), folder=tmp_path)
    assert torch.get_num_threads() == before


def test_a_new_run_refuses_the_folder_of_another(compose: Callable[..., Experiment], tmp_path: Path) -> None:
    run(compose(*MLP, "seed=1"), folder=tmp_path)
    before = (tmp_path / "experiment.yaml").read_bytes()
    with pytest.raises(ConfigError, match="needs a folder without checkpoints"):
        run(compose(*MLP, "seed=2"), folder=tmp_path)
    with pytest.raises(ConfigError, match="got other settings of seed"):
        run(compose(*MLP, "seed=2"), folder=tmp_path, resume=True)
    assert (tmp_path / "experiment.yaml").read_bytes() == before
    experiments.save(compose(*MLP, "seed=2"), tmp_path / "experiment.yaml")
    with pytest.raises(CheckpointError, match="of another experiment"):
        run(compose(*MLP, "seed=2"), folder=tmp_path, resume=True)


def test_a_checkpoint_of_an_earlier_version_is_refused(compose: Callable[..., Experiment], tmp_path: Path) -> None:
    """One from before loaders had a state of their own."""
    experiment = compose(*MLP, "trainer.max_epochs=1")
    run(experiment, folder=tmp_path)
    tensors, state = checkpoint.load(tmp_path / "checkpoints")
    del state["loader"]
    checkpoint.save(tmp_path / "checkpoints", state["step"], tensors, state, keep_last=1)
    with pytest.raises(CheckpointError, match="of an earlier version, which cannot be gone on from; train afresh"):
        run(experiment, folder=tmp_path, resume=True)


@pytest.mark.parametrize("reward_scale", [1.0, math.inf], ids=["finished", "diverged"])
def test_a_run_closes_every_environment_that_it_opened(
    reward_scale: float, compose: Callable[..., Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, closed = [], []
    make = EnvironmentDataModule.make

    def watched(self: EnvironmentDataModule, **settings: Any) -> Any:
        environment = make(self, **settings)
        close = environment.close
        monkeypatch.setattr(environment, "close", lambda: (closed.append(id(environment)), close()), raising=True)
        opened.append(environment)
        return environment

    monkeypatch.setattr(EnvironmentDataModule, "make", watched)
    agent = ["family=ppo", "data=env/cartpole", "trainer.max_epochs=1", f"data.reward_scale={reward_scale}"]
    ends: Any = contextlib.nullcontext() if reward_scale == 1 else pytest.raises(DivergedError)
    with ends:
        run(compose(*agent), folder=tmp_path)
    assert len(opened) >= 8 + 10, "lanes, and the episodes of a validation at least"
    assert set(closed) == {id(environment) for environment in opened}


def test_a_run_that_was_written_but_never_began_begins_when_it_is_resumed(
    compose: Callable[..., Experiment], tmp_path: Path
) -> None:
    experiment = compose("family=mlp", "data=digits", "trainer.max_epochs=1")
    (tmp_path / "submitted").mkdir()
    experiments.save(experiment, tmp_path / "submitted" / "experiment.yaml")
    run(experiment, folder=tmp_path / "submitted", resume=True)
    run(experiment, folder=tmp_path / "new")
    names = ("weights.safetensors", "spec.json", "experiment.yaml")
    assert all((tmp_path / "submitted" / one).read_bytes() == (tmp_path / "new" / one).read_bytes() for one in names)


@pytest.mark.parametrize(("asked", "name"), [("true", "usual"), ("team.cnn-2", "team.cnn-2")])
def test_a_model_has_the_name_that_was_asked_for(compose: Callable[..., Experiment], asked: str, name: str) -> None:
    config = plan(compose(*MLP, f"trainer.register={asked}")).config
    assert config.register
    assert config.model_name("usual") == name
