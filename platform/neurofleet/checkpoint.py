"""Weights and checkpoints on disk: whole or absent, and never a pickle.

Every file is safetensors (huggingface.co/docs/safetensors): 8 bytes of header length, a JSON header that gives each
tensor's dtype, shape and place, then the raw bytes.  The format is written here, in some thirty lines, because a bare
training machine lacks the library; a test holds both to the same bytes.

A checkpoint carries plain JSON state in its header.  It is written aside, fsynced, hashed, and only then listed in
`index.json`, newest last; a reader verifies the hash and falls back to the one before.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from neurofleet.errors import CheckpointError

INDEX = "index.json"
# In the library's order of tensors, widest first, so that each starts at a multiple of its own width.
_DTYPES = {
    "I64": torch.int64,
    "F64": torch.float64,
    "F32": torch.float32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_ORDER = {dtype: place for place, dtype in enumerate(_NAMES)}
log = logging.getLogger(__name__)


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], *, keep_last: int) -> Path:
    """Write checkpoint `step` and drop all but the `keep_last` newest.

    Raises:
        CheckpointError: the disk refused; the checkpoints before it are untouched.
    """
    path = folder / f"step-{step:09d}.safetensors"
    payload = encode(tensors, {"state": json.dumps(state)})
    entry = {"file": path.name, "step": step, "sha256": hashlib.sha256(payload).hexdigest()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        entries = [old for old in _entries(folder) if old["step"] < step]
        write(path, payload)
        kept = [*entries, entry][-keep_last:]
        write(folder / INDEX, json.dumps(kept, indent=1).encode())
        for old in folder.glob("step-*"):  # `.part` is what a process that was killed left
            if old.name not in {entry["file"] for entry in kept}:
                old.unlink()
    except OSError as error:
        raise CheckpointError(f"cannot write the checkpoint {path}: {error}; free space or mend the folder") from error
    return path


def load(folder: Path, step: int | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and state of the newest checkpoint that passes its hash, or of checkpoint `step`.

    Raises:
        CheckpointError: there is none, or none passes.
    """
    entries = [entry for entry in _entries(folder) if step in (None, entry["step"])]
    for entry in reversed(entries):
        path = folder / entry["file"]
        payload = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(payload).hexdigest() == entry["sha256"]:
            tensors, metadata = decode(payload)
            return tensors, json.loads(metadata["state"])
        log.warning("checkpoint %s is missing or damaged; falling back to the one before", path)
    raise CheckpointError(f"{folder} needs a checkpoint that passes its hash, got none of {len(entries)}; train afresh")


def exists(folder: Path) -> bool:
    return bool(_entries(folder))


def listed(file: Path) -> str | None:
    """The sha256 that the index beside a checkpoint gives for it, or None where none does."""
    return next((entry["sha256"] for entry in _entries(file.parent) if entry["file"] == file.name), None)


def _entries(folder: Path) -> list[dict[str, Any]]:
    index = folder / INDEX
    try:
        entries = list(json.loads(index.read_text())) if index.is_file() else []
        return [{"file": entry["file"], "step": entry["step"], "sha256": entry["sha256"]} for entry in entries]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{index} needs to list the checkpoints, and is damaged ({error}); train afresh"
        ) from error


def is_sharded(module: nn.Module) -> bool:
    """Whether every worker holds only a part of each weight."""
    return isinstance(next(module.parameters()), DTensor)


def save_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError if the disk refuses; what stood there before is untouched."""
    try:
        write(path, encode(tensors, {"format": "pt"}))
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error}; free space or mend the folder") from error


def encode(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file, the very bytes that the library writes: metadata in its header, tensors in its order."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    parts, offset = [], 0
    for name in sorted(tensors, key=lambda name: (_ORDER[tensors[name].dtype], name)):
        tensor = tensors[name].detach().cpu().contiguous()
        # Of no or one element any stride counts as contiguous, and only a stride of one can be seen as bytes.
        raw = tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8).numpy().tobytes()
        place = [offset, offset + len(raw)]
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": place}
        parts.append(raw)
        offset += len(raw)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of eight bytes
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def decode(payload: bytes | bytearray) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, and metadata, of a safetensors file; they stand in the memory of a bytearray, without a copy.

    Raises:
        CheckpointError: the header and the bytes do not agree.
    """
    try:
        length = int.from_bytes(payload[:8], "little")
        if 8 + length > len(payload):
            raise ValueError(f"a header of {length} bytes in a file of {len(payload)}")
        header = json.loads(payload[8 : 8 + length])
        metadata = header.pop("__metadata__", {})
        body = memoryview(payload if isinstance(payload, bytearray) else bytearray(payload))[8 + length :]
        tensors = {}
        for name, about in header.items():
            begin, end = about["data_offsets"]
            if begin != end:
                raw = torch.frombuffer(body, dtype=torch.uint8, count=end - begin, offset=begin)
            else:  # a buffer needs at least one byte
                raw = torch.empty(0, dtype=torch.uint8)
            tensors[name] = raw.view(_DTYPES[about["dtype"]]).reshape(about["shape"])
        return tensors, metadata
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"a safetensors file needs a header that fits its bytes: {error}") from error


def write(path: Path, payload: bytes) -> None:
    """All of the payload under its name, or nothing."""
    temporary = path.with_suffix(path.suffix + ".part")
    try:
        with temporary.open("wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def pack_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The tensors of an optimizer's state by name; its settings are the experiment's business."""
    return {
        f"optimizer.{index}.{key}": value
        for index, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put packed tensors back; each takes its parameter's memory layout, which fused kernels rely on."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, value in tensors.items():
        kind, _, rest = name.partition(".")
        if kind != "optimizer":
            continue
        index, key = rest.split(".", 1)
        parameter = parameters[int(index)]
        if value.shape == parameter.shape:
            value = like(value, parameter)
        elif optimizer.defaults.get("fused"):  # a fused kernel counts steps where it computes
            value = value.to(parameter.device)
        optimizer.state[parameter][key] = value


def like(value: Tensor, reference: Tensor) -> Tensor:
    """A copy of a whole tensor with the reference's device, memory layout and share of it."""
    copy = torch.empty_like(reference, requires_grad=False)
    fill({"": copy}, {"": value})
    return copy


@torch.no_grad()
def fill(targets: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy whole tensors into the targets of the same names, of which a worker may hold a share only."""
    for name, target in targets.items():
        value = values[name].to(target.device)
        if isinstance(target, DTensor):
            value = distribute_tensor(value, target.device_mesh, target.placements)
        target.copy_(value)


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors, from those of which each worker holds a share; then every worker has to call this."""
    return {name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor for name, tensor in tensors.items()}
