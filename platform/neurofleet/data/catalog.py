"""What datasets there are: the names in `configs/data`, the folders that are prepared, what each holds.

Answers in well under a second: neither torch nor Lightning is imported here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurofleet import paths
from neurofleet.data.digest import folder_digest
from neurofleet.data.splits import STAGES
from neurofleet.errors import DataError, nearest
from neurofleet.spec import DataSpec

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def known() -> list[str]:
    """Names of the datasets that have a config, and of prepared folders that have none."""
    configured = {path.stem for path in (paths.shipped("configs") / "data").glob("*.yaml")}
    prepared = {path.parent.name for path in paths.data().glob("[!.]*/spec.json")}
    return sorted(configured | prepared)


def remedy(name: str) -> str:
    """The command that makes a dataset's files."""
    return f"neurofleet data prepare {name}"


def locate(name: str) -> Path:
    """The folder of a prepared dataset; DataError if the name is unknown or files of it are missing."""
    if name not in known():
        raise DataError(f"data.name needs a known dataset, got {name!r}; {nearest(name, known())}")
    folder = paths.data() / name
    lacking = _lacking(folder)
    if lacking:
        raise DataError(
            f"dataset {name!r} is not prepared: {folder} lacks {', '.join(lacking)}; make it with: {remedy(name)}"
        )
    return folder


def load_spec(name: str) -> DataSpec:
    """The spec of a prepared dataset."""
    path = locate(name) / "spec.json"
    try:
        return DataSpec.load(path)
    except json.JSONDecodeError as error:
        raise DataError(f"{path} needs to be JSON: {error}; make it again with: {remedy(name)}") from error


def locked_digests() -> dict[str, str]:
    """The digest of each dataset in the project's `dvc.lock`; empty where there is none (outside a checkout)."""
    path = paths.project() / "dvc.lock"
    if not path.is_file():
        return {}
    import yaml

    stages = yaml.safe_load(path.read_text())["stages"]
    outs = (out for stage in stages.values() for out in stage.get("outs", ()))
    return {
        Path(out["path"]).name: out["md5"].removesuffix(".dir")
        for out in outs
        if Path(out["path"]).parent == Path("data")
    }


def listing() -> list[dict[str, Any]]:
    """One summary of each known dataset: name, state, and for a prepared one kind, task, shape, num_rows, digest.

    State is `missing`, `prepared` (its digest is that of `dvc.lock`), `modified` (it is another one) or `untracked`
    (`dvc.lock` does not know the dataset).
    """
    locked = locked_digests()
    return [_summary(name, locked) for name in known()]


def describe(name: str) -> dict[str, Any]:
    """Everything about one prepared dataset: its summary, its spec, and `balance`.

    `balance` has for each stage the rows of each class or label, or mean, std, min and max of each regression target.
    Raises DataError for a name that is unknown or not prepared.
    """
    folder, spec = locate(name), load_spec(name)
    return {
        **_summary(name, locked_digests()),
        "spec": spec.to_dict(),
        "balance": {stage: _balance(folder / f"{stage}.parquet", spec) for stage in STAGES},
    }


def print_listing(console: Console) -> None:
    """A table of all datasets."""
    from rich.table import Table

    summaries = listing()
    table = Table("name", "state", "task", "kind", "shape", "train", "val", "test", "digest")
    for summary in summaries:
        if summary["state"] == "missing":
            table.add_row(summary["name"], "[yellow]missing[/]", *[""] * 7)
            continue
        table.add_row(
            summary["name"],
            _coloured(summary["state"]),
            summary["task"],
            summary["kind"],
            _shape(summary["shape"]),
            *(str(summary["num_rows"][stage]) for stage in STAGES),
            summary["digest"][:12],
        )
    console.print(table)
    missing = [summary["name"] for summary in summaries if summary["state"] == "missing"]
    if missing:
        console.print(f"make a missing one with: {remedy(missing[0])}", highlight=False)


def print_description(name: str, console: Console) -> None:
    """A page about one dataset: what it is, and how the classes or targets lie in each split."""
    from rich.table import Table

    about = describe(name)
    spec = about["spec"]
    facts = Table.grid(padding=(0, 2))
    state = _coloured(about["state"])
    if about["state"] == "modified":
        state += f" (dvc.lock says {about['locked_digest']}; restore it with: {remedy(name)})"
    inputs = ", ".join(spec["inputs"]) if len(spec["inputs"]) <= 40 else f"{len(spec['inputs'])} columns"
    for label, value in (
        ("name", name),
        ("state", state),
        ("digest", about["digest"]),
        ("task", about["task"]),
        ("inputs", f"{about['kind']} {_shape(about['shape'])}: {inputs}"),
        ("targets", ", ".join(spec["targets"])),
        ("source", about["source"]),
    ):
        facts.add_row(f"[bold]{label}[/]", value)
    console.print(facts)
    console.print(_balance_table(about))


def _balance_table(about: dict[str, Any]) -> Table:
    from rich.table import Table

    balance, num_rows = about["balance"], about["num_rows"]
    regression = about["task"] == "regression"
    table = Table("target" if regression else "class", *(f"{stage} ({num_rows[stage]} rows)" for stage in STAGES))
    for label in balance["train"]:
        cells = [balance[stage][label] for stage in STAGES]
        table.add_row(
            label,
            *(
                f"{cell['mean']:.4g} ± {cell['std']:.4g}, {cell['min']:.4g} to {cell['max']:.4g}"
                if regression
                else f"{cell} ({cell / max(num_rows[stage], 1):.1%})"
                for stage, cell in zip(STAGES, cells, strict=True)
            ),
        )
    return table


def _coloured(state: str) -> str:
    return f"[{'green' if state == 'prepared' else 'red' if state == 'modified' else 'yellow'}]{state}[/]"


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(str(size) for size in shape)


def _lacking(folder: Path) -> list[str]:
    """Files that a prepared dataset has and this folder has not."""
    return [file for file in ("spec.json", *(f"{stage}.parquet" for stage in STAGES)) if not (folder / file).is_file()]


def _summary(name: str, locked: dict[str, str]) -> dict[str, Any]:
    folder = paths.data() / name
    if _lacking(folder):
        return {"name": name, "state": "missing", "remedy": remedy(name)}
    spec, digest = load_spec(name), folder_digest(folder)
    state = "untracked" if name not in locked else "prepared" if locked[name] == digest else "modified"
    return {
        "name": name,
        "state": state,
        "kind": spec.kind,
        "task": spec.task,
        "shape": spec.shape,
        "num_rows": dict(spec.num_rows),
        "digest": digest,
        "locked_digest": locked.get(name),
        "source": spec.source,
    }


def _balance(path: Path, spec: DataSpec) -> dict[str, Any]:
    import numpy as np

    from neurofleet.data import tables

    values = tables.number_columns(tables.read_columns(path, spec.targets), spec.targets, str(path))
    if spec.task == "regression":
        return {
            name: {
                "mean": float(column.mean()),
                "std": float(column.std()),
                "min": float(column.min()),
                "max": float(column.max()),
            }
            for name, column in zip(spec.targets, values.T, strict=True)
        }
    if spec.task == "multilabel":
        return {name: int(column.sum()) for name, column in zip(spec.targets, values.T, strict=True)}
    tables.check_labels(values[:, 0], len(spec.classes), spec.targets[0], str(path), ", ".join(spec.classes[:10]))
    counts = np.bincount(values[:, 0].astype(np.int64), minlength=len(spec.classes))
    return {name: int(count) for name, count in zip(spec.classes, counts, strict=True)}
