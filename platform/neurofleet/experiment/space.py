"""What a study searches: keys of the config and the values that they may take, read from Hydra's own sweep grammar.

key=a,b  choice(a,b)  glob(*)      one of several; glob: those of a folder of configs
range(1,10,2)                      1, 3, 5, 7, 9: the stop is left out, as in Hydra and Python
interval(0,1)  int(interval(1,9))  every number from the first to the last, the last included
tag(log, ...)                      evenly over orders of magnitude
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from decimal import ROUND_CEILING, Decimal
from typing import TYPE_CHECKING, Any

from neurofleet import paths
from neurofleet.errors import ConfigError, nearest
from neurofleet.experiment.compose import parsed

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override


@dataclasses.dataclass(frozen=True)
class Dimension:
    """The values of one searched key: one of `choices`, or a number from `low` to `high`, both included.

    kind "categorical" has choices: text, numbers, booleans, None, and lists and dicts of them.
    kind "int" and "float" have low, high, log; a float without a step may take every value between.
    """

    kind: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    step: float | None = None
    choices: tuple[Any, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` reads, and JSON can hold."""
        if self.kind == "categorical":
            return {"kind": self.kind, "choices": list(self.choices)}
        return {"kind": self.kind, "low": self.low, "high": self.high, "log": self.log, "step": self.step}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Dimension:
        return cls(**{**stored, "choices": tuple(stored.get("choices", ()))})

    @property
    def size(self) -> int | None:
        """How many values there are; None where they cannot be counted."""
        if self.kind == "categorical":
            return len(self.choices)
        if self.step is None:
            return None
        low, high, step = (Decimal(str(number)) for number in (self.low, self.high, self.step))
        return int((high - low) / step) + 1

    def grid(self) -> tuple[Any, ...] | None:
        """All values in order; None where they cannot be counted."""
        if self.kind == "categorical" or self.size is None:
            return self.choices or None
        return tuple(self._at(index) for index in range(self.size))

    def _at(self, index: int) -> float:
        number = int if self.kind == "int" else float
        return number(Decimal(str(self.low)) + index * Decimal(str(self.step)))

    def nearest(self, value: float) -> float:
        """The value of the range that is nearest: sums of steps drift off it, as in 0.1 + 0.2."""
        if self.low is None or self.step is None or self.size is None:
            return value
        return self._at(min(max(round((value - self.low) / self.step), 0), self.size - 1))


Space = dict[str, Dimension]  # by key, as on the command line: optimizer.lr, family, family@family.encoder, +new.key


def grid_size(space: Space) -> int | None:
    """How many combinations there are; None where a dimension has values that cannot be counted."""
    sizes = [dimension.size for dimension in space.values()]
    return None if None in sizes else math.prod(size for size in sizes if size is not None)


def parse(overrides: Sequence[str], written: Mapping[str, str]) -> tuple[list[str], Space]:
    """The overrides that have one value, and a dimension for each key that has several.

    `written` is `search.space` of a config file, in the same syntax; the command line wins, be it by other values to
    search or by a single one.

    Raises:
        ConfigError: what Hydra's grammar does not know; an interval or range without values; a key that decides nothing
            of a trial.
    """
    space: Space = {}
    for key, text in written.items():
        override = parsed([f"{key}={text}"])[0] if isinstance(text, str) else None
        if override is None or not override.is_sweep_override():
            raise ConfigError(
                f"search.space.{key} needs several values in Hydra's sweep syntax, got {text!r}; e.g. "
                "tag(log, interval(1e-4, 1e-1)), choice(a, b), range(1, 5); one value belongs on the command line"
            )
        space[override.get_key_element()] = _dimension(override)
    fixed: list[tuple[str, str]] = []
    for line, override in zip(overrides, parsed(overrides), strict=True):
        key = override.get_key_element()
        space = {other: dimension for other, dimension in space.items() if bare(other) != bare(key)}
        if override.is_sweep_override():
            fixed = [(other, before) for other, before in fixed if other != bare(key)]
            space[key] = _dimension(override)
        else:
            fixed.append((bare(key), line))
    return [line for _, line in fixed], space


def bare(key: str) -> str:
    """A key without the signs that add or delete it."""
    return key.lstrip("+~")


def root(key: str) -> str:
    """The section of the config that a key belongs to."""
    return re.split(r"[./@]", bare(key))[0]


