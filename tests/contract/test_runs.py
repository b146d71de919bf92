"""What `run` promises for every family: workers end with the weights of one, and a cut run with those of a whole one,
also where fewer workers go on than began.

Each family trains twice over a dataset that it accepts (`FIRST` says which is taken, by preference), in float64.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from neurofleet import checkpoint, paths
from neurofleet import experiment as experiments
from neurofleet.errors import ConfigError
from neurofleet.run import plan, run
from neurofleet.spec import DataSpec

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = sorted(path.stem for path in (ROOT / "configs" / "family").glob("*.yaml"))
FIRST = ("digits", "env/cartpole", "italy_power_demand")
COMMON = ["trainer.precision=64-true", "trainer.max_epochs=2", "trainer.num_threads=1"]
COMMON += ["trainer.checkpoint.every_n_minutes=null", "trainer.checkpoint.keep_last=1000"]
BATCH = "data.batch_size=300"  # of 1,257 rows: five steps an epoch, the last a small one
AGENT = ["data.num_environments=4", "data.steps_per_epoch=256", "data.num_episodes=3", "data.batch_size=50"]
OWN = {  # a memory that overflows, and rollouts that are cut within
    "dqn": [*AGENT, "family.replay={capacity: 150, warmup: 64, steps_per_update: 16}", "family.num_steps=3"],
    "ppo": [*AGENT, "family.rollout={num_steps: 32, num_epochs: 2}"],
}
SHARDED = ("launcher=ray", "launcher.strategy=fsdp", "optimizer=adamw")
CUT = "trainer.checkpoint.every_n_steps=3"
# Ways to learn that differ in what is random, or in what is kept beside the weights.
VARIANTS = {
    "autoencoder-denoising": ["data=digits", BATCH, "family.variant=denoising"],
    "autoencoder-variational": ["data=digits", BATCH, "family.variant=variational"],
    "dbn-persistent": ["data=digits", BATCH, "family.num_chains=20"],
    "gan-wasserstein": ["data=digits", BATCH, "family.loss=wasserstein", "family.penalty_every=2"],
    "ppo-continuous": ["data=env/pendulum", *OWN["ppo"]],
    "siamese-views": [
        *("data=digits", BATCH, "family.pairs=views", "family.loss=ntxent", "family.erasing=0.3"),
        "family.encoder.augmentation={degrees: 20.0, scale: 0.1, translation: 0.1}",
    ],
    "spiking-rate": ["data=digits", BATCH, "family.coding=rate"],
    "transformer-language": ["data=pydoc_topics", "data.batch_size=1000", "family.width=16", "family.num_layers=1"],
}
EVERY = [*FAMILIES, *VARIANTS]


def accepts(family: str, data: str) -> bool:
    if "/" in data:
        return family in OWN
    return family in experiments.fitting_families(DataSpec.load(paths.data() / data / "spec.json"))


def composed(name: str, *overrides: str) -> dict[str, Any]:
    if name in VARIANTS:
        return experiments.compose([f"family={name.split('-')[0]}", *COMMON, CUT, *VARIANTS[name], *overrides])
    data = next(data for data in FIRST if accepts(name, data))
    return experiments.compose([f"family={name}", f"data={data}", *COMMON, CUT, *OWN.get(name, [BATCH]), *overrides])


def weights(folder: Path) -> dict[str, Tensor]:
    return checkpoint.decode((folder / "weights.safetensors").read_bytes())[0]


def difference(first: Path, second: Path) -> float:
    left, right = weights(first), weights(second)
    assert set(left) == set(right)
    return max(float((left[name].double() - right[name].double()).abs().max()) for name in left)


def shardable(name: str) -> bool:
    try:
        plan(composed(name, *SHARDED))
    except ConfigError as error:
        assert "set launcher.strategy=ddp" in str(error)  # noqa: PT017  # there is no other way to ask
        return False
    return True


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Where a family was trained by one worker."""
    folder = tmp_path_factory.mktemp("alone")
    torch.set_num_threads(1)

    def trained(family: str) -> Path:
        if not (folder / family).exists():
            run(composed(family), folder=folder / family)
        return folder / family

    return trained


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each family, where it was trained by two workers."""
    folder = tmp_path_factory.mktemp("shared")
    each = [(name, composed(name)) for name in EVERY]
    each += [(f"{name}-sharded", composed(name, *SHARDED)) for name in FAMILIES if shardable(name)]
    jobs = [{"experiment": one, "folder": str(folder / name), "num_workers": 2} for name, one in each]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, str(ROOT / "tests" / "run_groups.py"), str(folder / "jobs.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def cut(whole: Path, folder: Path, place: int | None = None) -> Path:
    """A copy of a run that goes on from checkpoint `place`, from the middle one if None."""
    index = json.loads((whole / "checkpoints" / "index.json").read_text())
    shutil.copytree(whole, folder)
    (folder / "weights.safetensors").unlink()
    last = len(index) // 2 if place is None else place
    (folder / "checkpoints" / "index.json").write_text(json.dumps(index[: last + 1]))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("family", EVERY)
def test_two_workers_end_with_the_weights_of_one(family: str, alone: Callable[[str], Path], shared: Path) -> None:
    assert difference(alone(family), shared / family) < 1e-9
    mine, theirs = (json.loads((folder / "history.json").read_text()) for folder in (alone(family), shared / family))
    for row, other in zip(mine, theirs, strict=True):
        assert other == pytest.approx(row, rel=1e-6, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("family", EVERY)
def test_one_worker_goes_on_where_one_of_two_was_lost(
    family: str, alone: Callable[[str], Path], shared: Path, tmp_path: Path
) -> None:
    folder = cut(shared / family, tmp_path / "cut")
    run(composed(family), folder=folder, resume=True)
    assert difference(alone(family), folder) < 1e-9


SHARDING = {"autoencoder", "capsule", "cnn", "mlp", "rnn", "siamese", "spiking", "transformer"}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_layers_split_over_workers_end_with_the_weights_of_one(
    family: str, alone: Callable[[str], Path], shared: Path
) -> None:
    folder = shared / f"{family}-sharded"
    assert folder.exists() is (family in SHARDING)
    if family in SHARDING:
        assert difference(alone(family), folder) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("family", EVERY)
def test_a_cut_run_ends_with_the_weights_of_a_whole_one(
    family: str, alone: Callable[[str], Path], tmp_path: Path
) -> None:
    for place in (0, None):  # from the first checkpoint, and from the middle
        folder = cut(alone(family), tmp_path / str(place), place)
        run(composed(family), folder=folder, resume=True)
        assert difference(folder, alone(family)) == 0
        exhibits = [
            checkpoint.decode((one / "exhibits.safetensors").read_bytes())[0] for one in (folder, alone(family))
        ]
        assert set(exhibits[0]) == set(exhibits[1])
        assert all(torch.equal(exhibits[0][name], exhibits[1][name]) for name in exhibits[0])
