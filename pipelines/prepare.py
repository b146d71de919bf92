"""Prepare datasets: `python pipelines/prepare.py NAME...` writes `data/NAME/{train,val,test}.parquet` and `spec.json`.

To add a dataset, write `sources/NAME.py` with a function `load` that returns a `Raw`, put NAME into `dvc.yaml`, and add
`configs/data/NAME.yaml`.  The packages that data comes from are imported by those files and nowhere else.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from neurofleet import paths
from neurofleet.data.sources import installation
from neurofleet.data.write import Raw, write_dataset
from neurofleet.errors import DataError, UserError, nearest
from neurofleet.spec import DataSpec

SOURCES = Path(__file__).resolve().parent / "sources"


def names() -> list[str]:
    """The datasets that can be prepared."""
    return sorted(path.stem for path in SOURCES.glob("*.py"))


def module(name: str) -> ModuleType:
    """The file of dataset `name`."""
    if name not in names():
        raise DataError(f"prepare needs a known dataset, got {name!r}; {nearest(name, names())}")
    spec = importlib.util.spec_from_file_location(f"source_{name}", SOURCES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def load(name: str) -> Raw:
    """Dataset `name` as its source has it."""
    try:
        raw: Raw = module(name).load()
    except ModuleNotFoundError as error:
        raise DataError(
            f"preparing {name!r} needs the package {error.name!r}; {installation(str(error.name))}"
        ) from error
    return raw


def prepare(name: str, into: Path) -> DataSpec:
    """Write dataset `name` to the folder `into/name`, whole or not at all."""
    return write_dataset(name, load(name), into)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", metavar="NAME", help=f"one of {', '.join(names())}")
    parser.add_argument("--into", type=Path, help="the folder of all datasets (default: data/ in the project)")
    options = parser.parse_args(arguments)
    into = options.into or paths.data()
    for name in options.names:
        try:
            spec = prepare(name, into)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code
        counts = ", ".join(f"{count} {stage}" for stage, count in spec.num_rows.items())
        print(f"prepared {into / spec.name}: {spec.task}, {spec.kind} {spec.shape}, rows: {counts}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
