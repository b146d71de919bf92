"""From what `neurofleet finetune` is told to the experiment that trains, and to the one that it is held against."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from neurofleet import experiment as experiments
from neurofleet.data import ParquetDataModule
from neurofleet.errors import ConfigError, nearest
from neurofleet.experiment import Experiment
from neurofleet.transfer import base as bases
from neurofleet.transfer import methods
from neurofleet.transfer.base import Base

FINETUNED = "neurofleet.transfer.finetuned.Finetuned"
SHARED = ("data", "optimizer", "schedule", "trainer", "launcher", "seed", "name")  # with `neurofleet train`
OWN = ("base", "method", "statistics", "head", "augmentation")
METHOD_KEYS = ("name", "share", "layer_decay", "rank", "l2_sp", "mixup")
CONTROLS = ("scratch", "same_method", "off")


@dataclasses.dataclass(frozen=True)
class Order:
    """experiment: of the run; data: its rows; tags: of its lineage; reason: why this method, if it was chosen here."""

    experiment: Experiment
    data: ParquetDataModule
    tags: dict[str, str]
    reason: str | None


def order(config: Mapping[str, Any], base: Base) -> Order:
    """config: the sections of configs/finetune.yaml, resolved.

    Raises:
        ConfigError: a section or setting that lacks or is unknown.
        MismatchError: texts for a base that read none, or the other way round.
    """
    _check(config)
    method = dict(config["method"])
    family = {
        "_target_": FINETUNED,
        "encoder": dict(base.encoder),
        "encoder_spec": base.spec.to_dict() | {"vocabulary": []},
        "base": {"uri": base.uri, "sha256": bases.keep(base)},
        "random_start": False,
        "statistics": _statistics(config["statistics"], base),
        "method": method.pop("name"),
        **method,
        **config["head"],
        "augmentation": config["augmentation"],
    }
    shared = {section: config[section] for section in SHARED}
    shared["name"] = shared["name"] or f"{config['data'].get('name')}-from-{base.name}-{config['seed']}"
    data = experiments.build_data(experiments.check(_plain({"family": family, **shared})))
    reason = None
    if family["method"] == "auto":
        size = sum(tensor.numel() for tensor in base.weights.values())
        family["method"], reason = methods.choose(data.spec, size)
    tags = {"base": base.name, "base.sha256": family["base"]["sha256"], **base.tags}
    return Order(experiments.check(_plain({"family": family, **shared})), data, tags, reason)


def resumed(experiment: Experiment) -> Order:
    """Of a run that goes on: its experiment says all."""
    if experiment["family"]["_target_"] != FINETUNED:
        raise ConfigError(
            "finetune resume=ID needs a run of finetune; go on with this one by: neurofleet train resume=ID"
        )
    base = experiment["family"]["base"]
    tags = {"base.uri": base["uri"], "base.sha256": base["sha256"]}
    return Order(experiment, experiments.build_data(experiment), tags, None)


def control(experiment: Experiment, kind: str) -> Experiment:
    """The same network from a random start on the same budget: all of it trained, or by the `same_method`."""
    family = experiment["family"] | {"random_start": True}
    if kind == "scratch":
        family |= {"method": "full", "share": 0.0, "layer_decay": 1.0, "l2_sp": 0.0}
    return experiment | {"family": family, "name": f"{experiment['name']}-control"}


def architecture(experiment: Experiment) -> str:
    """What the encoder is called in the name of a model: `cnn`, `minilm`."""
    module, name = experiment["family"]["encoder"]["_target_"].rsplit(".", 1)
    uri = experiment["family"]["base"]["uri"]
    if module == "neurofleet.transfer.backbones":
        return str(uri.rstrip("/").rpartition("/")[2])
    return str(module.rpartition(".")[2] or name)


def _check(config: Mapping[str, Any]) -> None:
    lacking = [section for section in (*SHARED, *OWN, "control") if section not in config]
    if lacking:
        raise ConfigError(f"a fine-tuning needs the sections {', '.join((*SHARED, *OWN))}; lacking {lacking}")
    if config["control"] is not False and config["control"] not in CONTROLS:
        raise ConfigError(f"control needs one of {', '.join(CONTROLS)}, got {config['control']!r}")
    method = config["method"]
    if not isinstance(method, Mapping) or set(method) != set(METHOD_KEYS):
        got = ", ".join(map(str, method)) if isinstance(method, Mapping) else repr(method)
        raise ConfigError(f"method needs the keys {', '.join(METHOD_KEYS)}, got {got}; choose one: method=frozen")
    if method["name"] not in ("auto", *methods.METHODS):
        hint = nearest(str(method["name"]), ("auto", *methods.METHODS))
        raise ConfigError(f"method.name needs a known method, got {method['name']!r}; {hint}")


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
