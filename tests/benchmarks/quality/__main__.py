"""`make quality`: what the shipped experiments reach on rows that they never saw, and at what price.

Each module beside this one measures a family (`ROWS`).  Where runs differ by their seed, the settings of
`configs/experiment` were chosen without the test rows.  Where they differ by `data.split`, settings were chosen on
splits from 10 on, and 0 to 9 are reported: each divides the same rows anew, so rows that are tested here were looked at
there, and a score may be a little too good.  Exit code 1 if a row misses its reach.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, median, stdev

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("NEUROFLEET_DATA", str(Path(__file__).resolve().parents[3] / "data"))

import torch
from rich.console import Console
from rich.table import Table
from rows import Row, measure, reference, written

MODULES = sorted({path.stem for path in Path(__file__).parent.glob("*.py")} - {"__main__", "rows"})


def line(row: Row) -> tuple[tuple[str, ...], bool]:
    if row.write is not None:
        written(row.write)
    scores, seconds = zip(*(measure(row, variant) for variant in row.variants), strict=True)
    references = "\n".join(f"{reference(row, score):.4f} {name}" for name, score in row.references)
    centre = row.centre(scores)
    spread = f"{stdev(scores):.4f}" if len(scores) > 1 else ""
    runs = f"{len(row.variants)} x {row.variants[0].split('=')[0].removeprefix('data.')}"
    overrides = "\n".join(row.overrides).removeprefix("experiment=")
    bound = f"{'<=' if row.lower else '>='} {row.reach:.4f}"
    name = f"{row.metric}, median" if row.centre is median else row.metric
    figures = f"{centre:.4f}", spread, bound, "met" if row.met(centre) else "MISSED", f"{mean(seconds):.1f}"
    return (overrides, runs, name, *figures, references), row.met(centre)


def report(rows: Iterable[Row]) -> bool:
    """Print the table; whether every row reaches what it should."""
    table = Table("neurofleet train experiment=", "runs", "metric", title="test rows", title_justify="left")
    for heading in ("mean", "std", "reach", "", "CPU s a run"):
        table.add_column(heading, justify="right")
    table.add_column("on the same rows")
    good = True
    for row in rows:
        cells, met = line(row)
        good = good and met
        print(" | ".join(cells).replace("\n", ", "), file=sys.stderr, flush=True)
        table.add_row(*cells)
    Console(width=150).print(table)
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", default=MODULES, help=f"out of {', '.join(MODULES)}")
    parser.add_argument("--only", default="", help="part of an experiment's name")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for name in options.modules for row in importlib.import_module(name).ROWS]
    sys.exit(0 if report(row for row in rows if options.only in row.overrides[0]) else 1)


if __name__ == "__main__":
    main()
