"""Disks that are full, that refuse, that lie, or that lose their writer in the middle of a byte."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from neurofleet import checkpoint, paths
from neurofleet import experiment as experiments
from neurofleet.data import digest
from neurofleet.errors import CheckpointError
from neurofleet.run import run

IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
QUICK = ["family=mlp", "data=digits", "trainer.max_epochs=3", "trainer.checkpoint.every_n_minutes=null"]


def save(folder: Path, step: int) -> None:
    tensors = {"weight": torch.full((3_000,), float(step))}
    checkpoint.save(folder, step, tensors, {"step": step}, keep_last=2)


def killed_after(folder: Path, step: int, num_bytes: int) -> None:
    """In a forked child: a checkpoint whose writer gets SIGKILL when the disk has so many bytes of it."""
    left = num_bytes

    class Cut:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Cut:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def write(self, payload: bytes) -> None:
            nonlocal left
            os.write(self.file.fileno(), payload[:left])
            if len(payload) > left:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= len(payload)

    opened = Path.open

    def cut(path: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
        file = opened(path, mode, *rest, **more)
        return Cut(file) if mode == "wb" else file

    Path.open = cut  # type: ignore[method-assign, assignment]
    save(folder, step)


@pytest.mark.chaos("SIGKILL at a random byte of a checkpoint, 50 times", allowed="the one before loads, 50 of 50")
def test_a_checkpoint_that_is_cut_at_any_byte_leaves_the_one_before(
    tmp_path: Path, reached: Callable[[str], None]
) -> None:
    save(tmp_path / "whole", 1)
    sizes = [path.stat().st_size for path in (tmp_path / "whole").iterdir()]
    chance = random.Random(0)
    loaded = 0
    for _ in range(50):
        folder = tmp_path / "cut"
        save(folder, 1)
        child = os.fork()
        if child == 0:
            killed_after(folder, 2, chance.randrange(sum(sizes)))
            os._exit(0)  # it had less to write than was thought
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        tensors, state = checkpoint.load(folder)
        loaded += state["step"] == 1 and torch.equal(tensors["weight"], torch.full((3_000,), 1.0))
        shutil.rmtree(folder)
    reached(f"{loaded} of 50")
    assert loaded == 50


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    if not IS_ROOT or sys.platform != "linux":
        pytest.skip("only Linux's root can mount a small disk")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(place)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.chaos(
    "disk full on a tmpfs of 1 MB", allowed="ENOSPC named, the last good checkpoint loads, resumes elsewhere"
)
def test_a_disk_that_fills_up(small_disk: Path, tmp_path: Path, reached: Callable[[str], None]) -> None:
    overrides = [*QUICK, "family.hidden=[64]", "trainer.checkpoint.every_n_steps=1", "trainer.checkpoint.keep_last=100"]
    experiment = experiments.compose(overrides)
    with pytest.raises(CheckpointError, match=r"No space left on device.*; free space or mend the folder") as caught:
        run(experiment, folder=small_disk / "run")
    _, state = checkpoint.load(small_disk / "run" / "checkpoints")
    reached(f"{caught.value.__cause__}; the last good one, of step {state['step']}, loads")
    assert state["step"] > 1
    assert not list((small_disk / "run").rglob("*.part"))
    shutil.copytree(small_disk / "run", tmp_path / "elsewhere")
    assert run(experiment, folder=tmp_path / "elsewhere", resume=True).num_steps > state["step"]


@pytest.mark.chaos("unwritable folder (chattr +i)", allowed="an error at the first checkpoint")
def test_a_folder_that_refuses_is_an_error_at_the_first_checkpoint(
    tmp_path: Path, reached: Callable[[str], None]
) -> None:
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    if not IS_ROOT or shutil.which("chattr") is None:
        pytest.skip("only root can make a folder immutable, by chattr")
    done = subprocess.run(["chattr", "+i", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this disk knows no immutable folders: {done.stderr.strip()}")
    told: list[int] = []

    class Log:
        def log_many(self, rows: Any) -> None:
            told.extend(step for step, _, _ in rows)

    settings = ["trainer.checkpoint.every_n_steps=2", "trainer.log_every_n_steps=1"]
    try:
        with pytest.raises(
            CheckpointError, match=r"cannot write the checkpoint .*step-000000002.*not permitted"
        ) as caught:
            run(experiments.compose([*QUICK, *settings]), folder=tmp_path / "run", tracker=Log())
    finally:
        subprocess.run(["chattr", "-i", str(folder)], check=True)
    reached(f"{str(caught.value.__cause__).partition(':')[0]}, after {max(told) + 1} steps")
    assert max(told) == 1
    assert list(folder.iterdir()) == []


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project_root: Path) -> Path:
    """A project with a dataset of its own under DVC; `data/digits` comes out of its cache."""
    for folder in ("data/digits", ".dvc"):
        (tmp_path / folder).mkdir(parents=True)
    for file in (project_root / "data" / "digits").iterdir():
        shutil.copyfile(file, tmp_path / "data" / "digits" / file.name)
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n  prepare:\n    cmd: 'true'\n    outs:\n      - data/digits:\n          persist: true\n"
    )
    (tmp_path / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    subprocess.run(["dvc", "commit", "--force", "--quiet"], cwd=tmp_path, check=True, timeout=120)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEUROFLEET_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("NEUROFLEET_HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.mark.slow
@pytest.mark.chaos("bit flip in the DVC cache", allowed="refused, the file named, no step taken")
def test_a_bit_that_flips_in_the_cache(project: Path, reached: Callable[[str], None]) -> None:
    (project / "data" / "digits" / "train.parquet").unlink()
    cached = {
        digest.file_digest(path): path
        for path in (project / ".dvc" / "cache" / "files" / "md5").rglob("*")
        if path.is_file()
    }
    (listing,) = [path for path in cached.values() if path.suffix == ".dir"]
    wanted = next(entry["md5"] for entry in json.loads(listing.read_text()) if entry["relpath"] == "train.parquet")
    content = bytearray(cached[wanted].read_bytes())
    content[len(content) // 2] ^= 1
    cached[wanted].chmod(0o644)
    cached[wanted].write_bytes(content)
    cached[wanted].chmod(0o444)  # DVC believes what is read-only
    out = subprocess.run(["dvc", "checkout", "--force"], cwd=project, capture_output=True, text=True, timeout=120)
    there = project / "data" / "digits" / "train.parquet"
    command = [sys.executable, "-m", "neurofleet.cli", "train", "family=mlp", "data=digits"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=300)
    said = done.stderr.strip().splitlines()[-1]
    reached(f"exit {done.returncode}; dvc checkout {'refused' if out.returncode else 'believed it'}; {said[:90]}...")
    assert done.returncode == 2
    assert str(there) in said
    assert not (paths.home() / "runs").exists() or not list((paths.home() / "runs").iterdir())
