"""From configs and overrides to an experiment: the only use of Hydra in the package."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from neurofleet import paths
from neurofleet.errors import ConfigError, nearest
from neurofleet.experiment.check import SEARCH_SECTIONS, SECTIONS, Experiment, check, refuse

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig


def compose(overrides: list[str]) -> Experiment:
    """The experiment that `neurofleet train OVERRIDES` would run.

    Raises:
        ConfigError: an unknown name or key (with its nearest neighbours), or a value that is not allowed.
    """
    return from_config(composed("train", overrides))


def composed(name: str, overrides: list[str]) -> DictConfig:
    """`configs/NAME.yaml` with overrides, as Hydra gives it to `pipelines/NAME.py`."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    for override in overrides:
        if re.match(r"^[+~]*hydra([./@=]|$)", override):
            raise ConfigError(f"hydra's own settings cannot be part of an experiment, got {override!r}")
    with explained(), initialize_config_dir(str(paths.shipped("configs")), version_base="1.3"):
        return hydra_compose(name, overrides=overrides)


def parsed(overrides: Sequence[str]) -> list[Override]:
    """Overrides by Hydra's own grammar, those with several values included."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    with explained():
        return OverridesParser.create().parse_overrides(list(overrides))


def as_text(value: Any) -> str:
    """A plain value as Hydra's grammar writes it after the `=` of an override."""
    from hydra.core.override_parser.types import Quote, QuotedString

    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_as_key(key)}:{as_text(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(as_text, value)) + "]"
    word = re.fullmatch(r"[A-Za-z_][\w./-]*", value, re.ASCII) and value.lower() not in _RESERVED
    return value if word else QuotedString(value, Quote.single).with_quotes()


def _as_key(key: Any) -> str:
    """Hydra takes no quotes around a dict's keys."""
    return re.sub(r"([\\()\[\]{}:=, \t])", r"\\\1", key) if isinstance(key, str) else as_text(key)


_RESERVED = frozenset({"null", "true", "false", "nan", "inf"})


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
        raise ConfigError(_wrong_key(error)) from None
    except ValueError as error:
        if not f"{error}".startswith("Config group override must be"):
            raise
        raise ConfigError(
            "what names a config file has to be text; leave it out for none, or delete it: ~NAME"
        ) from None
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


@contextlib.contextmanager
def helped(verb: str) -> Iterator[None]:
    """`explained`; what Hydra's --help prints are the choices that `neurofleet VERB` has, not those of all verbs."""
    shown = io.StringIO()
    try:
        with explained(), contextlib.redirect_stdout(shown) if "--help" in sys.argv else contextlib.nullcontext():
            yield
    finally:  # Hydra ends the process when it has helped
        print(choices_of(verb, shown.getvalue()), end="")


def choices_of(verb: str, text: str) -> str:
    """A help text of Hydra without the groups, and the experiments, that `verb` cannot choose from."""
    import yaml

    configs = paths.shipped("configs")
    defaults = yaml.safe_load((configs / f"{verb}.yaml").read_text())["defaults"]
    groups = {key for one in defaults if isinstance(one, dict) for key in one}
    tuning = {path.stem for path in (configs / "experiment").glob("*.yaml") if "override /method:" in path.read_text()}

    def kept(line: re.Match[str]) -> str:
        group, names = line[1], line[2].split(", ")
        if group == "experiment":
            names = [name for name in names if (name in tuning) is (verb == "finetune")]
        return f"{group}: {', '.join(names)}\n" if group.partition("/")[0] in groups else ""

    head, section, rest = text.partition("== Configuration groups ==")
    listing, config, settings = rest.partition("== Config ==")
    return head + section + re.sub(r"^([\w/]+): (.*)\n", kept, listing, flags=re.MULTILINE) + config + settings


_VERBS = {"family": "train", "method": "finetune"}  # by the group that only its experiments choose from


def _wrong_key(error: Exception) -> str:
    message, cause = f"{error}", error.__cause__
    own = re.search(r"In 'family/(\w+)': Could not override 'optimizer@([\w.]+)\.optimizer'", message)
    if own:
        return f"{own[2]} needs a supervised family, got {own[1]}, which learns by a rule and an optimizer of its own"
    found = re.search(r"Could not override '([\w.]+)'", message)
    shipped = re.search(r"In 'experiment/(\w+)'", message)
    if found and shipped and found[1] in _VERBS:
        verb = _VERBS[found[1]]
        return f"experiment={shipped[1]} is one of {verb}; type: neurofleet {verb} experiment={shipped[1]}"
    if not found:
        return f"{message} {cause or ''}".strip()
    key, keys = getattr(cause, "full_key", "") or found[1], _keys()
    if key == "family":
        return "the family of a fine-tuning comes with its base, and cannot be chosen; name another base=..."
    if key in _OF_FINETUNING:  # with all below it: the key named is the first that is missing
        return f"{key!r} is a setting of fine-tuning; type: neurofleet finetune, or neurofleet tune pipeline=finetune"
    if key in keys:
        return f"the config has no key {key!r} with the choices made; {' or '.join(keys[key])} has it"
    place, dot, name = key.rpartition(".")
    beside = [f"{one}" for one in getattr(cause, "parent_node", None) or () if one not in ("_target_", "hydra")]
    elsewhere = [one.removeprefix(place + dot) for one in (*keys, *SECTIONS) if one.startswith(place + dot)]
    # What the choices made have in its place comes before what others would have there.
    hints = [nearest(name, known, prefix=place + dot) for known in (beside, elsewhere)]
    close = [hint for hint in hints if hint.startswith("did you mean")]
    return f"the config has no key {key!r}; {[*close, *hints][0]}"


_OF_FINETUNING = ("base", "method", "head", "control", "control_lr", "label_counts", "statistics", "strict")


def _keys() -> dict[str, list[str]]:
    """Every dotted key of the shipped configs, and the choices that have it, for hints."""
    import yaml

    keys: dict[str, list[str]] = {}
    for path in sorted(paths.shipped("configs").glob("*/*.yaml")):
        values = yaml.safe_load(path.read_text())
        if path.parent.name in (*SECTIONS, *SEARCH_SECTIONS) and isinstance(values, dict):
            for key in values:
                if key not in ("_target_", "defaults"):
                    keys.setdefault(f"{path.parent.name}.{key}", []).append(f"{path.parent.name}={path.stem}")
    return keys


def from_config(config: DictConfig) -> Experiment:
    """A composed Hydra config as a checked plain dict."""
    experiment = plain(config)
    return check({key: experiment[key] for key in SECTIONS if key in experiment})


def plain(config: DictConfig) -> dict[str, Any]:
    """Every section of a composed config, resolved."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    refuse(OmegaConf.to_container(config, resolve=False), resolved=False)
    try:
        sections = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"the config needs a value that is missing or wrong: {error}") from None
    assert isinstance(sections, dict)
    return {str(section): value for section, value in sections.items()}


def has_interpolations(config: DictConfig) -> bool:
    """Whether a value of the config may follow from another."""
    from omegaconf import OmegaConf

    return "${" in str(OmegaConf.to_container(config, resolve=False))


def without(config: DictConfig, sections: Sequence[str]) -> DictConfig:
    """The config but for these sections."""
    from omegaconf import OmegaConf

    return OmegaConf.masked_copy(config, [str(key) for key in config if key not in sections])
