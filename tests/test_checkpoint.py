"""Checkpoints: whole or absent, found damaged before they are used, and the very bytes of the safetensors library."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn

from neurofleet import checkpoint
from neurofleet.errors import CheckpointError


def every_dtype() -> dict[str, Tensor]:
    """All dtypes, so named that neither order by name nor by width is the other; odd sizes, scalars, empty, strided."""
    tensors = {
        f"{9 - place}.{name}": torch.arange(7).to(dtype)
        for place, (name, dtype) in enumerate(checkpoint._DTYPES.items())
    }
    tensors |= {"scalar": torch.tensor(1.5), "empty": torch.zeros(0, 4), "one": torch.ones(1, 1, dtype=torch.int64)}
    tensors |= {"transposed": torch.arange(6.0).reshape(2, 3).T, "extremes": torch.tensor([torch.inf, torch.nan, -0.0])}
    tensors["channels_last"] = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    tensors["empty, stride 0"] = torch.empty_strided((0,), (0,), dtype=torch.int64)
    tensors["one of every fifth"] = torch.arange(10)[3::5][:1]
    tensors["umlaut ä"] = torch.tensor([True, False])
    return tensors


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype is tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert torch.equal(found[name].nan_to_num(7.0), tensor.nan_to_num(7.0)), name


# The format.


def test_our_bytes_are_the_librarys() -> None:
    for tensors in (every_dtype(), {}, {"a": torch.ones(1)}):
        plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
        assert checkpoint.encode(tensors, {"format": "pt"}) == safetensors.torch.save(plain, {"format": "pt"})


def test_the_library_reads_ours_and_we_read_the_librarys(tmp_path: Path) -> None:
    tensors = every_dtype()
    checkpoint.save_weights(tmp_path / "ours.safetensors", tensors)
    assert_same(safetensors.torch.load_file(tmp_path / "ours.safetensors"), tensors)
    with safe_open(tmp_path / "ours.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
    found, metadata = checkpoint.decode(safetensors.torch.save(plain, {"any": 'te"xt\n'}))
    assert_same(found, tensors)
    assert metadata == {"any": 'te"xt\n'}


def test_decoded_tensors_are_aligned_and_their_own() -> None:
    payload = checkpoint.encode(every_dtype(), {})
    found, _ = checkpoint.decode(payload)
    assert all(tensor.data_ptr() % tensor.element_size() == 0 for tensor in found.values())
    for tensor in found.values():
        tensor.zero_()
    assert_same(
        checkpoint.decode(payload)[0], every_dtype() | {"channels_last": checkpoint.decode(payload)[0]["channels_last"]}
    )


def header(**tensor: Any) -> bytes:
    text = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | tensor}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(8)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"short",
        bytes(8),
        (10**12).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"12",
        (2).to_bytes(8, "little") + b"\xff\xfe",
        (7).to_bytes(8, "little") + b'{"a":1}',
        header(dtype="F8"),
        header(dtype=["F32"]),
        header(shape=[3]),
        header(shape=[-1, 3]),
        header(shape="2"),
        header(shape=[2**62, 2**62]),
        header(data_offsets=[0, 16]),
        header(data_offsets=[-8, 0]),
        header(data_offsets=[8, 0]),
        header(data_offsets=[0, 6]),
        header(data_offsets=[0, 0]),
        header(data_offsets=None),
        header(data_offsets=[0]),
        header(data_offsets=[0.0, 8.0]),
    ],
)
def test_a_header_that_does_not_fit_its_bytes_is_refused(payload: bytes) -> None:
    with pytest.raises(CheckpointError, match="needs a header that fits its bytes"):
        checkpoint.decode(payload)


def test_no_damage_escapes_as_another_error() -> None:
    chance = random.Random(0)
    payload = checkpoint.encode({"a": torch.arange(4.0), "b": torch.ones(2, 2, dtype=torch.bool)}, {"k": "v"})
    for _ in range(2000):
        damaged = bytearray(payload)
        for _ in range(chance.randint(1, 3)):
            damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        del damaged[chance.randint(0, 2 * len(damaged)) :]
        try:
            tensors, _ = checkpoint.decode(bytes(damaged))
        except CheckpointError:
            continue
        assert sum(tensor.nbytes for tensor in tensors.values()) <= 2 * len(payload)


# The folder.


def write(folder: Path, *steps: int, keep_last: int = 10) -> None:
    for step in steps:
        tensors = {"weight": torch.full((5,), float(step)), "mask": torch.tensor([True])}
        checkpoint.save(folder, step, tensors, {"step": step, "loss": step / 7}, keep_last=keep_last)


def loaded(folder: Path, step: int | None = None) -> int:
    tensors, state = checkpoint.load(folder, step)
    assert torch.equal(tensors["weight"], torch.full((5,), float(state["step"])))
    assert state["loss"] == state["step"] / 7
    return int(state["step"])


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_is_loaded_and_any_by_its_step(tmp_path: Path) -> None:
    assert not checkpoint.exists(tmp_path / "new")
    write(tmp_path / "new", 3, 10, 200)
    assert checkpoint.exists(tmp_path / "new")
    assert loaded(tmp_path / "new") == 200
    assert [loaded(tmp_path / "new", step) for step in (3, 10, 200)] == [3, 10, 200]
    with pytest.raises(CheckpointError, match="got none of 0"):
        checkpoint.load(tmp_path / "new", 4)


def test_only_the_newest_stay(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, 3, 4, keep_last=2)
    assert files(tmp_path) == ["index.json", "step-000000003.safetensors", "step-000000004.safetensors"]
    assert loaded(tmp_path, 3) == 3
    write(tmp_path, 5, keep_last=1)
    assert files(tmp_path) == ["index.json", "step-000000005.safetensors"]


def test_going_back_drops_what_came_later(tmp_path: Path) -> None:
    """A run that fell back to step 10 and trains on writes a new future."""
    write(tmp_path, 10, 20, 30)
    write(tmp_path, 15)
    assert [entry["step"] for entry in json.loads((tmp_path / "index.json").read_text())] == [10, 15]
    assert loaded(tmp_path) == 15


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [flip, Path.unlink, lambda path: os.truncate(path, 100), lambda path: os.truncate(path, 0)],
    ids=["flip", "unlink", "truncate", "empty"],
)
@pytest.mark.chaos("damage to a checkpoint", allowed="refused, the one before loads, and says so")
def test_a_damaged_one_falls_back_and_says_so(
    damage: Callable[[Path], object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, 1, 2, 3)
    assert loaded(tmp_path) == 3
    assert caplog.records == []
    for step in (3, 2):
        damage(tmp_path / f"step-{step:09d}.safetensors")
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert loaded(tmp_path) == step - 1
        assert f"step-{step:09d}.safetensors is missing or damaged; falling back" in caplog.text
    with pytest.raises(CheckpointError, match="got none of 1"):
        checkpoint.load(tmp_path, 2)
    damage(tmp_path / "step-000000001.safetensors")
    with pytest.raises(CheckpointError, match=r"needs a checkpoint that passes its hash, got none of 3"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[1]", "{}x", '[{"step": 1}]', "\x00"])
def test_a_damaged_index_is_refused(content: str, tmp_path: Path) -> None:
    write(tmp_path, 1)
    (tmp_path / "index.json").write_text(content)
    for use in (checkpoint.exists, checkpoint.load, lambda folder: write(folder, 2)):
        with pytest.raises(CheckpointError, match=r"index\.json needs to list the checkpoints, and is damaged"):
            use(tmp_path)
    assert (tmp_path / "step-000000001.safetensors").is_file()


def test_a_refusing_disk_leaves_the_previous_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 1, 2, keep_last=2)
    before = files(tmp_path)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(CheckpointError, match=r"cannot write the checkpoint .*No space left.*; free space"):
            write(tmp_path, 3, keep_last=2)
        with pytest.raises(CheckpointError, match=r"cannot write .*weights\.safetensors.*No space left.*; free space"):
            checkpoint.save_weights(tmp_path / "weights.safetensors", {})
    assert files(tmp_path) == before
    assert [loaded(tmp_path, step) for step in (1, 2)] == [1, 2]


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("mine")
    with pytest.raises(CheckpointError, match="cannot write the checkpoint"):
        write(tmp_path / "checkpoints", 1)
    assert (tmp_path / "checkpoints").read_text() == "mine"


def write_until_killed(folder: Path, pipe: int) -> None:
    """In a forked child: checkpoint after checkpoint, each announced once it is written."""
    entries = json.loads((folder / "index.json").read_text()) if checkpoint.exists(folder) else [{"step": 0}]
    step = int(entries[-1]["step"])
    while True:
        step += 1
        checkpoint.save(folder, step, {"weight": torch.full((200_000,), float(step))}, {"step": step}, keep_last=2)
        os.write(pipe, f"{step}\n".encode())


@pytest.mark.chaos("SIGKILL at any moment of writing, 40 times", allowed="the last that was announced loads, 40 of 40")
def test_a_kill_at_any_moment_leaves_a_good_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The newest that was announced, or the one that was being announced; and nothing is left behind for good."""
    chance = random.Random(1)
    for _ in range(40):  # each goes on in the folder of the one that was killed before it
        reader, pipe = os.pipe()
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                write_until_killed(tmp_path, pipe)
            os._exit(1)
        os.close(pipe)
        with os.fdopen(reader) as lines:
            announced = [int(lines.readline())]
            time.sleep(chance.uniform(0, 0.03))
            os.kill(child, signal.SIGKILL)
            announced += [int(line) for line in lines]
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        tensors, state = checkpoint.load(tmp_path)
        assert state["step"] in (announced[-1], announced[-1] + 1)
        assert torch.equal(tensors["weight"], torch.full((200_000,), float(state["step"])))
    assert caplog.records == [], "falling back was never needed"
    checkpoint.save(tmp_path, 10**6, {}, {}, keep_last=1)
    assert files(tmp_path) == ["index.json", "step-001000000.safetensors"]