def is_group(key: str) -> bool:
    """Whether a value of `key` is the name of a config file."""
    return (paths.shipped("configs") / bare(key).split("@")[0]).is_dir()


# What decides nothing of a trial's result.
_SETTINGS = frozenset({"search", "scheduler", "study", "launcher", "name", "resume", "hydra"})
_SETTINGS |= {"base", "control", "control_lr", "label_counts", "pipeline"}


def _dimension(override: Override) -> Dimension:
    key, text = override.get_key_element(), override.get_value_string()
    if override.is_delete() or root(key) in _SETTINGS:
        raise ConfigError(f"{key} cannot be searched and needs one value, got {text}; a list is written [a,b]")
    values: Any = override.value()
    tags = set(getattr(values, "tags", ()))
    if tags - {"log"}:
        raise ConfigError(f"{key} has an unknown tag in {text}; {nearest(sorted(tags - {'log'})[0], ['log'])}")
    where = f"{key}={text}"
    if override.is_interval_sweep():
        return _interval(where, values.start, values.end, log=bool(tags))
    if override.is_range_sweep():
        return _range(where, values.start, values.stop, values.step, log=bool(tags))
    if tags:
        raise ConfigError(f"a logarithmic scale needs an interval or a range, got {where}")
    if hasattr(values, "filter"):
        return _glob(override.key_or_group, values)
    choices = [plain_value(value) for value in values.list]
    if is_group(key) and not all(isinstance(one, str) for one in choices):
        raise ConfigError(f"{key} needs names of config files, got {where}")
    return _choice(where, choices)


def _interval(where: str, low: float, high: float, *, log: bool) -> Dimension:
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(f"an interval needs two finite numbers, the smaller one first, got {where}")
    _positive(where, low, log=log)
    whole = isinstance(low, int)
    return Dimension("int" if whole else "float", low=low, high=high, log=log, step=1 if whole else None)


def _range(where: str, start: float, stop: float, step: float, *, log: bool) -> Dimension:
    whole = all(isinstance(number, int) for number in (start, stop, step))
    if not all(map(math.isfinite, (start, stop, step))) or step == 0:
        raise ConfigError(f"a range needs finite numbers and a step that is not 0, got {where}")
    exact_start, exact_stop, exact_step = (Decimal(str(number)) for number in (start, stop, step))  # 0.1 is a tenth
    count = int(((exact_stop - exact_start) / exact_step).to_integral_value(ROUND_CEILING))
    if count < 1:
        raise ConfigError(f"a range needs at least one value, got {where}; the stop itself is left out")
    last = exact_start + (count - 1) * exact_step
    number = int if whole else float
    low, high = sorted((number(exact_start), number(last)))
    if log and not (whole and abs(step) == 1):
        raise ConfigError(f"a logarithmic range needs whole numbers and step 1, got {where}; use interval")
    _positive(where, low, log=log)
    return Dimension("int" if whole else "float", low=low, high=high, log=log, step=number(abs(exact_step)))


def _positive(where: str, low: float, *, log: bool) -> None:
    if log and low <= 0:
        raise ConfigError(f"a logarithmic scale needs numbers above 0, got {where}")


def _glob(group: str, pattern: Any) -> Dimension:
    folder = paths.shipped("configs") / group
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    names = pattern.filter(known)
    if not names:
        found = nearest("", known) if known else "it is no folder of configs"
        raise ConfigError(f"glob needs a pattern that some config of {group} has, got {pattern.include}; {found}")
    return Dimension("categorical", choices=tuple(names))


def _choice(where: str, values: list[Any]) -> Dimension:
    texts = [json.dumps(value, sort_keys=True) for value in values]
    twice = sorted({text for text in texts if texts.count(text) > 1})
    if twice:
        raise ConfigError(f"a choice needs values that differ, got {', '.join(twice)} twice in {where}")
    return Dimension("categorical", choices=tuple(values))


def plain_value(value: Any) -> Any:
    """What Hydra's grammar parsed, as YAML would hold it."""
    if isinstance(value, list):
        return [plain_value(one) for one in value]
    if isinstance(value, dict):
        return {plain_value(key): plain_value(one) for key, one in value.items()}
    return getattr(value, "text", value)  # Hydra keeps the quotes of quoted text beside it
