"""Registered models on the terminal: what there is, how good it is, and which network was fine-tuned from which."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from neurofleet.errors import ConfigError
from neurofleet.release.registry import Version, find, of_model, opened, versions

if TYPE_CHECKING:
    from mlflow import MlflowClient

WIDE = 110  # columns of text, with room for the ids of runs
NONE_YET = "no registered models yet; make one with: neurofleet train family=mlp data=wine trainer.register=true"


class Origins(NamedTuple):
    """Which version came from what.  A node is a uri: that of a version, or of a base outside of the registry."""

    versions: dict[str, Version]
    parents: dict[str, str]
    children: dict[str, list[str]]


def print_models(console: Console) -> None:
    """A line a model; family, data and base are those of its latest version."""
    with opened() as client:
        known = versions(client)
    if not known:
        console.print(NONE_YET, highlight=False)
        return
    table = _table("name", "latest", "aliases", "family", "data", "base")
    for name in sorted({one.name for one in known}):
        own = of_model(name, known)
        aliases = [f"@{alias} {one.number}" for one in own for alias in one.aliases]
        described = [own[-1].tags.get(key, "") for key in ("family", "data", "base.uri")]
        _add(table, name, own[-1].number, "\n".join(aliases), *described)
    console.print(table)


def print_model(name: str, console: Console) -> None:
    """The versions of one model with the scores of their runs, and its family tree; of `NAME/3`, `NAME@champion` or
    their uris that version alone.

    Raises:
        ConfigError: there is no such model or version.
    """
    name, mark, which = re.fullmatch(r"(?:models:/)?([^/@]*)([/@]?)(.*)", name, re.DOTALL).groups()  # type: ignore[union-attr]
    with opened() as client:
        known = versions(client)
        own = of_model(name, known)
        if mark:
            own = [find(name, known, **{"number" if mark == "/" else "alias": which})]
        scores = {one.number: _scores(client, one.run_id) for one in own}
    wide = console.width >= WIDE
    table = _table("version", "aliases", "made", "family", "data", "test", *(["run"] if wide else []))
    for one in own:
        made = time.strftime("%Y-%m-%d", time.localtime(one.created / 1000))
        aliases = "\n".join(f"@{alias}" for alias in one.aliases)
        described = (one.tags.get("family", ""), one.tags.get("data", ""))
        _add(table, one.number, aliases, made, *described, scores[one.number], *([one.run_id] if wide else []))
    console.print(Text(name, style="bold"))
    console.print(table)
    for tree in family_tree(name, known):
        console.print()
        console.print(tree)


def set_alias(name: str, number: str, alias: str, console: Console) -> None:
    """Let an alias name a version; the version that it named before loses it.

    Raises:
        ConfigError: no such model or version, or a word that cannot be an alias.
    """
    if not re.fullmatch(r"[\w-]+", alias) or re.fullmatch(r"latest|v\d+", alias, re.IGNORECASE):
        raise ConfigError(f"an alias needs letters, digits, - and _, and is not latest or like v1, got {alias!r}")
    with opened() as client:
        known = versions(client)
        version = find(name, known, number=number)
        before = [one.number for one in of_model(name, known) if alias in one.aliases]
        client.set_registered_model_alias(name, alias, str(version.number))
    was = f" (it was {before[0]})" if before and before[0] != version.number else ""
    console.print(f"models:/{name}@{alias} is version {version.number}{was}", highlight=False, markup=False)


def family_tree(name: str, known: Sequence[Version]) -> list[Tree]:
    """One tree for each root that versions of a model go back to: their ancestors and descendants, and nobody else."""
    origins = _origins(known)
    own = [one.uri for one in known if one.name == name]
    wanted: set[str] = set()
    for uri in own:
        wanted |= {*_ancestors(uri, origins), *_descendants(uri, origins)}
    roots = dict.fromkeys([_ancestors(uri, origins)[-1] for uri in own])
    return [_branch(root, name, origins, wanted, None) for root in roots]


def _origins(known: Sequence[Version]) -> Origins:
    by_uri = {one.uri: one for one in known}
    of_run = {one.run_id: one.uri for one in reversed(known) if one.run_id}
    parents: dict[str, str] = {}
    children: dict[str, list[str]] = {}
    for one in known:
        base = one.tags.get("base.uri", "")
        if base and base not in by_uri:  # a run or its files, which may be registered since
            base = of_run.get(one.tags.get("base.run_id", ""), base)
        if base and base != one.uri:
            parents[one.uri] = base
            children.setdefault(base, []).append(one.uri)
    return Origins(by_uri, parents, children)


def _ancestors(uri: str, origins: Origins) -> list[str]:
    """From itself to its root; whoever edits tags by hand can write a circle, which ends where it closes."""
    line = [uri]
    while line[-1] in origins.parents and origins.parents[line[-1]] not in line:
        line.append(origins.parents[line[-1]])
    return line


def _descendants(uri: str, origins: Origins) -> list[str]:
    found = [uri]
    for one in found:  # grows while it is read
        found += [child for child in origins.children.get(one, ()) if child not in found]
    return found


def _branch(uri: str, name: str, origins: Origins, wanted: set[str], tree: Tree | None) -> Tree:
    wanted.discard(uri)  # a circle ends here, too
    label = _label(uri, name, origins)
    branch = Tree(label) if tree is None else tree.add(label)
    for child in origins.children.get(uri, ()):
        if child in wanted:
            _branch(child, name, origins, wanted, branch)
    return branch


def _label(uri: str, name: str, origins: Origins) -> Text:
    version = origins.versions.get(uri)
    if version is None:
        gone = " (no longer registered)" if uri.startswith("models:/") else ""
        return Text(f"{uri}{gone}", style="dim")
    label = Text(f"{version.name}/{version.number}", style="bold" if version.name == name else "")
    label.append("".join(f" @{alias}" for alias in version.aliases), style="green")
    data = version.tags.get("data", "")
    return label.append(f"  {data}" if data else "", style="dim")


def _scores(client: MlflowClient, run_id: str) -> str:
    from mlflow.exceptions import MlflowException

    if not run_id:
        return ""
    try:
        metrics = client.get_run(run_id).data.metrics
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return "run deleted"
    scores = [f"{key.removeprefix('test/')} {metrics[key]:.4g}" for key in sorted(metrics) if key.startswith("test/")]
    gains = [f"{key.removeprefix('evidence/')} {metrics[key]:+.4g}" for key in sorted(metrics) if "evidence/" in key]
    return "\n".join([*scores, *gains])


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column in ("latest", "version") else "left")
    return table


def _add(table: Table, *cells: object) -> None:
    """As they are: a name may hold what rich takes for markup."""
    table.add_row(*(Text(str(cell) or "-") for cell in cells))
