"""Experiment: a resolved plain dict that names family, data, optimizer, schedule, trainer, launcher and seed.

It alone decides a result.  `compose` makes one from the configs (the only use of Hydra in the package), `check` refuses
what must not be built, `build` turns a config with a `_target_` into an object.  Config is untrusted input: a
`_target_` is looked up in `TARGETS` before anything is imported.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import inspect
import json
import os
import re
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurofleet import paths
from neurofleet.errors import ConfigError, MismatchError, NeurofleetError, nearest
from neurofleet.spec import DataSpec

if TYPE_CHECKING:
    from neurofleet.data import ParquetDataModule
    from neurofleet.families._base import Family, Recipe

Experiment = dict[str, Any]

# What a config may build, and nothing else. `NEUROFLEET_TARGETS` (comma separated, set by whoever runs the platform,
# never by a config) adds a user's own families.
TARGETS = frozenset(
    {
        "neurofleet.data.ParquetDataModule",
        "neurofleet.families.cnn.CNN",
        "neurofleet.families.mlp.MLP",
        "neurofleet.run.TrainerConfig",
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
# Hydra's own directives would turn data into code; interpolations must be resolved, and may not read the environment.
_DIRECTIVES = frozenset({"_partial_", "_args_", "_recursive_", "_convert_", "hydra"})
_INTERPOLATION = re.compile(r"\$\{")
# Any resolver, since its name may itself be interpolated: ${oc.${data.name}:HOME}.
_RESOLVER = re.compile(r"\$\{.*:", re.DOTALL)


def compose(overrides: list[str]) -> Experiment:
    """The experiment that `neurofleet train OVERRIDES` would run.

    Raises:
        ConfigError: an unknown name or key (with its nearest neighbours), or a value that is not allowed.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    for override in overrides:
        if re.match(r"^[+~]*hydra([./@=]|$)", override):
            raise ConfigError(f"hydra's own settings cannot be part of an experiment, got {override!r}")
    with explained(), initialize_config_dir(str(paths.shipped("configs")), version_base="1.3"):
        return from_config(hydra_compose("train", overrides=overrides))


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turn what Hydra says of a user's mistake into a ConfigError that names what there is."""
    from hydra.errors import HydraException, MissingConfigException

    try:
        yield
    except MissingConfigException as error:
        raise ConfigError(_missing(error)) from None
    except HydraException as error:
        raise ConfigError(_wrong_key(f"{error}", f"{error.__cause__ or ''}")) from None


def _missing(error: Any) -> str:
    config, options = str(error.missing_cfg_file), error.options
    if config and options:
        group, _, name = config.rpartition("/")
        return f"there is no {config}; {nearest(name, options)} (group {group}: {', '.join(sorted(options))})"
    return str(error).strip()


def _wrong_key(message: str, cause: str) -> str:
    found = re.search(r"Could not override '([\w.]+)'", message)
    if not found:
        return f"{message} {cause}".strip()
    key = found[1]
    full = re.search(r"full_key: ([\w.]+)", cause)
    return f"the config has no key {full[1] if full else key!r}; {nearest(key, _keys())}"


def _keys() -> set[str]:
    """Every dotted key of the shipped configs, for hints."""
    import yaml

    keys: set[str] = {"seed", "name"}
    for path in paths.shipped("configs").glob("*/*.yaml"):
        values = yaml.safe_load(path.read_text())
        if path.parent.name in SECTIONS and isinstance(values, dict):
            keys |= {f"{path.parent.name}.{key}" for key in values if not key.startswith("_")}
    return keys