# The optimizer.

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, fused=True),
    "adam-amsgrad": lambda parameters: torch.optim.Adam(parameters, lr=1e-2, amsgrad=True),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=1e-2, fused=True),
    "sgd-momentum": lambda parameters: torch.optim.SGD(parameters, lr=1e-2, momentum=0.9, nesterov=True, fused=True),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=1e-2),
    "rmsprop-momentum": lambda parameters: torch.optim.RMSprop(parameters, lr=1e-2, momentum=0.9, centered=True),
    "adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=1e-2, fused=True),
    "adagrad-decay": lambda parameters: torch.optim.Adagrad(parameters, lr=1e-2, lr_decay=0.1),
}


def network(dtype: torch.dtype) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(16, 1, bias=False))
        layers.register_parameter("gain", nn.Parameter(torch.ones(())))
    return layers.to(dtype).to(memory_format=torch.channels_last)


def train(layers: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(4, 3, 6, 6, generator=generator).to(next(layers.parameters()).dtype)
        (layers(images) * layers.gain).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_goes_on_to_the_very_same_bits(name: str, dtype: torch.dtype) -> None:
    whole, cut = network(dtype), network(dtype)
    train(whole, OPTIMIZERS[name](whole.parameters()), range(6))
    before = OPTIMIZERS[name](cut.parameters())
    train(cut, before, range(3))
    tensors = {**cut.state_dict(), **checkpoint.pack_optimizer(before)}
    tensors, _ = checkpoint.decode(checkpoint.encode(tensors, {}))
    after_cut = network(dtype)
    after_cut.load_state_dict({key: value for key, value in tensors.items() if not key.startswith("optimizer.")})
    after = OPTIMIZERS[name](after_cut.parameters())
    checkpoint.unpack_optimizer(after, tensors)
    for old, new in zip(cut.parameters(), after_cut.parameters(), strict=True):
        for key, value in before.state[old].items():
            assert value is None or after.state[new][key].stride() == value.stride(), key
    train(after_cut, after, range(3, 6))
    for left, right in zip(whole.parameters(), after_cut.parameters(), strict=True):
        assert torch.equal(left, right)
