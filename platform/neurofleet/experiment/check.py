"""What an experiment may hold.  Config is untrusted input: nothing is imported before its name stands in `TARGETS`."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from neurofleet.errors import ConfigError, nearest

Experiment = dict[str, Any]

# What a config may build, and nothing else. `NEUROFLEET_TARGETS` (comma separated, set by whoever runs the platform,
# never by a config) adds a user's own families.
TARGETS = frozenset(
    {
        "neurofleet.data.EnvironmentDataModule",
        "neurofleet.data.ParquetDataModule",
        "neurofleet.families.autoencoder.Autoencoder",
        "neurofleet.families.capsule.Capsule",
        "neurofleet.families.cnn.CNN",
        "neurofleet.families.dbn.DBN",
        "neurofleet.families.dqn.DQN",
        "neurofleet.families.gan.GAN",
        "neurofleet.families.mlp.MLP",
        "neurofleet.families.ppo.PPO",
        "neurofleet.families.rbf.RBF",
        "neurofleet.families.rnn.RNN",
        "neurofleet.families.siamese.Siamese",
        "neurofleet.families.transformer.Transformer",
        "neurofleet.families.som.SOM",
        "neurofleet.families.spiking.Spiking",
        "neurofleet.trainer.TrainerConfig",
        "neurofleet.schedule.Constant",
        "neurofleet.schedule.Cosine",
        "neurofleet.schedule.Exponential",
        "neurofleet.schedule.Linear",
        "neurofleet.schedule.Step",
        "torch.optim.SGD",
        "torch.optim.Adagrad",
        "torch.optim.Adam",
        "torch.optim.AdamW",
        "torch.optim.RMSprop",
    }
)
SECTIONS = ("family", "data", "optimizer", "schedule", "trainer", "launcher", "seed", "name")
ROOMS = {  # where the targets of a section live
    "family": "neurofleet.families.",
    "data": "neurofleet.data.",
    "optimizer": "torch.optim.",
    "schedule": "neurofleet.schedule.",
    "trainer": "neurofleet.trainer.",
}
# Hydra's own directives would turn data into code; interpolations must be resolved, and may not read the environment.
_DIRECTIVES = frozenset({"_partial_", "_args_", "_recursive_", "_convert_", "hydra"})
_INTERPOLATION = re.compile(r"\$\{")
# Any resolver, since its name may itself be interpolated: ${oc.${data.name}:HOME}.
_RESOLVER = re.compile(r"\$\{.*:", re.DOTALL)


def check(experiment: Mapping[str, Any]) -> Experiment:
    """The experiment itself, once it has every section, only allowed targets, and nothing that runs code."""
    lacking = [section for section in SECTIONS if section not in experiment]
    unknown = sorted(set(experiment) - set(SECTIONS))
    if lacking or unknown:
        raise ConfigError(
            f"an experiment needs the sections {', '.join(SECTIONS)}; lacking {lacking}, unknown {unknown}"
        )
    refuse(experiment, resolved=True)
    sections = {section: room for section, room in ROOMS.items() if isinstance(experiment[section], Mapping)}
    for section, room in sections.items():
        for place, target in _targets(experiment[section], section):
            if target in TARGETS and not target.startswith(room):
                raise ConfigError(f"{place} needs something of {room}*, got {target!r}")
    seed = experiment["seed"]
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**31:
        raise ConfigError(f"seed needs a whole number from 0 to 2147483647, got {seed!r}")
    return dict(experiment)


def _targets(node: Any, where: str) -> Iterator[tuple[str, str]]:
    """Place and name of each target in a checked section, at any depth."""
    for key, value in node.items() if isinstance(node, Mapping) else enumerate(node):
        place = f"{where}.{key}" if isinstance(node, Mapping) else f"{where}[{key}]"
        if key == "_target_":
            yield place, value
        elif isinstance(value, Mapping | list | tuple):
            yield from _targets(value, place)


def refuse(node: Any, *, resolved: bool, where: str = "") -> None:
    """Walk a config and raise ConfigError at the first thing that must not be there."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            place = f"{where}.{key}" if where else str(key)
            if key in _DIRECTIVES:
                raise ConfigError(f"{place} is not allowed in an experiment; remove it")
            if key == "_target_":
                check_target(value, place)
            refuse(value, resolved=resolved, where=place)
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            refuse(value, resolved=resolved, where=f"{where}[{index}]")
    elif isinstance(node, str) and (_INTERPOLATION if resolved else _RESOLVER).search(node):
        raise ConfigError(
            f"{where} may not read the environment or stay unresolved, got {node!r}; write the value itself"
        )


def check_target(target: Any, where: str = "_target_") -> str:
    own = {name.strip() for name in os.environ.get("NEUROFLEET_TARGETS", "").split(",") if name.strip()}
    if not isinstance(target, str) or target not in TARGETS | own:
        raise ConfigError(
            f"{where} needs an allowed target, got {target!r}; {nearest(str(target), TARGETS | own)} "
            "(whoever runs the platform can allow more in NEUROFLEET_TARGETS)"
        )
    return str(target)


def family_name(experiment: Experiment) -> str:
    """`mlp` for `neurofleet.families.mlp.MLP`."""
    return str(experiment["family"]["_target_"].split(".")[-2])


def data_name(experiment: Experiment) -> str:
    return str(experiment["data"]["name"])


def digest(experiment: Experiment) -> str:
    """sha256 of what decides the result; where a run executes and what it is called do not."""
    deciding = {key: value for key, value in experiment.items() if key not in ("launcher", "name")}
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


def save(experiment: Experiment, path: Path) -> None:
    import yaml

    aside = path.with_suffix(".part")
    aside.write_text(yaml.safe_dump(experiment, sort_keys=False))
    aside.replace(path)  # whole or absent, whenever the process is killed


def load(path: Path) -> Experiment:
    """A stored experiment, checked as if it came from a stranger: it may have come with a model."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} needs to hold an experiment as YAML: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} needs to hold an experiment, got {type(content).__name__}")
    return check(content)
