"""Bases out of Hugging Face folders and repositories (`base=hf/WHERE`), by the library transformers' own loading.

What comes with a base is data: the config names no code and no other model, weights are safetensors.  Texts need a
WordPiece tokenizer in lower case (BERT uncased and its kin), images a `preprocessor_config.json` that says how their
pixels were standardised.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neurofleet.data.sources import library
from neurofleet.data.texts import PIECES
from neurofleet.errors import ConfigError, nearest
from neurofleet.families._supervised import embedding_spec
from neurofleet.spec import RESERVED_TOKENS
from neurofleet.transfer import backbones
from neurofleet.transfer.base import Base
from neurofleet.transfer.encoders import Unfilled

FILES = ["*.json", "*.txt", "*.safetensors"]
CONFIG = "config.json"
TARGET = "neurofleet.transfer.backbones.HuggingFace"
LONGEST = 512  # tokens of a text, whatever a model can take
_REPO = re.compile(r"[\w.-]+(/[\w.-]+)?")
# Said of labels and files alone; a thousand names of classes would ride in every experiment.
_IDLE = ("id2label", "label2id", "_name_or_path", "architectures", "transformers_version", "task_specific_params")


def hugging_face(where: str) -> Base:
    """The base that a folder or a repository holds.

    where: a folder, or the id of a repository (owner/name), which huggingface_hub downloads unless it has it
        already; with `HF_HUB_OFFLINE` set it does not ask the network

    Raises:
        ConfigError: no such folder, or no way to the repository; code in its config; no safetensors; weights that are
            not those of its model; a tokenizer or pixels that are not known here.
    """
    folder, local = _folder(where), Path(where).expanduser().is_dir()
    config = _read_json(folder / CONFIG, "it says which model this is")
    settings = backbones.model_config(config)
    name = re.sub(r"[^\w.-]+", "-", (folder.resolve().name if local else where.rpartition("/")[2]))
    try:
        text = hasattr(settings, "vocab_size")
        fields = _text_spec(folder, settings) if text else _image_spec(folder, settings)
    except (ArithmeticError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"{folder} needs its tokenizer or pixels described as transformers does: {error}") from None
    spec = backbones.takes(name=name, num_features=1, source=f"Hugging Face {settings.model_type}, {where}", **fields)
    plain = {key: value for key, value in config.items() if key not in (*_IDLE, *backbones.OURS)}
    with Unfilled():
        network = backbones.HuggingFace(spec=spec, config=plain, pooling="mean")
    weights = _weights(folder, network)
    network.load_state_dict(weights)
    network.pooling = _pooling(folder, network)
    num_features = _num_features(network)
    return Base(
        uri=f"hf/{folder.resolve() if local else where}",
        name=name,
        encoder={"_target_": TARGET, "config": plain, "pooling": network.pooling},
        spec=embedding_spec(spec, num_features),
        weights=weights,
        tags={} if local else {"base.revision": folder.name},
    )


def _pooling(folder: Path, network: backbones.HuggingFace) -> str:
    """What a text model of sentence-transformers says; else the mean, or an image model's class token if it has one."""
    if network.spec.kind == "text":
        return "cls" if _optional_json(folder / "1_Pooling" / CONFIG).get("pooling_mode_cls_token") else "mean"
    return "cls" if any(name.endswith("cls_token") for name in network.state_dict()) else "mean"


def _num_features(network: backbones.HuggingFace) -> int:
    """By trying: one short text, or one grey image."""
    text = network.spec.kind == "text"
    inputs = torch.full((1, 4), RESERVED_TOKENS) if text else torch.zeros(1, *network.spec.shape)
    try:
        with torch.no_grad():
            return int(network.features(inputs).shape[1])
    except (AttributeError, TypeError, ValueError, RuntimeError, IndexError) as error:
        raise ConfigError(
            f"a base needs an encoder with last hidden states, got a {network.net.config.model_type}: {error}"
        ) from None


