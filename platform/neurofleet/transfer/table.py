"""What a network starts with: which of its weights were kept, which are new, and what was left behind, by modules."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rich.table import Table

MOST_ROWS = 18
LONGEST_NAME = 28  # what 75 columns leave beside billions of parameters
Shapes = Mapping[str, Sequence[int]]


class Row(NamedTuple):
    """`module` is the part of a tensor's name that stands for all `num_tensors` of them."""

    module: str
    status: str
    num_tensors: int
    num_parameters: int


def rows(kept: Shapes, dropped: Shapes, new: Shapes, *, frozen: Collection[str] = ()) -> list[Row]:
    """Weights by module and status, at most `MOST_ROWS`: deep modules are told as one with those beside them.

    kept, dropped, new: name -> shape, in the network's order; `dropped` was in the base and is in the network no more
    frozen:             names among `kept` that will not learn
    """
    statuses = {
        "kept, frozen": {name: shape for name, shape in kept.items() if name in frozen},
        "kept": {name: shape for name, shape in kept.items() if name not in frozen},
        "new": new,
        "dropped": dropped,
    }
    names = [name for shapes in statuses.values() for name in shapes]
    for depth in range(max((name.count(".") for name in names), default=0), -1, -1):
        found = [row for status, shapes in statuses.items() for row in _grouped(shapes, status, depth)]
        if len(found) <= MOST_ROWS:
            break
    return found


def network(found: Iterable[Row]) -> Row:
    """All that the network has, without what was dropped; its status is the share of parameters that will learn."""
    own = [row for row in found if row.status != "dropped"]
    num_parameters = sum(row.num_parameters for row in own)
    learning = sum(row.num_parameters for row in own if row.status != "kept, frozen")
    share = 100 * learning / max(num_parameters, 1)
    shown = f"{share:.3g}" if share >= 0.01 or not share else "<0.01"
    return Row("network", f"{shown} % learn", sum(row.num_tensors for row in own), num_parameters)


def starts(kept: Shapes, dropped: Shapes, new: Shapes, *, frozen: Collection[str] = ()) -> Table:
    """`rows` for a terminal of 75 columns or more, and the network in all below."""
    from rich import box
    from rich.table import Table

    found = rows(kept, dropped, new, frozen=frozen)
    styles = {"kept, frozen": "cyan", "kept": "green", "new": "yellow", "dropped": "dim"}
    table = Table(box=box.SIMPLE, show_footer=True)
    alignments = ("left", "left", "right", "right")
    for name, total, align in zip(_HEADINGS, _cells(network(found)), alignments, strict=True):
        table.add_column(name, total, justify=align, no_wrap=True)  # type: ignore[arg-type]
    for row in found:
        table.add_row(*_cells(row), style=styles[row.status])
    return table


def plain(kept: Shapes, dropped: Shapes, new: Shapes, *, frozen: Collection[str] = ()) -> str:
    """`starts` as text, for a log."""
    found = rows(kept, dropped, new, frozen=frozen)
    lines = [_HEADINGS, *map(_cells, found), _cells(network(found))]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        f"{module:<{widths[0]}}  {status:<{widths[1]}}  {tensors:>{widths[2]}}  {parameters:>{widths[3]}}"
        for module, status, tensors, parameters in lines
    )


_HEADINGS = ("module", "status", "tensors", "parameters")


def _cells(row: Row) -> tuple[str, str, str, str]:
    name = row.module if len(row.module) <= LONGEST_NAME else "…" + row.module[-LONGEST_NAME + 1 :]
    return name, row.status, f"{row.num_tensors:,}", f"{row.num_parameters:,}"


def _grouped(shapes: Shapes, status: str, depth: int) -> list[Row]:
    """One row for the tensors whose modules agree in the first `depth` parts of their names."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in shapes:
        groups.setdefault(tuple(name.split(".")[:-1][:depth]), []).append(name)
    return [
        Row(
            names[0] if len(names) == 1 else ".".join(module) or "all of it",
            status,
            len(names),
            sum(math.prod(shapes[name]) for name in names),
        )
        for module, names in groups.items()
    ]