def from_config(config: Any) -> Experiment:
    """A composed Hydra config as a checked plain dict."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    refuse(OmegaConf.to_container(config, resolve=False), resolved=False)
    try:
        experiment = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"the config needs a value that is missing or wrong: {error}") from None
    assert isinstance(experiment, dict)
    return check({key: experiment[key] for key in SECTIONS if key in experiment})


def check(experiment: Mapping[str, Any]) -> Experiment:
    """The experiment itself, once it has every section, only allowed targets, and nothing that runs code."""
    lacking = [section for section in SECTIONS if section not in experiment]
    unknown = sorted(set(experiment) - set(SECTIONS))
    if lacking or unknown:
        raise ConfigError(
            f"an experiment needs the sections {', '.join(SECTIONS)}; lacking {lacking}, unknown {unknown}"
        )
    refuse(experiment, resolved=True)
    seed = experiment["seed"]
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**31:
        raise ConfigError(f"seed needs a whole number from 0 to 2147483647, got {seed!r}")
    return dict(experiment)


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


def build(config: Mapping[str, Any], **given: Any) -> Any:
    """Call the config's `_target_` with its other keys and `given`; the target's signature is the schema.

    Raises:
        ConfigError: a forbidden target; a key that the signature lacks, or lacks of it; a value of the wrong type.
    """
    values = {key: value for key, value in config.items() if key != "_target_"}
    target = check_target(config.get("_target_"))
    module, name = target.rsplit(".", 1)
    factory = getattr(importlib.import_module(module), name)
    parameters = inspect.signature(factory).parameters
    for key in values:
        if key not in parameters:
            raise ConfigError(f"{target} has no setting {key!r}; {nearest(key, set(parameters) - set(given))}")
    hints = typing.get_type_hints(factory.__init__)
    for key, value in values.items():
        _check_type(f"{target}: {key}", value, hints.get(key))
    required = {key for key, parameter in parameters.items() if parameter.default is parameter.empty}
    lacking = sorted(key for key in required - set(values) - set(given) if not key.startswith("_"))
    if lacking:
        raise ConfigError(f"{target} needs {', '.join(lacking)}; got {', '.join(sorted(values))}")
    try:
        return factory(**values, **given)
    except NeurofleetError:
        raise
    except (TypeError, ValueError) as error:  # third parties' own checks, such as an optimizer's of its learning rate
        raise ConfigError(f"{target} refuses its settings: {error}") from error


def _check_type(where: str, value: Any, hint: Any) -> None:
    """Catch plain mistakes (text for a number) early; richer types are their constructor's business."""
    plain: dict[Any, tuple[type, ...]] = {int: (int,), float: (int, float), str: (str,), bool: (bool,)}
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    options = typing.get_args(hint) if union else (hint,)
    if all(option in plain or option is type(None) for option in options):
        wanted = tuple(kind for option in options for kind in plain.get(option, (type(None),)))
        if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
            names = " or ".join(getattr(option, "__name__", str(option)) for option in options)
            raise ConfigError(f"{where} needs {names}, got {value!r}")


def build_data(experiment: Experiment) -> ParquetDataModule:
    return build(experiment["data"])  # type: ignore[no-any-return]


def build_family(experiment: Experiment, spec: DataSpec) -> Family:
    """The network of an experiment for data of `spec`, with weights that `seed` alone decides."""
    import torch

    family_class = _load(experiment["family"])
    try:
        family_class.accept(spec)
    except MismatchError as error:
        raise MismatchError(f"{error}; families that fit: {', '.join(fitting_families(spec)) or 'none'}") from None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(experiment["seed"])
        return build(experiment["family"], spec=spec)  # type: ignore[no-any-return]


def build_recipe(
    experiment: Experiment, *, num_steps: int, log_every_n_steps: int, gradient_clip_val: float | None
) -> Recipe:
    from neurofleet.families._base import Recipe

    build(experiment["optimizer"], params=_probe())  # a wrong setting shows now, not at the first step
    return Recipe(
        optimizer=lambda parameters: build(experiment["optimizer"], params=parameters),
        schedule=build(experiment["schedule"]),
        seed=experiment["seed"],
        num_steps=num_steps,
        log_every_n_steps=log_every_n_steps,
        gradient_clip_val=gradient_clip_val,
    )


def _probe() -> list[Any]:
    import torch

    return [torch.nn.Parameter(torch.zeros(1))]


def _load(config: Mapping[str, Any]) -> Any:
    module, name = check_target(config.get("_target_")).rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


def fitting_families(spec: DataSpec) -> list[str]:
    """Names of the shipped families that accept `spec`."""
    fitting = []
    for target in sorted(name for name in TARGETS if name.startswith("neurofleet.families.")):
        try:
            _load({"_target_": target}).accept(spec)
        except MismatchError:
            continue
        fitting.append(target.split(".")[-2])
    return fitting


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

    path.write_text(yaml.safe_dump(experiment, sort_keys=False))


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