def _folder(where: str) -> Path:
    folder = Path(where).expanduser()
    if folder.is_dir():
        return folder
    if where.startswith(("/", ".", "~")) or not _REPO.fullmatch(where):
        beside = [path.name for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
        hint = nearest(folder.name, beside)
        close = f"; {hint}" if hint.startswith("did you mean") else ""
        raise ConfigError(
            f"hf/{where} needs a folder with {CONFIG}, or the id of a repository, as in hf/owner/name; there is no "
            f"folder {folder}{close}"
        )
    hub = library("huggingface_hub")
    try:
        return Path(hub.snapshot_download(where, allow_patterns=FILES))
    except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
        offline = " (HF_HUB_OFFLINE is set, so only what was downloaded before)" if hub.is_offline_mode() else ""
        raise ConfigError(
            f"hf/{where} is no folder here, and the repository {where!r} could not be had from the Hugging Face "
            f"Hub{offline}: {_first_line(error)}; check the name and the network, or download it elsewhere and name "
            f"its folder: base=hf//path/to/{where.rpartition('/')[2]}"
        ) from None


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _read_json(path: Path, purpose: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path.parent} needs {path.name}: {purpose}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} needs to be JSON: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} needs to be a JSON object, got {type(content).__name__}")
    return content


def _optional_json(path: Path) -> dict[str, Any]:
    return _read_json(path, "") if path.is_file() else {}


# Weights.


def _stored(folder: Path) -> dict[str, Tensor]:
    """All tensors of the folder's safetensors, in one file or in those that an index names."""
    index, whole = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if whole.is_file():
        files = [whole]
    elif index.is_file():
        places = _read_json(index, "it names the files").get("weight_map")
        if not isinstance(places, dict):
            raise ConfigError(f"{index} needs a weight_map from weights to files, got {type(places).__name__}")
        files = [folder / Path(name).name for name in sorted(set(map(str, places.values())))]  # no others than its own
    else:
        pickles = sorted(path.name for suffix in ("bin", "pt", "pth", "ckpt") for path in folder.glob(f"*.{suffix}"))
        convert = f"from transformers import AutoModel as A; A.from_pretrained('{folder}').save_pretrained('{folder}')"
        remedy = f'; if you trust where {pickles[0]} is from: python -c "{convert}"' if pickles else ""
        raise ConfigError(
            f"{folder} needs its weights as model.safetensors, got {', '.join(pickles) or 'none'} (a pickle can run "
            f"code when it is read){remedy}"
        )
    safetensors = library("safetensors.torch")
    tensors: dict[str, Tensor] = {}
    for path in files:
        try:
            tensors |= safetensors.load_file(path)
        except (OSError, library("safetensors").SafetensorError) as error:
            raise ConfigError(f"{path} is missing or damaged: {error}; fetch it again") from None
    return tensors


