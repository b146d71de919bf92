"""From what `neurofleet finetune` is told to the experiment that trains, and to the one that it is held against."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from neurofleet import experiment as experiments
from neurofleet.data import ParquetDataModule, catalog
from neurofleet.errors import ConfigError, nearest
from neurofleet.experiment import Experiment
from neurofleet.transfer import adapters, methods
from neurofleet.transfer import base as bases
from neurofleet.transfer.base import Base
from neurofleet.transfer.encoders import drop_heads, tried

FINETUNED = "neurofleet.transfer.finetuned.Finetuned"
SHARED = ("data", "optimizer", "schedule", "trainer", "launcher", "seed", "name")  # with `neurofleet train`
OWN = ("base", "strict", "method", "statistics", "head", "augmentation")
METHOD_KEYS = ("name", "share", "layer_decay", "rank", "l2_sp", "mixup")
BACKBONES = {"EfficientNetLite0": "efficientnet_lite0", "SpeakerLSTM": "speaker_lstm"}
COMPARED = ("control", "control_lr", "label_counts")  # what a run is held against, when it has ended
CONTROLS = ("scratch", "same_method", "off")


@dataclasses.dataclass(frozen=True)
class Order:
    """experiment: of the run; data: its rows; tags: of its lineage; reason: why this method, if it was chosen here."""

    experiment: Experiment
    data: ParquetDataModule
    tags: dict[str, str]
    reason: str | None


class Start:
    """A base that is kept, and the experiments that start from it."""

    def __init__(self, base: Base) -> None:
        self.base = base
        self.sha256 = bases.keep(base)
        self._chosen: dict[str, tuple[str, str]] = {}  # a method and the reason, by the data

    def order(self, config: Mapping[str, Any]) -> Order:
        """config: the sections of configs/finetune.yaml, resolved.

        Raises:
            ConfigError: a section or setting that lacks or is unknown.
            MismatchError: texts for a base that read none, or the other way round.
        """
        experiment = self.experiment(config)
        reason = self._choose(experiment)[1] if config["method"]["name"] == "auto" else None
        tags = {"base": self.base.name, "base.sha256": self.sha256, **self.base.tags}
        data = experiments.build_data(experiment)
        _check_counts(config["label_counts"], data)
        return Order(experiment, data, tags, reason)

    def experiment(self, config: Mapping[str, Any]) -> Experiment:
        """The experiment of an order."""
        _check(config)
        given = dict(config["method"])
        method = given.pop("name")
        family = {
            "_target_": FINETUNED,
            "encoder": dict(self.base.encoder),
            "encoder_spec": self.base.spec.to_dict() | {"vocabulary": []},
            "base": {"uri": self.base.uri, "sha256": self.sha256},
            "random_start": False,
            "strict": config["strict"],
            "statistics": _statistics(config["statistics"], self.base),
            "method": method,
            **methods.IDLE,
            **config["head"],
            "augmentation": config["augmentation"],
        }
        shared = {section: config[section] for section in SHARED}
        shared["name"] = shared["name"] or f"{config['data'].get('name')}-from-{self.base.name}-{config['seed']}"
        experiment = experiments.check(_plain({"family": family, **shared}))
        chosen = self._choose(experiment)[0] if method == "auto" else method
        asked = method if method == "auto" else None
        experiment["family"] |= {"method": chosen, **methods.settings(chosen, given, asked=asked)}
        return experiment

    def _choose(self, experiment: Experiment) -> tuple[str, str]:
        data = json.dumps(experiment["data"], sort_keys=True)
        if data not in self._chosen:
            size = sum(tensor.numel() for tensor in self.base.weights.values())
            self._chosen[data] = methods.choose(experiments.build_data(experiment).spec, size, self._adaptable)
        return self._chosen[data]

    def _adaptable(self) -> bool:
        encoder = experiments.build(dict(self.base.encoder), "family.encoder", spec=self.base.spec)
        drop_heads(encoder)
        return adapters.adaptable(encoder, lambda: tried(encoder, self.base.spec))


def resumed(experiment: Experiment) -> Order:
    """Of a run that goes on: its experiment says all."""
    if experiment["family"]["_target_"] != FINETUNED:
        raise ConfigError(
            "finetune resume=ID needs a run of finetune; go on with this one by: neurofleet train resume=ID"
        )
    base = experiment["family"]["base"]
    tags = {"base.uri": base["uri"], "base.sha256": base["sha256"]}
    return Order(experiment, experiments.build_data(experiment), tags, None)


def control(experiment: Experiment, kind: str, lr: float | None) -> Experiment:
    """The same network from a random start on the same budget: all of it trained, or by the `same_method`.

    lr: its learning rate, since what suits a trained network seldom suits a random one; None for the same
    """
    family = experiment["family"] | {"random_start": True, "l2_sp": 0.0}  # to nothing worth it
    if kind == "scratch":
        family |= {"method": "full", "share": 0.0, "layer_decay": 1.0}
    optimizer = experiment["optimizer"] | ({} if lr is None else {"lr": lr})
    return experiment | {"family": family, "optimizer": optimizer, "name": f"{experiment['name']}-control"}


def architecture(experiment: Experiment) -> str:
    """What the encoder is called in the name of a model: `cnn`, `efficientnet_lite0`, of Hugging Face `bert`."""
    encoder = experiment["family"]["encoder"]
    module, name = encoder["_target_"].rsplit(".", 1)
    if not module.startswith("neurofleet.transfer."):
        return str(module.rpartition(".")[2])
    return BACKBONES.get(name) or str(encoder["config"]["model_type"])


def _check(config: Mapping[str, Any]) -> None:
    lacking = [section for section in (*SHARED, *OWN, *COMPARED) if section not in config]
    if lacking:
        raise ConfigError(f"a fine-tuning needs the sections {', '.join((*SHARED, *OWN))}; lacking {lacking}")
    if config["control"] is not False and config["control"] not in CONTROLS:
        raise ConfigError(f"control needs one of {', '.join(CONTROLS)}, got {config['control']!r}")
    lr = config["control_lr"]
    if lr is not None and (isinstance(lr, bool) or not isinstance(lr, int | float) or not 0 < lr < math.inf):
        raise ConfigError(f"control_lr needs a learning rate above 0, or null for the same, got {lr!r}")
    counts = config.get("label_counts", [])
    if not isinstance(counts, list) or any(type(one) is not int or one < 1 for one in counts):
        raise ConfigError(f"label_counts needs a list of numbers of rows, got {counts!r}; write label_counts=[20,100]")
    if counts and config["control"] in (False, "off"):
        raise ConfigError(
            f"label_counts needs a control to compare with, got {counts} with control=off; set control=scratch"
        )
    if not isinstance(config["head"], Mapping):
        raise ConfigError(f"head needs hidden, dropout and label_smoothing, got {config['head']!r}")
    method = config["method"]
    if not isinstance(method, Mapping) or set(method) != set(METHOD_KEYS):
        got = ", ".join(map(str, method)) if isinstance(method, Mapping) else repr(method)
        raise ConfigError(f"method needs the keys {', '.join(METHOD_KEYS)}, got {got}; choose one: method=frozen")
    if method["name"] not in ("auto", *methods.METHODS):
        hint = nearest(str(method["name"]), ("auto", *methods.METHODS))
        raise ConfigError(f"method.name needs a known method, got {method['name']!r}; {hint}")


def _check_counts(counts: Sequence[int], data: ParquetDataModule) -> None:
    stored = catalog.load_spec(str(data.name)).num_rows
    most = sum(stored[stage] for stage in data.train_splits)
    if counts and max(counts) > most:
        raise ConfigError(f"label_counts needs at most the {most} training rows of {data.name!r}, got {max(counts)}")


def _statistics(wanted: str, base: Base) -> str:
    """A packaged backbone has one way of standardising; what was trained here saw data standardised by itself."""
    if wanted != "auto":
        return wanted
    own = str(base.encoder["_target_"]).startswith("neurofleet.families.") and base.spec.kind == "image"
    return "data" if own else "base"


def _plain(node: Any) -> Any:
    """Tuples as lists, as YAML has them."""
    if isinstance(node, Mapping):
        return {key: _plain(value) for key, value in node.items()}
    return [_plain(value) for value in node] if isinstance(node, list | tuple) else node
