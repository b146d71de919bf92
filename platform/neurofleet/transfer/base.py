"""Base: a network to start from: what is built, the data it learnt from, and its weights.

A base is kept in `NEUROFLEET_HOME/bases/<sha256>/`, by the digest of its weights and spec: so a run that names the
digest has the same start wherever and however often it is started, and is refused another one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from neurofleet import checkpoint, paths
from neurofleet.errors import CheckpointError, ConfigError
from neurofleet.spec import DataSpec

WEIGHTS, SPEC = "weights.safetensors", "spec.json"
_latest: dict[str, dict[str, Tensor]] = {}  # the one that was kept or read last: the trials of a study share it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base:
    """Where a network starts from.

    uri:     as resolved, to be found again: models:/mnist5k-cnn/3, runs:/<id>, pretrained/minilm, a file
    name:    short, part of the names of runs and models made from it: mnist5k-cnn, minilm
    encoder: config of what is built: `_target_` (a family, or one of `neurofleet.transfer.backbones`) and its settings
    spec:    of the data that it learnt from; of a packaged backbone, what it takes
    weights: by the names of the built module's parameters and buffers; those of its heads may lack
    tags:    of its history, for lineage: base.run_id, base.version, base.data.digest, as far as they are known
    """

    uri: str
    name: str
    encoder: Mapping[str, Any]
    spec: DataSpec
    weights: Mapping[str, Tensor]
    tags: Mapping[str, str] = dataclasses.field(default_factory=dict)


def keep(base: Base) -> str:
    """Store the weights and the spec, and the digest by which `weights` and `spec` find them again.

    Raises:
        CheckpointError: the disk refused.
    """
    described = json.dumps(base.spec.to_dict(), indent=1).encode()
    payload = checkpoint.encode(base.weights, {"format": "pt", "spec": hashlib.sha256(described).hexdigest()})
    digest = hashlib.sha256(payload).hexdigest()
    folder = paths.home() / "bases" / digest
    path = folder / WEIGHTS
    if not path.is_file():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            checkpoint.write(folder / SPEC, described)  # a text's vocabulary is too long for an experiment
            checkpoint.write(path, payload)  # last: where it lies the folder is whole
        except OSError as error:
            raise CheckpointError(f"cannot keep the base in {path}: {error}; free space or mend the folder") from error
    _remember(digest, dict(base.weights))
    return digest


def _remember(digest: str, tensors: dict[str, Tensor]) -> None:
    _latest.clear()
    _latest[digest] = tensors


def weights(digest: str, uri: str) -> dict[str, Tensor]:
    """The weights that were kept under a digest; they are not to be written to.

    Raises:
        ConfigError: they are not here (a run that came from another machine), or not what they were.
    """
    if digest in _latest:
        return _latest[digest]
    path = _kept(digest, uri) / WEIGHTS
    payload = bytearray(path.stat().st_size)
    with path.open("rb") as file:
        file.readinto(payload)
    if hashlib.sha256(payload).hexdigest() != digest:
        raise ConfigError(f"{path} is damaged: its sha256 is not {digest}; delete it and fine-tune again, base={uri}")
    _remember(digest, checkpoint.decode(payload)[0])
    return _latest[digest]


def spec(digest: str, uri: str) -> DataSpec:
    """The spec that was kept under a digest, with a text's vocabulary; raises ConfigError as `weights` does."""
    return DataSpec.load(_kept(digest, uri) / SPEC)


def _kept(digest: str, uri: str) -> Path:
    folder = paths.home() / "bases" / digest
    if not (folder / WEIGHTS).is_file():
        raise ConfigError(f"the base {uri} needs to lie in {folder}, and does not; fine-tune from it again, base={uri}")
    return folder
