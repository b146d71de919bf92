"""A base from files: a run's folder, a release's artifacts, one of a run's checkpoints.

    weights.safetensors    the network's parameters and buffers by name
    spec.json              the DataSpec that it was built for
    experiment.yaml        what it is, and how it was trained; read as a stranger's: its targets must be allowed ones

Nothing here is ever unpickled: a file of pickled weights is refused with the command that converts it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from neurofleet import checkpoint, paths
from neurofleet import experiment as experiments
from neurofleet.errors import CheckpointError, ConfigError, DataError
from neurofleet.experiment import Experiment
from neurofleet.spec import DataSpec
from neurofleet.transfer.base import WEIGHTS, Base
from neurofleet.transfer.order import FINETUNED, architecture

SPEC, EXPERIMENT = "spec.json", "experiment.yaml"
PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle")
MAGIC = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # torch's archive, and bare pickles
ENCODER = "encoder."  # what the names of a fine-tuned network's encoder begin with
MODEL = "model."  # and those of the network in a checkpoint
MOST_ROWS = 12  # of a table in a message


def stored(place: Path, *, uri: str, name: str = "", tags: Mapping[str, str] | None = None) -> Base:
    """The network in a folder, or in a `.safetensors` file beside its spec.json and experiment.yaml.

    Of a fine-tuned network the encoder alone: with the spec of the data that it learnt from at first, it takes the same
    inputs as ever.  Of a checkpoint the weights of its own step, not the best ones before it.

    name: by default the data's and the family's, as in mnist5k-cnn
    tags: of its history, beside base.uri and base.data, which are found here

    Raises:
        ConfigError: a file lacks, is a pickle, or holds something else than it should.
        CheckpointError: the weights are damaged.
    """
    weights_file, folder = _located(place)
    experiment = experiments.load(folder / EXPERIMENT)
    _need(experiment, folder / EXPERIMENT, "family._target_", "data.name")
    spec, weights = _spec(folder / SPEC), read(weights_file)
    family = experiment["family"]
    if family["_target_"] == FINETUNED:
        _need(experiment, folder / EXPERIMENT, "family.encoder._target_", "family.encoder_spec.kind", "family.base.uri")
        encoder, spec = _encoder_of(family, spec, folder / EXPERIMENT)
        weights = _weights_of_encoder(weights, weights_file, family)
    else:
        encoder = family
    found = {"base.uri": uri, "base.data": experiments.data_name(experiment)}
    return Base(
        uri=uri,
        name=name or _name(experiment),
        encoder=encoder,
        spec=spec,
        weights=weights,
        tags=found | dict(tags or {}),
    )


def _need(experiment: Experiment, file: Path, *places: str) -> None:
    """A stored experiment may be by anybody: what is read of it has to be there."""
    for place in places:
        node: Any = experiment
        for key in place.split("."):
            if not isinstance(node, Mapping) or key not in node:
                raise ConfigError(f"{file} needs {place}, and lacks it; take the one that belongs to the weights")
            node = node[key]


def _name(experiment: Experiment) -> str:
    tuned = experiment["family"]["_target_"] == FINETUNED
    return f"{experiments.data_name(experiment)}-{(architecture if tuned else experiments.family_name)(experiment)}"


def _located(place: Path) -> tuple[Path, Path]:
    """The file of weights, and the folder with what explains it."""
    if place.suffix in PICKLES:
        raise pickled(place)
    if place.is_dir():
        weights, folder = place / WEIGHTS, place
    elif place.suffix == ".safetensors" and place.is_file():
        weights, folder = place, place.parent
        if not (folder / EXPERIMENT).is_file() and (folder / checkpoint.INDEX).is_file():
            folder = folder.parent  # a checkpoint of the run in whose folder it lies
    else:
        raise ConfigError(f"a base needs a folder or a .safetensors file that is there, got {place}")
    lacking = [file.name for file in (weights, folder / SPEC, folder / EXPERIMENT) if not file.is_file()]
    if lacking:
        raise ConfigError(
            f"a base needs {WEIGHTS}, {SPEC} and {EXPERIMENT} in {folder}, lacking {', '.join(lacking)}; "
            f"{_remedy(weights, folder, lacking)}"
        )
    return weights, folder


def _remedy(weights: Path, folder: Path, lacking: Sequence[str]) -> str:
    if WEIGHTS in lacking:
        found = [file for file in sorted(folder.iterdir()) if file.suffix in PICKLES]
        if found:
            return _conversion(found[0])
        checkpoints = sorted(folder.glob("checkpoints/*.safetensors"))
        if checkpoints:
            return f"a run leaves its weights when it has ended; its newest checkpoint is base={checkpoints[-1]}"
    if len(lacking) < 3:
        return (
            f"a run leaves them in {paths.home() / 'runs'}/ID, a release has them among its artifacts: "
            f"copy those that belong to {weights.name}"
        )
    return f"a run leaves them in {paths.home() / 'runs'}/ID, base=runs:/ID; a release has them, base=models:/NAME/1"


def pickled(file: Path) -> ConfigError:
    """What to say of a file that would run code when it is read."""
    what = f"a base needs safetensors, got {file}, a pickle, which can run code when it is read"
    return ConfigError(f"{what}; {_conversion(file)}")


def _conversion(file: Path) -> str:
    weights = f"torch.load({str(file)!r}, map_location='cpu', weights_only=True)"
    if file.suffix == ".ckpt":  # Lightning's
        weights += "['state_dict']"
    code = f"save_file({{k: v.clone().contiguous() for k, v in {weights}.items()}}, {str(file.with_name(WEIGHTS))!r})"
    return (
        f'convert it:\n  python -c "import torch; from safetensors.torch import save_file; {code}"\n'
        f"and put beside it the {SPEC} and {EXPERIMENT} of a run of the same network"
    )


def read(file: Path) -> dict[str, Tensor]:
    """The network's weights in a safetensors file; of a run's checkpoint, held to the hash in its index.

    Raises:
        ConfigError: it is a pickle under another name, or cannot be read.
        CheckpointError: it is damaged; says what is wrong.
    """
    try:
        payload = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"a base needs a file that can be read, got {file}: {error}") from None
    # A header's length may begin with the very bytes of a pickle; its brace follows at once.
    if payload.startswith(MAGIC) and payload[8:9] != b"{":
        raise pickled(file)
    listed = checkpoint.listed(file)
    if listed is not None and hashlib.sha256(payload).hexdigest() != listed:
        raise CheckpointError(
            f"{file} is damaged: its sha256 is not {listed}, which {checkpoint.INDEX} says; take another checkpoint"
        )
    try:
        tensors, metadata = checkpoint.decode(payload)
    except CheckpointError as error:
        raise CheckpointError(f"{file} is damaged: {error}; take another copy, or the run's checkpoints") from error
    if "state" in metadata:  # a checkpoint: beside the network its optimizer and its loader
        return {name.removeprefix(MODEL): tensor for name, tensor in tensors.items() if name.startswith(MODEL)}
    return tensors


def _spec(file: Path) -> DataSpec:
    try:
        return DataSpec.load(file)
    except (OSError, ValueError, TypeError, AttributeError, DataError) as error:
        raise ConfigError(f"{file} needs to hold the spec of the data that a network was trained on: {error}") from None


def _encoder_of(family: Mapping[str, Any], spec: DataSpec, file: Path) -> tuple[Mapping[str, Any], DataSpec]:
    """Config and spec of a fine-tuned network's encoder."""
    from neurofleet.transfer.encoders import as_spec

    try:
        return family["encoder"], as_spec(family["encoder_spec"], spec)
    except (ValueError, TypeError, DataError) as error:
        raise ConfigError(f"{file} needs a DataSpec as family.encoder_spec: {error}") from None


