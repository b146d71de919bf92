from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from neurofleet.transfer.table import LONGEST_NAME, MOST_ROWS, Row, network, plain, rows, starts

KEPT = {
    "encoder.convolutions.0.weight": (8, 1, 3, 3),
    "encoder.convolutions.0.bias": (8,),
    "encoder.convolutions.1.weight": (16, 8, 3, 3),
    "encoder.convolutions.1.bias": (16,),
}
DROPPED = {"encoder.readout.weight": (10, 16), "encoder.readout.bias": (10,)}
NEW = {"head.0.weight": (5, 16), "head.0.bias": (5,)}
FROZEN = {"encoder.convolutions.0.weight", "encoder.convolutions.0.bias"}


def printed(*shapes: Any, **settings: Any) -> list[str]:
    written = io.StringIO()
    Console(file=written, width=75).print(starts(*shapes, **settings))
    return written.getvalue().splitlines()


def test_modules_by_status() -> None:
    found = rows(KEPT, DROPPED, NEW, frozen=FROZEN)
    assert found == [
        Row("encoder.convolutions.0", "kept, frozen", 2, 80),
        Row("encoder.convolutions.1", "kept", 2, 1168),
        Row("head.0", "new", 2, 85),
        Row("encoder.readout", "dropped", 2, 170),
    ]
    assert network(found) == Row("network", "94 % learn", 6, 80 + 1168 + 85)


def test_text_for_a_log() -> None:
    assert plain(KEPT, DROPPED, NEW, frozen=FROZEN).splitlines() == [
        "module                  status        tensors  parameters",
        "encoder.convolutions.0  kept, frozen        2          80",
        "encoder.convolutions.1  kept                2       1,168",
        "head.0                  new                 2          85",
        "encoder.readout         dropped             2         170",
        "network                 94 % learn          6       1,333",
    ]


def test_a_deep_network_fits_on_a_screen() -> None:
    """Twelve blocks of three modules: the blocks are told apart, what is in them is not."""
    parts = ("attention.query", "attention.key", "feedforward.linear")
    deep = {f"encoder.blocks.{index}.{part}.weight": (4, 4) for index in range(12) for part in parts}
    found = rows({"encoder.positions": (7, 4), **deep}, {}, NEW)
    assert [row.module for row in found[:3]] == ["encoder.positions", "encoder.blocks.0", "encoder.blocks.1"]
    assert len(found) == 14
    assert found[1] == Row("encoder.blocks.0", "kept", 3, 48)
    deeper = {f"encoder.blocks.{index}.{part}.weight": (4, 4) for index in range(48) for part in parts}
    found = rows(deeper, {}, NEW)
    assert found[0] == Row("encoder.blocks", "kept", 144, 48 * 48)
    flat = {f"layer{index}.{name}": (2,) for index in range(MOST_ROWS) for name in ("weight", "bias")}
    assert rows(flat, {}, NEW) == [Row("all of it", "kept", 36, 72), Row("all of it", "new", 2, 85)]


def test_75_columns_are_enough() -> None:
    long = {f"encoder.{'very_' * 12}long.layer.{name}": (30000, 40000) for name in ("weight", "bias")}
    lines = printed(long, DROPPED, NEW, frozen=set(long))
    assert max(map(len, lines)) <= 75
    text = "\n".join(lines)
    assert "…" + f"{'very_' * 12}long.layer"[-LONGEST_NAME + 1 :] in text
    assert "2,400,000,000" in text
    assert "<0.01 % learn" in text
    assert max(map(len, plain(long, DROPPED, NEW).splitlines())) <= 75


def test_the_share_that_learns() -> None:
    assert network(rows({"a.w": (98,)}, {}, {"b.w": (2,)}, frozen=["a.w"])).status == "2 % learn"
    assert network(rows({"a.w": (98,)}, {}, {}, frozen=["a.w"])).status == "0 % learn"
    assert network(rows({"a.w": (98,)}, {"b.w": (9,)}, {})).status == "100 % learn"
    assert network(rows({}, {}, {})) == Row("network", "0 % learn", 0, 0)


def test_every_row_is_in_the_table() -> None:
    lines = [line.split() for line in printed(KEPT, DROPPED, NEW, frozen=FROZEN) if line.split()]
    assert ["encoder.convolutions.0", "kept,", "frozen", "2", "80"] in lines
    assert ["encoder.readout", "dropped", "2", "170"] in lines
    assert lines[-1] == ["network", "94", "%", "learn", "6", "1,333"]
