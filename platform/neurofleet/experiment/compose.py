"""From configs and overrides to an experiment: the only use of Hydra in the package."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any

from neurofleet import paths
from neurofleet.errors import ConfigError, nearest
from neurofleet.experiment.check import SECTIONS, Experiment, check, refuse


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
    """Turn what Hydra says of a user's mistake into a ConfigError that names what there is nearby."""
    from hydra.errors import HydraException, MissingConfigException

    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints and exits by itself, with its own code
    try:
        yield
    except MissingConfigException as error:
        raise ConfigError(_missing(error)) from None
    except HydraException as error:
        raise ConfigError(_wrong_key(f"{error}", f"{error.__cause__ or ''}")) from None
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before


def _missing(error: Any) -> str:
    config = str(error.missing_cfg_file)
    if "/" in config:
        group, _, name = config.partition("/")
        folder = paths.shipped("configs") / group
        found = sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
        known = found or sorted(error.options or ())
        close = nearest(name, known)
        if not close.startswith("known"):
            return f"there is no {config}; {close} (group {group}: {', '.join(known)})"
        return f"there is no {config}; {close}"
    return str(error).strip()


def _wrong_key(message: str, cause: str) -> str:
    own = re.search(r"In 'family/(\w+)': Could not override 'optimizer@([\w.]+)\.optimizer'", message)
    if own:
        return f"{own[2]} needs a supervised family, got {own[1]}, which learns by a rule and an optimizer of its own"
    found = re.search(r"Could not override '([\w.]+)'", message)
    if not found:
        return f"{message} {cause}".strip()
    full = re.search(r"full_key: ([\w.]+)", cause)
    key, keys = full[1] if full else found[1], _keys()
    if key in keys:
        return f"the config has no key {key!r} with the choices made; {' or '.join(keys[key])} has it"
    return f"the config has no key {key!r}; {nearest(key, [*keys, *SECTIONS])}"


def _keys() -> dict[str, list[str]]:
    """Every dotted key of the shipped configs, and the choices that have it, for hints."""
    import yaml

    keys: dict[str, list[str]] = {}
    for path in sorted(paths.shipped("configs").glob("*/*.yaml")):
        values = yaml.safe_load(path.read_text())
        if path.parent.name in SECTIONS and isinstance(values, dict):
            for key in values:
                if key not in ("_target_", "defaults"):
                    keys.setdefault(f"{path.parent.name}.{key}", []).append(f"{path.parent.name}={path.stem}")
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
