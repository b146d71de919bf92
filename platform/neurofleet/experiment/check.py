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
        "neurofleet.study.batch_size_finder.BatchSizeFinder",
        "neurofleet.study.lr_finder.LearningRateFinder",
        "neurofleet.study.schedulers.Hyperband",
        "neurofleet.study.schedulers.Median",
        "neurofleet.study.schedulers.Never",
        "neurofleet.study.schedulers.PopulationBased",
        "neurofleet.study.schedulers.SuccessiveHalving",
        "neurofleet.trainer.TrainerConfig",
        "neurofleet.transfer.backbones.EfficientNetLite0",
        "neurofleet.transfer.backbones.HuggingFace",
        "neurofleet.transfer.backbones.SpeakerLSTM",
        "neurofleet.transfer.finetuned.Finetuned",
        "neurofleet.schedule.Constant",
        "neurofleet.schedule.Cosine",
        "neurofleet.schedule.Exponential",
        "neurofleet.schedule.Linear",
        "neurofleet.schedule.Step",
        "neurofleet.study.samplers.OneShot",
        "neurofleet.study.samplers.RegularizedEvolution",
        "optuna.samplers.CmaEsSampler",
        "optuna.samplers.GridSampler",
        "optuna.samplers.NSGAIISampler",
        "optuna.samplers.RandomSampler",
        "optuna.samplers.TPESampler",
        "ray.tune.schedulers.ASHAScheduler",
        "ray.tune.schedulers.AsyncHyperBandScheduler",
        "ray.tune.schedulers.FIFOScheduler",
        "ray.tune.schedulers.HyperBandScheduler",
        "ray.tune.schedulers.MedianStoppingRule",
        "torch.optim.SGD",
        "torch.optim.Adagrad",
        "torch.optim.Adam",
        "torch.optim.AdamW",
        "torch.optim.RMSprop",
    }
)
SECTIONS = ("family", "data", "optimizer", "schedule", "trainer", "launcher", "seed", "name")
ROOMS: dict[str, str | tuple[str, ...]] = {  # where the targets of a section live
    "family": ("neurofleet.families.", "neurofleet.transfer."),
    "data": "neurofleet.data.",
    "optimizer": "torch.optim.",
    "schedule": "neurofleet.schedule.",
    "trainer": "neurofleet.trainer.",
}
# Beside the experiment: how a study searches, when it gives a trial up, and what it is called.
SEARCH_SECTIONS = ("search", "scheduler", "study")
BUDGET_KEYS = ("num_trials", "max_concurrent", "max_stack", "time_limit_minutes", "device_hours")
SEARCH_KEYS = ("space", "metric", "mode", *BUDGET_KEYS, "fuse", "seed", "sampler")
RAY = "ray.tune.schedulers."  # for search.fuse=off
SEARCH_ROOMS: dict[str, str | tuple[str, ...]] = {
    "search.sampler": ("optuna.samplers.", "neurofleet.study.samplers."),
    "scheduler": ("neurofleet.study.schedulers.", RAY),
}
FUSE = ("auto", "stack", "compile", "pack", "off")
CMA_ES = "optuna.samplers.CmaEsSampler"
GRID = "optuna.samplers.GridSampler"
ONE_SHOT = "neurofleet.study.samplers.OneShot"
NEVER = "neurofleet.study.schedulers.Never"
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
    for section, room in ROOMS.items():
        if isinstance(experiment[section], Mapping):
            _check_room(experiment[section], section, room)
    _check_seed("seed", experiment["seed"])
    return dict(experiment)


def _check_room(node: Mapping[str, Any], where: str, room: str | tuple[str, ...]) -> None:
    for place, target in _targets(node, where):
        if target in TARGETS and not target.startswith(room):
            raise ConfigError(
                f"{place} needs something of {room if isinstance(room, str) else room[0]}*, got {target!r}"
            )


def _check_seed(where: str, seed: Any) -> None:
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**31:
        raise ConfigError(f"{where} needs a whole number from 0 to 2147483647, got {seed!r}")


