"""`python tests/benchmarks/study_speed.py`: a study of perceptrons on digits against stock Ray Tune and a plain loop.

Everybody trains the same trials (learning rates and weight decays that our study drew) for the same epochs, validated
each epoch, one thread a trial, Ray warm and two CPUs for all.

    one process     `neurofleet tune`, from its overrides to the end of its last trial, every trial tracked in MLflow
    two actors      the same with launcher=ray, actors warm
    loop            tensors in memory, torch's fused AdamW, one trial after another; not tracked
    Tune, reuse     Ray Tune with Lightning, two actors that are reused; a trial is one call, which favours it
    Tune            Ray Tune with Lightning, an actor a trial; --trials-of-tune of them, and what that is for all

`--rows` names those to run; the first always is.  `--case cnn` or `gru` is 32 trials on 500 rows of mnist5k or on
japanese_vowels, where Tune trains the very network.  `--asha` lets both halve, Tune by its own ASHA with a report an
epoch.

A table gives the seconds, how many times as long as the first row each takes, and the mean validation loss of the
trials, which has to agree within 5 %.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("NEUROFLEET_DATA", str(Path(__file__).resolve().parents[2] / "data"))
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ["NEUROFLEET_HOME"] = tempfile.mkdtemp(prefix="study-speed-")

import contenders
import pytorch_lightning as pl
import torch
from optuna.trial import FrozenTrial
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from neurofleet import experiment as experiments
from neurofleet import tracking
from neurofleet.launch import authentication, ensure_token
from neurofleet.study import session
from neurofleet.study.actors import ActorLanes
from neurofleet.study.lane_actor import get

SPACE = ["optimizer.lr=tag(log,interval(3e-4,1e-2))", "optimizer.weight_decay=tag(log,interval(1e-4,1e-1))"]
AGREEMENT = 0.05
Settings = list[dict[str, float]]


CASES = {
    "mlp": ["family=mlp", "data=digits"],
    "cnn": ["family=cnn", "data=mnist5k", "data.train_rows=500"],
    "gru": ["family=rnn", "family.cell=gru", "data=japanese_vowels"],
}
FACTOR = 3  # of ASHA: one of so many goes on


def case() -> list[str]:
    return CASES[os.environ.get("STUDY_CASE", "mlp")]  # actors of Ray are told by it, too


def grace(epochs: int) -> int:
    """Epochs before ASHA's first rung."""
    return max(1, epochs // 10)


def rows() -> tuple[Any, Any, int]:
    data = experiments.build_data(experiments.compose(case()))
    return data.rows("train"), data.rows("val"), data.batch_size


def network() -> nn.Module:
    if case() is CASES["mlp"]:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    experiment = experiments.compose(case())
    return experiments.build_family(experiment, experiments.build_data(experiment).spec)


def ours(num_trials: int, epochs: int, more: Sequence[str]) -> tuple[float, list[float], list[FrozenTrial]]:
    """Seconds, the losses of trials that were trained to their end, and all trials."""
    tracking.warm_up()
    time.sleep(8)  # MLflow's import in the tracking child is the machine's, not the study's
    ends: list[float] = []
    begin = time.perf_counter()
    task = [*case(), f"trainer.max_epochs={epochs}", "trainer.num_threads=1", *SPACE, *more]
    order = session.order([*task, f"search.num_trials={num_trials}"])
    with contenders.silence(), warm_actors() as waited:
        ended = session.conduct(order, session.begin(order), lambda _: ends.append(time.perf_counter()))
    assert set(ended.counts) <= {"complete", "pruned"}, ended.counts
    assert ended.counts.total() == num_trials, ended.counts
    trials = session.storage.trials(ended.name)
    losses = [one.values[0] for one in trials if one.state.name == "COMPLETE"]
    return ends[0] - begin - sum(waited), losses, trials


@contextlib.contextmanager
def warm_actors() -> Iterator[list[float]]:
    """The seconds that a study waits for its actors to start, which are no part of what a warm one takes."""
    original, waited = ActorLanes.begin, list[float]()

    def begin(lanes: ActorLanes, trials: Any) -> Any:
        since = time.perf_counter()
        for call in [seat.actor.begin.remote({}) for seat in lanes._seats]:
            get(call)
        waited.append(time.perf_counter() - since)
        return original(lanes, trials)

    ActorLanes.begin = begin
    try:
        yield waited
    finally:
        ActorLanes.begin = original


def loop(settings: Settings, epochs: int) -> tuple[float, list[float]]:
    (inputs, targets), (val_inputs, val_targets), batch_size = rows()
    losses = []
    begin = time.perf_counter()
    for each in settings:
        net = network()
        optimizer = torch.optim.AdamW(
            net.parameters(), lr=each["optimizer.lr"], weight_decay=each["optimizer.weight_decay"], fused=True
        )
        for _ in range(epochs):
            for chosen in torch.randperm(len(inputs)).split(batch_size):
                F.cross_entropy(net(inputs[chosen]), targets[chosen]).backward()
                optimizer.step()
                optimizer.zero_grad()
            with torch.no_grad():
                outputs = net(val_inputs)
                loss = F.cross_entropy(outputs, val_targets).item()
                (outputs.argmax(1) == val_targets).float().mean().item()
        losses.append(loss)
    return time.perf_counter() - begin, losses


class Lightning(pl.LightningModule):
    def __init__(self, settings: dict[str, float]) -> None:
        super().__init__()
        self.settings, self.network = settings, network()

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        loss = F.cross_entropy(self.network(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        outputs = self.network(batch[0])
        self.log("val/loss", F.cross_entropy(outputs, batch[1]))
        self.log("val/accuracy", (outputs.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        lr, decay = self.settings["optimizer.lr"], self.settings["optimizer.weight_decay"]
        return torch.optim.AdamW(self.parameters(), lr=lr, weight_decay=decay, fused=True)


def fit(settings: dict[str, float], epochs: int, callbacks: list[Any], module: Lightning | None = None) -> float:
    torch.set_num_threads(1)
    train, val, batch_size = rows()
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loaders = (DataLoader(TensorDataset(*train), batch_size, shuffle=True), DataLoader(TensorDataset(*val), 512))
    trainer.fit(module or Lightning(settings), *loaders)
    return float(trainer.callback_metrics["val/loss"])


def tune(trainable: Any, settings: Settings, *, reuse: bool, halves: int = 0) -> tuple[float, list[float]]:
    """halves: the epochs of a whole trial, where ASHA stops others before; then losses are of those that reach it."""
    from ray import tune as ray_tune

    asha = None
    if halves:
        asha = ray_tune.schedulers.ASHAScheduler(
            metric="val/loss", mode="min", max_t=halves, grace_period=grace(halves), reduction_factor=FACTOR
        )
    with tempfile.TemporaryDirectory() as folder:
        tuner = ray_tune.Tuner(
            ray_tune.with_resources(trainable, {"cpu": 1}),
            param_space={"settings": ray_tune.grid_search(settings)},
            tune_config=ray_tune.TuneConfig(reuse_actors=reuse, max_concurrent_trials=2, scheduler=asha),
            run_config=ray_tune.RunConfig(storage_path=folder, verbose=0),  # no checkpoints but Tune's own bookkeeping
        )
        begin = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            results = tuner.fit()
        seconds = time.perf_counter() - begin
    assert not results.errors, results.errors
    return seconds, [one.metrics["val/loss"] for one in results if one.metrics["training_iteration"] >= halves]


def an_actor_a_trial(epochs: int) -> Callable[[dict[str, Any]], None]:
    def train(config: dict[str, Any]) -> None:
        from ray.tune.integration.pytorch_lightning import TuneReportCallback

        fit(config["settings"], epochs, [TuneReportCallback(["val/loss", "val/accuracy"], on="validation_end")])

    return train


def reused_actors(epochs: int, *, by_epoch: bool = False) -> type:
    """A trial is one call; by epoch, as a scheduler needs it, a call trains one epoch of a network that stays."""
    from ray import tune as ray_tune

    class Reused(ray_tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            self.reset_config(config)

        def step(self) -> dict[str, Any]:
            loss = fit(self.settings, 1 if by_epoch else epochs, [], self.module)
            return {"val/loss": loss, "done": not by_epoch or self.iteration + 1 >= epochs}

        def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
            return {}

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.settings = new_config["settings"]
            self.module = Lightning(self.settings) if by_epoch else None
            return True

    return Reused


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, default="mlp")
    parser.add_argument(
        "--rows", nargs="*", choices=["actors", "loop", "reuse", "tune"], default=["loop", "reuse", "tune"]
    )
    parser.add_argument("--asha", action="store_true")
    parser.add_argument("--trials", type=int)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--repetitions", type=int, default=3, help="of ours and the loop; Ray Tune runs once")
    parser.add_argument("--trials-of-tune", type=int, default=64, help="for an actor a trial, which takes minutes")
    options = parser.parse_args()
    os.environ["STUDY_CASE"] = options.case
    trials, epochs = options.trials or (64 if options.case == "mlp" else 32), options.epochs
    torch.set_num_threads(1)
    os.environ.update(authentication())  # Ray reads it when it is imported, whoever does that first
    ensure_token()
    halving = ["scheduler=asha", f"scheduler.grace_epochs={grace(epochs)}", f"scheduler.reduction_factor={FACTOR}"]
    more = halving if options.asha else []
    ours(trials, epochs, more)  # imports and caches
    alone = [ours(trials, epochs, more) for _ in range(options.repetitions)]
    settings = [dict(one.params) for one in alone[-1][2]]
    table: list[tuple[str, float, list[float]]] = [("one process", median(one[0] for one in alone), alone[-1][1])]
    if "loop" in options.rows and not options.asha:
        loops = [loop(settings, epochs) for _ in range(options.repetitions)]
        table.append(("loop", median(one[0] for one in loops), loops[-1][1]))
    if "actors" in options.rows:
        two = [ours(trials, epochs, [*more, "launcher=ray"]) for _ in range(options.repetitions)]
        table.append(("two actors", median(one[0] for one in two), two[-1][1]))
    if {"reuse", "tune"} & set(options.rows):
        table += under_tune(options, settings, trials)
    if options.asha:
        table.append(("random search, to the end", *ours(trials, epochs, [])[:2]))
        used = sum(max(one.intermediate_values, default=0) for one in alone[-1][2])
        print(f"one process with ASHA trained {used / (trials * epochs):.0%} of random search's trial-epochs")
    show(table, f"{trials} trials of {epochs} epochs, {' '.join(case() + more)}", compare=not options.asha)


def under_tune(options: argparse.Namespace, settings: Settings, trials: int) -> list[tuple[str, float, list[float]]]:
    import ray

    epochs, table = options.epochs, []
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", _node_ip_address="127.0.0.1"
    )
    ray.get([ray.remote(lambda: None).remote() for _ in range(2)])
    if "reuse" in options.rows:
        trainable = reused_actors(epochs, by_epoch=options.asha)
        table.append(("Tune, reuse", *tune(trainable, settings, reuse=True, halves=epochs * options.asha)))
    if "tune" in options.rows:
        few = settings[: options.trials_of_tune]
        seconds, losses = tune(an_actor_a_trial(epochs), few, reuse=False)
        table.append((f"Tune ({len(few)} trials)", seconds * trials / len(few), losses))
    ray.shutdown()
    return table


def show(table: list[tuple[str, float, list[float]]], title: str, *, compare: bool) -> None:
    drawn = Table("", title=title, title_justify="left")
    for heading in ("seconds", "times ours", "mean val/loss", "lowest"):
        drawn.add_column(heading, justify="right")
    first, disagreeing = table[0], []
    for name, seconds, losses in table:
        same = first[2][: len(losses)]
        if compare and abs(fmean(losses) - fmean(same)) > AGREEMENT * fmean(same):
            disagreeing.append(name)
        drawn.add_row(
            name, f"{seconds:.2f}", f"{seconds / first[1]:.1f}x", f"{fmean(losses):.4f}", f"{min(losses):.4f}"
        )
    Console(width=100).print(drawn)
    if disagreeing:
        sys.exit(f"results differ by more than {AGREEMENT:.0%}: {', '.join(disagreeing)}")


if __name__ == "__main__":
    main()