def _weights(folder: Path, network: backbones.HuggingFace) -> dict[str, Tensor]:
    """The folder's weights by the names of `network`; transformers knows older names, and those of whole models."""
    tensors = _stored(folder)
    try:
        with _quiet():
            model, report = type(network.net).from_pretrained(
                None, config=network.net.config, state_dict=tensors, dtype=torch.float32, output_loading_info=True
            )
    except (RuntimeError, ValueError, KeyError) as error:
        raise ConfigError(f"{folder} holds weights of another model than its {CONFIG}: {error}") from None
    own = network.state_dict()
    lacking = sorted({f"net.{name}" for name in report["missing_keys"]} & set(own))
    if lacking:
        raise ConfigError(
            f"{folder} needs all weights of its {CONFIG}, it lacks {len(lacking)} of {len(own)}: "
            f"{', '.join(lacking[:3])}{', ...' if lacking[3:] else ''}; save the whole model again"
        )
    return {name: value for key, value in model.state_dict().items() if (name := f"net.{key}") in own}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars and reports of transformers: what was kept and dropped is told where a run begins."""
    logs = library("transformers").utils.logging
    before, bars = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    try:
        yield
    finally:
        logs.set_verbosity(before)
        if bars:
            logs.enable_progress_bar()


# What the model takes.


def _text_spec(folder: Path, settings: Any) -> dict[str, Any]:
    """Fields of the DataSpec of a model of texts."""
    vocabulary = _vocabulary(folder)
    limits = [
        getattr(settings, "max_position_embeddings", None),
        _optional_json(folder / "sentence_bert_config.json").get("max_seq_length"),
        _optional_json(folder / "tokenizer_config.json").get("model_max_length"),
        LONGEST,
    ]
    length = int(min(limit for limit in limits if isinstance(limit, int | float) and limit > 0))
    return {"kind": "text", "shape": (length,), "tokenizer": "wordpieces", "vocabulary": vocabulary}


def _vocabulary(folder: Path) -> tuple[str, ...]:
    """The pieces in the order of their ids."""
    whole, lines = _optional_json(folder / "tokenizer.json"), folder / "vocab.txt"
    if whole:
        model, normalizer = whole.get("model") or {}, whole.get("normalizer") or {}
        splitting = (whole.get("pre_tokenizer") or {}).get("type")
        kind = f"{model.get('type')} behind {normalizer.get('type')} and {splitting}"
        fits = kind == "WordPiece behind BertNormalizer and BertPreTokenizer" and model.get("unk_token") == "[UNK]"
        lower = normalizer.get("lowercase") is True and normalizer.get("strip_accents") is not False
        ids: dict[str, int] = dict(model.get("vocab") or {}) if fits else {}
    elif lines.is_file():
        kind, fits = "WordPiece", True
        lower = _optional_json(folder / "tokenizer_config.json").get("do_lower_case", True) is True
        ids = {piece: place for place, piece in enumerate(lines.read_text(encoding="utf-8").rstrip("\n").split("\n"))}
    else:
        kind, fits, lower, ids = "no tokenizer.json and no vocab.txt", False, True, {}
    if not fits or not lower:
        raise ConfigError(
            f"{folder} needs a WordPiece tokenizer in lower case (BERT uncased, MiniLM, DistilBERT, ELECTRA), got "
            f"{kind}{'' if lower else ', with capitals'}; take such a model"
        )
    pieces = tuple(sorted(ids, key=ids.__getitem__))
    if sorted(ids.values()) != list(range(len(pieces))) or not set(PIECES) <= set(pieces):
        raise ConfigError(f"{folder} needs a vocabulary of ids from 0 on, with {', '.join(PIECES)}; take another model")
    return pieces


def _image_spec(folder: Path, settings: Any) -> dict[str, Any]:
    """Fields of the DataSpec of a model of images."""
    if settings.model_type not in library("transformers").models.auto.modeling_auto.MODEL_FOR_IMAGE_MAPPING_NAMES:
        raise ConfigError(f"{folder} needs a model of texts or of images, got a {settings.model_type}")
    steps = _read_json(folder / "preprocessor_config.json", "it says how the model's pixels were standardised")
    crop = steps.get("crop_size") if steps.get("do_center_crop") else None
    height, width = _size(getattr(settings, "image_size", None) or crop or steps.get("size"), folder)
    channels = int(getattr(settings, "num_channels", 3))
    factor = float(steps.get("rescale_factor", 1 / 255)) if steps.get("do_rescale", True) else 1.0
    mean, std = [0.0] * channels, [1.0] * channels
    if steps.get("do_normalize", True):
        mean, std = steps.get("image_mean") or [], steps.get("image_std") or []
    if len(mean) != channels or len(std) != channels:
        raise ConfigError(
            f"{folder / 'preprocessor_config.json'} needs image_mean and image_std of {channels} numbers each"
        )
    raw = {"input_mean": tuple(one / factor for one in mean), "input_std": tuple(one / factor for one in std)}
    return {"kind": "image", "shape": (channels, height, width), **raw}


def _size(size: Any, folder: Path) -> tuple[int, int]:
    """Height and width, of the forms in which they are written."""
    if isinstance(size, dict):
        size = size.get("shortest_edge") or [size.get("height"), size.get("width")]
    if isinstance(size, int):
        size = [size, size]
    if not isinstance(size, list | tuple) or len(size) != 2 or not all(isinstance(one, int) for one in size):
        raise ConfigError(f"{folder} needs a size of its images in {CONFIG} or preprocessor_config.json, got {size!r}")
    return size[0], size[1]
