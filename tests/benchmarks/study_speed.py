"""`python tests/benchmarks/study_speed.py`: a study of perceptrons on digits against stock Ray Tune and a plain loop.

Everybody trains the same trials (learning rates and weight decays that our study drew) for the same epochs, validated
each epoch, one thread a trial, Ray warm and two CPUs for all.

    one process     `neurofleet tune`, from its overrides to the end of its last trial, every trial tracked in MLflow
    two actors      the same with launcher=ray, actors warm
    loop            tensors in memory, torch's fused AdamW, one trial after another; not tracked
    Tune, reuse     Ray Tune with Lightning, two actors that are reused; a trial is one call, which favours it
    Tune            Ray Tune with Lightning, an actor a trial; --trials-of-tune of them, and what that is for all

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
from collections.abc import Callable, Sequence
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
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from neurofleet import experiment as experiments
from neurofleet import tracking
from neurofleet.study import session

SPACE = ["optimizer.lr=tag(log,interval(3e-4,1e-2))", "optimizer.weight_decay=tag(log,interval(1e-4,1e-1))"]
AGREEMENT = 0.05
Settings = list[dict[str, float]]


def rows() -> tuple[Any, Any, int]:
    data = experiments.build_data(experiments.compose(["family=mlp", "data=digits"]))
    return data.rows("train"), data.rows("val"), data.batch_size


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def ours(num_trials: int, epochs: int, launcher: Sequence[str]) -> tuple[float, list[float], Settings]:
    """Seconds, the trials' losses, and their settings."""
    tracking.warm_up()
    time.sleep(8)  # MLflow's import in the tracking child is the machine's, not the study's
    ends: list[float] = []
    begin = time.perf_counter()
    task = ["family=mlp", "data=digits", f"trainer.max_epochs={epochs}", "trainer.num_threads=1", *SPACE, *launcher]
    order = session.order([*task, f"search.num_trials={num_trials}"])
    with contenders.silence():
        ended = session.conduct(order, session.begin(order), lambda _: ends.append(time.perf_counter()))
    assert ended.counts == {"complete": num_trials}, ended.counts
    trials = session.storage.trials(ended.name)
    return ends[0] - begin, [one.values[0] for one in trials], [dict(one.params) for one in trials]


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


def fit(settings: dict[str, float], epochs: int, callbacks: list[Any]) -> float:
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
    trainer.fit(Lightning(settings), *loaders)
    return float(trainer.callback_metrics["val/loss"])


def tune(trainable: Any, settings: Settings, *, reuse: bool) -> tuple[float, list[float]]:
    from ray import tune as ray_tune

    with tempfile.TemporaryDirectory() as folder:
        tuner = ray_tune.Tuner(
            ray_tune.with_resources(trainable, {"cpu": 1}),
            param_space={"settings": ray_tune.grid_search(settings)},
            tune_config=ray_tune.TuneConfig(reuse_actors=reuse, max_concurrent_trials=2),
            run_config=ray_tune.RunConfig(storage_path=folder, verbose=0),  # no checkpoints but Tune's own bookkeeping
        )
        begin = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            results = tuner.fit()
        seconds = time.perf_counter() - begin
    assert not results.errors, results.errors
    return seconds, [result.metrics["val/loss"] for result in results]


def an_actor_a_trial(epochs: int) -> Callable[[dict[str, Any]], None]:
    def train(config: dict[str, Any]) -> None:
        from ray.tune.integration.pytorch_lightning import TuneReportCallback

        fit(config["settings"], epochs, [TuneReportCallback(["val/loss", "val/accuracy"], on="validation_end")])

    return train


def reused_actors(epochs: int) -> type:
    from ray import tune as ray_tune

    class Reused(ray_tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            self.settings = config["settings"]

        def step(self) -> dict[str, Any]:
            return {"val/loss": fit(self.settings, epochs, []), "done": True}

        def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
            return {}

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.settings = new_config["settings"]
            return True

    return Reused


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--repetitions", type=int, default=3, help="of ours and the loop; Ray Tune runs once")
    parser.add_argument("--trials-of-tune", type=int, default=64, help="for an actor a trial, which takes minutes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    ours(options.trials, options.epochs, [])  # imports and caches
    alone = [ours(options.trials, options.epochs, []) for _ in range(options.repetitions)]
    settings = alone[-1][2]
    loops = [loop(settings, options.epochs) for _ in range(options.repetitions)]
    table: list[tuple[str, float, list[float]]] = [
        ("one process", median(one[0] for one in alone), alone[-1][1]),
        ("loop", median(one[0] for one in loops), loops[-1][1]),
    ]
    import ray

    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", _node_ip_address="127.0.0.1"
    )
    ray.get([ray.remote(lambda: None).remote() for _ in range(2)])
    table.append(("Tune, reuse", *tune(reused_actors(options.epochs), settings, reuse=True)))
    few = settings[: options.trials_of_tune]
    seconds, losses = tune(an_actor_a_trial(options.epochs), few, reuse=False)
    table.append((f"Tune ({len(few)} trials)", seconds * options.trials / len(few), losses))
    ray.shutdown()
    show(table, options.trials, options.epochs)


def show(table: list[tuple[str, float, list[float]]], num_trials: int, epochs: int) -> None:
    drawn = Table("", title=f"{num_trials} trials of {epochs} epochs, 64-64-10 on digits", title_justify="left")
    for heading in ("seconds", "times ours", "mean val/loss"):
        drawn.add_column(heading, justify="right")
    first, disagreeing = table[0], []
    for name, seconds, losses in table:
        same = first[2][: len(losses)]
        if abs(fmean(losses) - fmean(same)) > AGREEMENT * fmean(same):
            disagreeing.append(name)
        drawn.add_row(name, f"{seconds:.2f}", f"{seconds / first[1]:.1f}x", f"{fmean(losses):.4f}")
    Console(width=100).print(drawn)
    if disagreeing:
        sys.exit(f"results differ by more than {AGREEMENT:.0%}: {', '.join(disagreeing)}")


if __name__ == "__main__":
    main()
