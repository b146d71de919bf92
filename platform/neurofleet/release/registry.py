"""What the model registry holds: versions of models, their aliases and tags."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from neurofleet import release
from neurofleet.errors import ConfigError, nearest
from neurofleet.tracking import prepare_store, store_uri
from neurofleet.tracking.store import check_reachable

if TYPE_CHECKING:
    from mlflow import MlflowClient

PAGE = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Version:
    """One version of a registered model; `created` in milliseconds since 1970; `run_id` is empty where none made it."""

    name: str
    number: int
    run_id: str
    aliases: tuple[str, ...]
    tags: Mapping[str, str]
    created: int

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.number}"


@contextlib.contextmanager
def opened() -> Iterator[MlflowClient]:
    """A client of the registry.

    Raises:
        UnreachableError: it does not answer.
    """
    check_reachable(store_uri())
    prepare_store()
    with release._mlflow("to read the model registry", "look at what MLflow's server says"):
        from mlflow import MlflowClient

        yield MlflowClient()


def versions(client: MlflowClient) -> list[Version]:
    """All versions of all models, by name and number."""
    aliases: dict[tuple[str, int], list[str]] = {}
    for model in _pages(client.search_registered_models, 100):
        for alias, number in model.aliases.items():
            aliases.setdefault((model.name, int(number)), []).append(alias)
    found = [
        Version(
            name=one.name,
            number=int(one.version),
            run_id=one.run_id or "",
            aliases=tuple(sorted(aliases.get((one.name, int(one.version)), ()))),
            tags=dict(one.tags),
            created=int(one.creation_timestamp),
        )
        for one in _pages(client.search_model_versions, PAGE)
    ]
    return sorted(found, key=lambda one: (one.name, one.number))


def _pages(search: Callable[..., Any], size: int) -> Iterator[Any]:
    token = None
    while True:
        page = search(max_results=size, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def of_model(name: str, known: list[Version]) -> list[Version]:
    """The versions of one model, oldest first.

    Raises:
        ConfigError: there is no such model; says which are near.
    """
    own = [one for one in known if one.name == name]
    if not own:
        names = {one.name for one in known}
        raise ConfigError(f"there is no registered model {name!r}; {nearest(name, names)} (neurofleet models list)")
    return own


def find(name: str, known: list[Version], *, number: str = "", alias: str = "") -> Version:
    """The version with that number (`latest`: the highest) or that alias.

    Raises:
        ConfigError: there is none, or neither is given; says which versions and aliases there are.
    """
    own = of_model(name, known)
    if number.lower() == "latest":
        return own[-1]
    for one in own:
        if (number and number == str(one.number)) or (alias and alias in one.aliases):
            return one
    aliases = {each: one.number for one in own for each in one.aliases}
    named = ", ".join(f"@{each} (version {of})" for each, of in sorted(aliases.items())) or "none yet"
    there = f"versions {_spans([one.number for one in own])}; aliases {named}"
    if alias:
        hint = f" {nearest(alias, aliases)}" if aliases else ""
        raise ConfigError(f"model {name!r} has no alias {alias!r};{hint} it has {there}")
    if number:
        raise ConfigError(f"model {name!r} has no version {number!r}; it has {there}")
    raise ConfigError(f"models:/{name} needs a version or an alias, models:/{name}/{own[-1].number}; it has {there}")


def _spans(numbers: list[int]) -> str:
    """`1 to 4, 6` for 1, 2, 3, 4, 6."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][-1] + 1:
            spans[-1][1:] = [number]
        else:
            spans.append([number])
    return ", ".join(" to ".join(map(str, span)) for span in spans)
