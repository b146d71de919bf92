"""From a point of the search space to its experiment: `neurofleet tune` -> what `neurofleet train` would run.

Hydra composes an experiment in some 50 ms, which is longer than many a trial takes in a stack.  So it composes once
for each choice of config files; plain values are then put in place.  What that cannot do exactly as Hydra does
(interpolations, dicts that merge) is composed by Hydra each time.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import yaml

from neurofleet.errors import ConfigError, nearest
from neurofleet.experiment.check import (
    CMA_ES,
    GRID,
    ONE_SHOT,
    SEARCH_SECTIONS,
    SECTIONS,
    Experiment,
    check,
    check_search,
)
from neurofleet.experiment.compose import as_text, composed, has_interpolations, parsed, plain, without
from neurofleet.experiment.space import Dimension, Space, bare, grid_size, is_group, parse, plain_value, root

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["TRAIN", "Composer", "Dimension", "Space", "Verb", "grid_size", "parse"]


@dataclasses.dataclass(frozen=True)
class Verb:
    """What a study searches the settings of: `configs/NAME.yaml` is composed, `finish` makes an experiment of it."""

    name: str
    finish: Callable[[dict[str, Any]], Experiment]

    @property
    def search(self) -> str:
        """The config of a study."""
        return "tune" if self.name == "train" else f"tune_{self.name}"


def _of_training(sections: dict[str, Any]) -> Experiment:
    return check({key: sections[key] for key in SECTIONS if key in sections})


TRAIN = Verb("train", _of_training)
OF_STUDY = (*SEARCH_SECTIONS, "finder", "pipeline", "failed_only")  # what a study's config has beside its verb's


class Composer:
    """The experiments of one study, by the values of what it searches.

    search     how it searches: the section `search`, checked, without the space
    scheduler  the section that is built into what gives trials up
    study      the name asked for, or None
    fixed      the overrides that all trials share, as the verb takes them
    verb       the verb whose settings are searched

    Raises:
        ConfigError: nothing to search; a key or choice that does not exist; a grid of what cannot be counted.
    """

    def __init__(self, fixed: Sequence[str], space: Space, verb: Verb = TRAIN) -> None:
        if not space:
            raise ConfigError(
                "tune needs something to search, got no key with several values; "
                "e.g. 'optimizer.lr=tag(log,interval(1e-4,1e-1))' or family=mlp,cnn"
            )
        self._given = tuple(fixed)
        sections = check_search(plain(_composed(verb.search, self._given)))
        self.verb = verb
        self.space = dict(space)
        self.search: dict[str, Any] = {key: value for key, value in sections["search"].items() if key != "space"}
        self.scheduler: dict[str, Any] = sections["scheduler"]
        self.study: str | None = sections["study"]
        self.fixed = [override for override in fixed if root(override.split("=")[0]) not in (*sections, "pipeline")]
        self._groups = [key for key in space if is_group(key)]
        self._places = {key: bare(key).split(".") for key in space if key not in self._groups}
        self._added = [key for key in self._places if key != bare(key)]
        self._templates: dict[str, dict[str, Any] | None] = {}
        self._count_grid()
        self._need_numbers()
        self._try_each_choice()

    @classmethod
    def of(cls, overrides: Sequence[str], verb: Verb = TRAIN) -> Composer:
        """From what stands after `neurofleet tune`, with the space of the chosen `search` file."""
        fixed, _ = parse(overrides, {})
        settings = check_search(plain(_composed(verb.search, tuple(fixed))))
        return cls(*parse(overrides, settings["search"]["space"]), verb)

    def experiment(self, params: Mapping[str, Any]) -> Experiment:
        """What `neurofleet train` would run with `fixed` and `overrides(params)`; a value for each searched key."""
        lacking = [key for key in self.space if key not in params]
        if lacking:
            raise ConfigError(f"a trial needs a value for each searched key, lacking {', '.join(lacking)}")
        template = self._template(params)
        made = _copied(template)
        if made is not None and all(_put(made, place, params[key]) for key, place in self._places.items()):
            return self.verb.finish(made)
        return self.verb.finish(self._composed(self.overrides(params)))

    def _composed(self, overrides: Sequence[str]) -> dict[str, Any]:
        return plain(composed(self.verb.name, [*self.fixed, *overrides]))

    def overrides(self, params: Mapping[str, Any]) -> list[str]:
        """The values as `neurofleet train` takes them: `["family=cnn", "optimizer.lr=0.01"]`."""
        unknown = next((key for key in params if key not in self.space), None)
        if unknown is not None:
            raise ConfigError(f"the study does not search {unknown!r}; {nearest(unknown, self.space)}")
        return [f"{key}={as_text(params[key])}" for key in self.space if key in params]

    def experiment_file(self, params: Mapping[str, Any]) -> str | None:
        """The same as the text of a file for configs/experiment: only what differs from `neurofleet train` alone.
        None where something is deleted, which a file cannot say."""
        overrides = parsed([*self.fixed, *self.overrides(params)])
        if any(override.is_delete() for override in overrides):
            return None
        defaults: list[Any] = []
        values: dict[str, Any] = {}
        for override in overrides:
            key, value = override.get_key_element(), override.value()
            if key == "experiment":
                defaults.insert(0, value)
            elif is_group(key):
                defaults.append({f"override /{bare(key)}": value})
            else:
                *place, last = bare(key).split(".")
                node = functools.reduce(lambda node, name: node.setdefault(name, {}), place, values)
                node[last] = plain_value(value)
        content = {"defaults": [*defaults, "_self_"]} | values
        return "# @package _global_\n" + yaml.safe_dump(content, sort_keys=False)

    def _template(self, params: Mapping[str, Any]) -> dict[str, Any] | None:
        """The sections but for their plain values; None where these cannot be put in place.  A key that is added has
        a place only once Hydra has added it, be it with the first point's value."""
        if not all(_is_plain(params[key]) for key in self._added):
            return None
        choice = json.dumps([params[key] for key in self._groups])
        if choice not in self._templates:
            first = {key: params[key] for key in (*self._groups, *self._added)}
            if first:
                config = composed(self.verb.name, [*self.fixed, *self.overrides(first)])
            else:  # it is part of what the study was composed from
                config = without(_composed(self.verb.search, self._given), OF_STUDY)
            self._templates[choice] = None if has_interpolations(config) else plain(config)
        return self._templates[choice]

    def _try_each_choice(self) -> None:
        """Show what is misspelt, or is lacking in one of several config files, before the first trial."""
        first = {key: one.choices[0] if one.choices else one.low for key, one in self.space.items()}
        self.experiment(first)
        for key in self._groups:
            for choice in self.space[key].choices[1:]:
                try:
                    self.experiment(first | {key: choice})
                except ConfigError as error:
                    raise ConfigError(f"with {bare(key)}={as_text(choice)}: {error}") from None

    def _need_numbers(self) -> None:
        numbers = [key for key, one in self.space.items() if one.low != one.high]
        if self.search["sampler"]["_target_"] == CMA_ES and len(numbers) < 2:
            raise ConfigError(
                "CMA-ES learns how numbers depend on each other and needs two intervals or ranges, got "
                f"{', '.join(numbers) or 'none'}; search more of them, or take search=tpe"
            )

    def _count_grid(self) -> None:
        what = {GRID: "a grid", ONE_SHOT: "one-shot search"}.get(self.search["sampler"]["_target_"])
        if what is None:
            return
        endless = [key for key, dimension in self.space.items() if dimension.size is None]
        if endless:
            raise ConfigError(
                f"{what} needs values that can be counted, got intervals for {', '.join(endless)}; use range"
            )
        most = self.search["sampler"].get("num_candidates")
        self.search["num_trials"] = min(filter(None, (self.search["num_trials"], grid_size(self.space), most)))


@functools.lru_cache(maxsize=1)  # for the space, for the rest, and for all trials if no config file is searched
def _composed(name: str, fixed: tuple[str, ...]) -> DictConfig:
    return composed(name, list(fixed))


def _copied(node: Any) -> Any:
    """copy.deepcopy of plain data, several times as fast."""
    if isinstance(node, dict):
        return {key: _copied(value) for key, value in node.items()}
    return [_copied(value) for value in node] if isinstance(node, list) else node


def _put(sections: dict[str, Any], place: Sequence[str], value: Any) -> bool:
    """Set a value that is there already; False where only Hydra knows what setting it means."""
    node: Any = sections
    for name in place[:-1]:
        node = node.get(name) if isinstance(node, dict) else None
    last = place[-1]
    if not isinstance(node, dict) or last not in node or isinstance(node[last], dict) or not _is_plain(value):
        return False
    node[last] = _copied(value)
    return True


def _is_plain(value: Any) -> bool:
    """Whether Hydra would leave the value as it is."""
    if isinstance(value, list):
        return all(map(_is_plain, value))
    if isinstance(value, str):
        return "${" not in value and value != "???"
    return value is None or type(value) in (bool, int, float)
