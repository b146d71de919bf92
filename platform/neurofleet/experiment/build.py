"""From an experiment to objects: a `_target_` is called with its other keys, and its signature is the schema."""

from __future__ import annotations

import functools
import importlib
import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from neurofleet import paths
from neurofleet.errors import ConfigError, MismatchError, NeurofleetError, nearest
from neurofleet.experiment.check import TARGETS, Experiment, check_target
from neurofleet.spec import DataSpec

if TYPE_CHECKING:
    from neurofleet.data import ParquetDataModule
    from neurofleet.families._base import Family, Recipe


def build(config: Mapping[str, Any], where: str = "", /, **given: Any) -> Any:
    """Call the config's `_target_` with its other keys and `given`; the target's signature is the schema.

    A key whose value has a `_target_` of its own is given as a function that builds it from what it still lacks.
    where: the config's place in the experiment, as in `family.encoder`, for messages

    Raises:
        ConfigError: a forbidden target; a key that the signature lacks, or lacks of it; a value of the wrong type.
    """
    target = check_target(config.get("_target_"))
    places = {key: f"{where or target}.{key}" for key in config if key != "_target_"}
    values = {key: _nested(config[key], place) for key, place in places.items()}
    module, name = target.rsplit(".", 1)
    factory = getattr(importlib.import_module(module), name)
    parameters, hints = _schema(factory)
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for key in values:
        if key not in parameters and not open_ended:
            raise ConfigError(f"{target} has no setting {key!r}; {nearest(key, set(parameters) - set(given))}")
    for key, value in values.items():
        _check_type(places[key], value, hints.get(key))
    named = {key: one for key, one in parameters.items() if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)}
    required = {key for key, parameter in named.items() if parameter.default is parameter.empty}
    lacking = sorted(required - set(values) - set(given))
    if lacking:
        raise ConfigError(f"{target} needs {', '.join(lacking)}; got {', '.join(sorted(values))}")
    try:
        return factory(**values, **given)
    except NeurofleetError:
        raise
    except (
        TypeError,
        ValueError,
        RuntimeError,
        MemoryError,
    ) as error:  # third parties' checks, and sizes beyond memory
        blamed = [f"{places[key]}={config[key]}" for key in _named_in(f"{error}", values)]
        raise ConfigError(f"{target} refuses {', '.join(blamed) or 'its settings'}: {error}") from error


@functools.cache  # a third of what building a small trial costs
def _schema(factory: Any) -> tuple[Mapping[str, inspect.Parameter], dict[str, Any]]:
    """The parameters of a target, and their types."""
    try:
        hints = typing.get_type_hints(factory.__init__)
    except NameError:  # a user's class that imports its types for the type checker only
        hints = {}
    return inspect.signature(factory).parameters, hints


def _nested(value: Any, place: str) -> Any:
    """A config within a config (the encoder of a siamese network) becomes a function that builds it."""
    if isinstance(value, Mapping) and "_target_" in value:
        check_target(value["_target_"])
        return functools.partial(build, value, place)
    return value


def _named_in(message: str, values: Mapping[str, Any]) -> list[str]:
    """Keys of the value that a message ends with: torch tells the value, and not what it is called."""
    told = message.rpartition(" ")[2]
    return [key for key, value in values.items() if told in map(str, value if isinstance(value, list) else [value])]


def _check_type(where: str, value: Any, hint: Any) -> None:
    """Catch plain mistakes (text for a number) early; richer types are their constructor's business."""
    plain: dict[Any, tuple[type, ...]] = {int: (int,), float: (int, float), str: (str,), bool: (bool,)}
    if typing.get_origin(hint) is list:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise ConfigError(f"{where} needs a list, got {value!r}; write [{value}]")
        for one in value:
            _check_type(where, one, *typing.get_args(hint))
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    options = typing.get_args(hint) if union else (hint,)
    options = tuple(option for option in options if getattr(option, "__name__", "") != "Tensor")  # not from a config
    if all(option in plain or option is type(None) for option in options):
        wanted = tuple(kind for option in options for kind in plain.get(option, (type(None),)))
        if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
            names = " or ".join(getattr(option, "__name__", str(option)) for option in options)
            raise ConfigError(f"{where} needs {names}, got {value!r}")


def build_data(experiment: Experiment) -> ParquetDataModule:
    """The data of an experiment; texts are cut up as the base has learnt to read, where the family starts from one."""
    data: ParquetDataModule = build(experiment["data"], "data")
    family = experiment["family"]
    if family.get("encoder_spec", {}).get("kind") == "text":
        path = paths.home() / "bases" / family["base"]["sha256"] / "spec.json"
        if not path.is_file():
            uri = family["base"]["uri"]
            raise ConfigError(f"the base {uri} needs to lie in {path.parent}; fine-tune from it again")
        data.speak(DataSpec.load(path))
    return data


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
        return build(experiment["family"], "family", spec=spec)


def build_recipe(
    experiment: Experiment, *, num_steps: int, log_every_n_steps: int, gradient_clip_val: float | None
) -> Recipe:
    from neurofleet.families._base import Recipe

    build(experiment["optimizer"], "optimizer", params=_probe())  # a wrong setting shows now, not at the first step
    return Recipe(
        optimizer=lambda parameters: build(experiment["optimizer"], "optimizer", params=parameters),
        schedule=build(experiment["schedule"], "schedule"),
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