def _weights_of_encoder(weights: Mapping[str, Tensor], file: Path, family: Mapping[str, Any]) -> dict[str, Tensor]:
    found = {name.removeprefix(ENCODER): value for name, value in weights.items() if name.startswith(ENCODER)}
    adapted = any(".base_layer." in name for name in found)
    if adapted or not found:  # a checkpoint, in which adapters stand beside the weights, or what stays is left out
        why = "it holds adapters that are not merged yet" if adapted else "it holds the head alone"
        uri = family["base"]["uri"]
        raise ConfigError(
            f"a base needs the weights of its encoder, and {file} has none that stand alone: {why}; take what the run "
            f"left when it ended, base=runs:/ID, or what it began with, base={uri}"
        )
    return found


class Comparison(NamedTuple):
    """Names of weights: in both with one shape; expected only; given only; in both with other shapes."""

    kept: tuple[str, ...]
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    misfit: tuple[str, ...]


def compare(expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> Comparison:
    both = [name for name in expected if name in got]
    fits = {name: expected[name].shape == got[name].shape for name in both}
    return Comparison(
        kept=tuple(name for name in both if fits[name]),
        missing=tuple(name for name in expected if name not in got),
        extra=tuple(name for name in got if name not in expected),
        misfit=tuple(name for name in both if not fits[name]),
    )


def need_fit(
    expected: Mapping[str, Tensor],
    got: Mapping[str, Tensor],
    *,
    heads: Sequence[str],
    uri: str,
    allow_missing: bool = False,
) -> Comparison:
    """Compare a base's weights with the network that they are for.

    heads: dotted names of its parts that are not used: what lies under them may lack, be left over, or not fit
    allow_missing: keep what fits, and leave the rest as it was initialised

    Raises:
        ConfigError: names are missing, left over or misfit elsewhere; with a table of them.
    """
    compared = compare(expected, got)
    wrong = Comparison(*(tuple(name for name in names if not _below(name, heads)) for names in compared))
    if (expected and not wrong.kept) or ((wrong.missing or wrong.extra or wrong.misfit) and not allow_missing):
        raise ConfigError(_told(wrong, expected, got, uri))
    return compared


def _below(name: str, heads: Sequence[str]) -> bool:
    return any(name == head or name.startswith(f"{head}.") for head in heads)


def _told(wrong: Comparison, expected: Mapping[str, Tensor], got: Mapping[str, Tensor], uri: str) -> str:
    rows = [(name, "missing", _shape(expected[name]), "-") for name in wrong.missing]
    rows += [(name, "misfit", _shape(expected[name]), _shape(got[name])) for name in wrong.misfit]
    rows += [(name, "extra", "-", _shape(got[name])) for name in wrong.extra]
    more = [f"  ... and {len(rows) - MOST_ROWS} more"] if len(rows) > MOST_ROWS else []
    rows = [("weight", "", "needs", "got"), *rows[:MOST_ROWS]]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    remedy = (
        "strict=false keeps what fits, and the rest begins anew"
        if wrong.kept
        else "it is the weights of another network"
    )
    return "\n".join(
        [
            f"a base needs the weights of its own network; of {uri} {len(wrong.kept)} fit, and these do not:",
            *(f"  {line}" for line in lines),
            *more,
            f"take the {EXPERIMENT} and {SPEC} that belong to these weights; {remedy}",
        ]
    )


def _shape(tensor: Tensor) -> str:
    return "x".join(str(size) for size in tensor.shape) or "one number"
