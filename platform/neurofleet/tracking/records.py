"""The spool: one JSON record a line, appended by the training process and its child, read by the child.

    {"open": {"run_id", "uri", "own"}}                         first line: what a stranger needs to finish delivery
    {"since", "time", "names": [...], "rows": base64}          metrics of a chunk of steps
    {"params": {...}}  {"tags": {...}}  {"dataset": {...}}  {"artifact": path, "folder": name}
    {"trial": {...}}                                           a trial of a study that is over: a run below this one
    {"end": status or null}                                    last line

Rows are doubles [step, epoch, value of each name ...] in base64: 0.7 us a metric against 3 us as JSON numbers, and
exact.  An epoch of NaN means that the row has none.  The rows of a chunk share two clock readings, `since` (the end
of the chunk before) and `time`, in milliseconds; each row's own time is interpolated, so that curves over wall time
do not stack up in columns.
"""

from __future__ import annotations

import binascii
import json
import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

Row = tuple[int, float, Mapping[str, float]]
"""step, epoch, metrics"""
DAMAGED = (ValueError, KeyError, TypeError, OverflowError)
"""what decoding raises for a line that a loss of power spoiled"""


class Point(NamedTuple):
    name: str
    value: float
    time: int
    step: int


class Trial(NamedTuple):
    """A trial of a study that is over."""

    number: int
    name: str
    status: str
    start_time: int
    end_time: int
    params: dict[str, str]
    tags: dict[str, str]
    points: list[Point]


def encode(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"


def encode_rows(rows: Sequence[Row], since: int, time: int) -> bytes:
    """One line for each stretch of rows that name the same metrics."""
    lines = []
    for names, stretch in groupby(rows, lambda row: tuple(row[2])):
        numbers = array("d", [each for step, epoch, metrics in stretch for each in (step, epoch, *metrics.values())])
        packed = binascii.b2a_base64(numbers.tobytes(), newline=False).decode()
        lines.append(f'{{"since":{since},"time":{time},"names":{json.dumps(names)},"rows":"{packed}"}}\n')
    return "".join(lines).encode()


def decode_points(record: Mapping[str, Any], epoch: float | None) -> tuple[list[Point], float | None]:
    """The metrics of a record, with an `epoch` metric where the epoch differs from `epoch`; and the last epoch."""
    names, since, span = record["names"], record["since"], record["time"] - record["since"]
    numbers = array("d", binascii.a2b_base64(record["rows"]))
    width = len(names) + 2
    num_rows = len(numbers) // width
    points = []
    for index in range(num_rows):
        step, row_epoch, *values = numbers[index * width : (index + 1) * width]
        time = since + span * (index + 1) // num_rows
        points += [Point(name, value, time, int(step)) for name, value in zip(names, values, strict=True)]
        if not math.isnan(row_epoch) and row_epoch != epoch:
            epoch = row_epoch
            points.append(Point("epoch", row_epoch, time, int(step)))
    return points, epoch


def encode_trial(trial: Mapping[str, Any]) -> bytes:
    """`params` and `tags` are flat; a point is (name, value, step, time), of whatever numbers."""
    plain: dict[str, Any] = {name: int(trial[name]) for name in ("number", "start_time", "end_time")}
    plain |= {name: str(trial[name]) for name in ("name", "status")}
    plain |= {name: {key: str(value) for key, value in trial[name].items()} for name in ("params", "tags")}
    points = [(str(name), float(value), int(step), int(time)) for name, value, step, time in trial["points"]]
    return encode({"trial": plain | {"points": points}})


def decode_trial(plain: Mapping[str, Any]) -> Trial:
    points = [Point(name, float(value), time, step) for name, value, step, time in plain["points"]]
    return Trial(**{**plain, "points": points})


def decode(line: bytes) -> dict[str, Any]:
    record = json.loads(line)
    if not isinstance(record, dict):
        raise ValueError(f"a record is a JSON object, got {line[:80]!r}")
    return record


def chunks(items: Iterable[Any], size: int) -> Iterable[list[Any]]:
    listed = list(items)
    return (listed[start : start + size] for start in range(0, len(listed), size))