def check_search(config: Mapping[str, Any]) -> dict[str, Any]:
    """The sections beside the experiment, `search`, `scheduler` and `study`, once their values make sense.

    What a sampler or scheduler makes of its own settings shows when it is built.  `metric` and `mode` are lists in the
    result if and only if there are several objectives.

    Raises:
        ConfigError: a section or key that lacks or is unknown, a forbidden target, a value of the wrong kind.
    """
    lacking = [section for section in SEARCH_SECTIONS if section not in config]
    if lacking:
        raise ConfigError(f"a study needs the sections {', '.join(SEARCH_SECTIONS)}; lacking {', '.join(lacking)}")
    sections = {section: config[section] for section in SEARCH_SECTIONS}
    refuse(sections, resolved=True)
    search, scheduler, study = dict(sections["search"]), dict(sections["scheduler"]), sections["study"]
    unknown = sorted(set(search) - set(SEARCH_KEYS))
    if unknown:
        raise ConfigError(f"search has no setting {unknown[0]!r}; {nearest(unknown[0], SEARCH_KEYS)}")
    if set(search) != set(SEARCH_KEYS):
        raise ConfigError(f"search needs {', '.join(SEARCH_KEYS)}; got {', '.join(sorted(search))}")
    for where, node in (("search.sampler", search["sampler"]), ("scheduler", scheduler)):
        if not isinstance(node, Mapping) or "_target_" not in node:
            raise ConfigError(f"{where} needs a _target_ and its settings, got {node!r}")
        _check_room(node, where, SEARCH_ROOMS[where])
    if study is not None:
        study_name(study)
    _check_objectives(search["metric"], search["mode"], scheduler["_target_"])
    if isinstance(search["metric"], list) and search["sampler"]["_target_"] == CMA_ES:
        raise ConfigError(f"CMA-ES follows one metric, got {search['metric']!r}; take search=nsga2 or search=tpe")
    if search["fuse"] is False:  # what YAML makes of off
        search["fuse"] = "off"
    _check_budget(search)
    if scheduler["_target_"].startswith(RAY) and search["fuse"] != "off":
        raise ConfigError(f"Ray Tune's own schedulers need search.fuse=off, got {search['fuse']}")
    return {"search": search, "scheduler": scheduler, "study": None if study is None else str(study)}


def study_name(name: Any) -> str:
    """The name of a study, once it is one; it is the name of a folder too."""
    if not re.fullmatch(r"\w[\w .-]*", str(name)):
        raise ConfigError(f"study needs a name of letters, digits, spaces and .-_, got {name!r}")
    return str(name)


def _check_objectives(metric: Any, mode: Any, scheduler: str) -> None:
    metrics, modes = ([one] if isinstance(one, str) else one for one in (metric, mode))
    several = isinstance(metric, list)
    if not isinstance(metrics, list) or not all(isinstance(one, str) and one for one in metrics):
        raise ConfigError(f"search.metric needs the name of a metric or a list of names, got {metric!r}")
    if several and (len(metrics) < 2 or len(set(metrics)) < len(metrics)):
        raise ConfigError(f"search.metric needs two names or more that differ, or one without a list, got {metric!r}")
    if not isinstance(modes, list) or not set(map(str, modes)) <= {"min", "max"}:
        raise ConfigError(f"search.mode needs min or max, or a list of them, got {mode!r}")
    if several != isinstance(mode, list) or len(metrics) != len(modes):
        raise ConfigError(f"search.mode needs one of min and max for each metric, got {mode!r} for {metric!r}")
    if several and scheduler != NEVER:
        raise ConfigError(f"a scheduler judges trials by one metric, got {metric!r}; take scheduler=none")


def _check_budget(search: Mapping[str, Any]) -> None:
    """How much, how fast, and in which manner."""
    open_ended = {"max_concurrent"} | ({"num_trials"} if search["sampler"]["_target_"] == GRID else set())
    for key in BUDGET_KEYS[:3]:
        value = search[key]
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if not whole and (value is not None or key not in open_ended):
            also = " or null" if key in open_ended else ""
            raise ConfigError(f"search.{key} needs a whole number of at least 1{also}, got {value!r}")
    if search["fuse"] not in FUSE:
        raise ConfigError(f"search.fuse needs one of {', '.join(FUSE)}, got {search['fuse']!r}")
    for key in BUDGET_KEYS[3:]:
        limit = search[key]
        if limit is not None and (not isinstance(limit, int | float) or isinstance(limit, bool) or not limit > 0):
            raise ConfigError(f"search.{key} needs a number above 0 or null, got {limit!r}")
    if not isinstance(search["space"], Mapping):
        raise ConfigError(f"search.space needs keys and their values, got {search['space']!r}")
    _check_seed("search.seed", search["seed"])


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
    if isinstance(target, str) and target in TARGETS:
        return target
    own = {name.strip() for name in os.environ.get("NEUROFLEET_TARGETS", "").split(",") if name.strip()}
    if not isinstance(target, str) or target not in own:
        raise ConfigError(
            f"{where} needs an allowed target, got {target!r}; {nearest(str(target), TARGETS | own)} "
            "(whoever runs the platform can allow more in NEUROFLEET_TARGETS)"
        )
    return target


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
    try:
        return check(content)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
