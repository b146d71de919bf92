"""What datasets there are: the names in `configs/data`, the folders that are prepared, what each holds.

Answers in well under a second: neither torch nor Lightning is imported here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurofleet import paths
from neurofleet.data.digest import folder_digest, locked_digests
from neurofleet.data.splits import STAGES
from neurofleet.errors import DataError, nearest
from neurofleet.spec import DataSpec

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDE = 92  # columns of text, with room for digests in a listing
# What a dataset needs beyond Python's packages; `dvc repro` leaves these out.
NEEDS = {
    "speech": "the clips of five Debian packages: apt-get install "
    + " ".join(f"asterisk-core-sounds-{language}-wav" for language in ("en", "es", "fr", "it", "ru"))
}


def known() -> list[str]:
    """Names of the datasets that have a config, and of prepared folders that have none."""
    configured = {path.stem for path in (paths.shipped("configs") / "data").glob("*.yaml")}
    prepared = {path.parent.name for path in paths.data().glob("[!.]*/spec.json")}
    return sorted(configured | prepared)


def environments() -> dict[str, Path]:
    """The configs of environments by name, as in `env/cartpole`: agents make their own data there."""
    folder = paths.shipped("configs") / "data" / "env"
    return {f"env/{path.stem}": path for path in sorted(folder.glob("*.yaml"))}


def remedy(name: str) -> str:
    """The command that makes a dataset's files."""
    return f"neurofleet data prepare {name}"


def locate(name: str) -> Path:
    """The folder of a prepared dataset; DataError if the name is unknown or files of it are missing."""
    if name not in known():
        names = [*known(), *environments()]
        raise DataError(f"data.name needs a known dataset, got {name!r}; {nearest(name, names)}")
    folder = paths.data() / name
    lacking = _lacking(folder)
    if lacking:
        raise DataError(
            f"dataset {name!r} is not prepared: {folder} lacks {', '.join(lacking)}; make it with: {remedy(name)}"
        )
    return folder


def need(data: Mapping[str, Any]) -> None:
    """Raise DataError if an experiment's `data` are rows that are not prepared; other kinds make their own."""
    if str(data["_target_"]).endswith(".ParquetDataModule"):
        locate(str(data["name"]))


def load_spec(name: str) -> DataSpec:
    """The spec of a prepared dataset."""
    path = locate(name) / "spec.json"
    try:
        return DataSpec.load(path)
    except json.JSONDecodeError as error:
        raise DataError(f"{path} needs to be JSON: {error}; make it again with: {remedy(name)}") from error


def listing() -> list[dict[str, Any]]:
    """One summary of each known dataset: name, state, and for a prepared one kind, task, shape, num_rows, digest.

    State is `missing`, `prepared` (its digest is that of `dvc.lock`), `modified` (it is another one) or `untracked`
    (`dvc.lock` does not know the dataset).
    """
    locked = locked_digests()
    return [_summary(name, locked) for name in known()]


def describe(name: str) -> dict[str, Any]:
    """Everything about one prepared dataset: its summary, its spec, and for each stage `balance` and `lengths`, as
    `neurofleet.data.measures` says.

    A vocabulary is thousands of words: in its place the spec has its size.
    Raises DataError for a name that is unknown or not prepared.
    """
    from neurofleet.data import measures

    folder, spec = locate(name), load_spec(name)
    files = {stage: folder / f"{stage}.parquet" for stage in STAGES}
    return {
        **_summary(name, locked_digests()),
        "spec": spec.to_dict() | {"vocabulary": len(spec.vocabulary)},
        "balance": {stage: measures.balance(path, spec) for stage, path in files.items()},
        "lengths": {stage: measures.lengths(path, spec) for stage, path in files.items()},
    }


def print_listing(console: Console) -> None:
    """A table of all datasets; 80 columns of text have no room for the digests, which stand on each one's page."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    summaries = listing()
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=0)
    for name in ("name", "state", "task", "inputs", *STAGES, *(["digest"] if console.width >= WIDE else [])):
        table.add_column(name, overflow="fold", justify="right" if name in STAGES else "left")
    for summary in summaries:
        if summary["state"] == "missing":
            table.add_row(summary["name"], "[yellow]missing[/]")
            continue
        cells = [
            summary["name"],
            _coloured(summary["state"]),
            summary["task"],
            f"{summary['kind']} {_shape(summary['shape'])}",
            *(str(summary["num_rows"][stage]) for stage in STAGES),
            summary["digest"][:12],
        ]
        table.add_row(*cells[: len(table.columns)])
    console.print(table)
    console.print(f"environments, in which agents make their own data: {', '.join(environments())}", highlight=False)
    missing = [summary["name"] for summary in summaries if summary["state"] == "missing"]
    if missing:
        console.print(f"make a missing one with: {remedy(missing[0])}", highlight=False)
        for name in missing:
            if name in NEEDS:
                console.print(f"{name} needs {NEEDS[name]}", highlight=False)


def print_description(name: str, console: Console) -> None:
    """A page about one dataset: what it is, and how the classes or targets lie in each split.  Or an environment."""
    from rich.table import Table

    if name in environments():
        console.print(_environment_table(environments()[name]))
        return
    about = describe(name)
    spec = about["spec"]
    facts = Table.grid(padding=(0, 2))
    state = _coloured(about["state"])
    if about["state"] == "modified":
        state += f" (dvc.lock says {about['locked_digest']}; restore it with: {remedy(name)})"
    for label, value in (
        ("name", name),
        ("state", state),
        ("digest", about["digest"]),
        ("task", about["task"]),
        ("inputs", f"{about['kind']} {_shape(about['shape'])}: {_inputs(spec)}"),
        ("targets", ", ".join(spec["targets"])),
        ("split", f"{spec['split']}" + (" (has to be kept)" if spec["split"] == "official" else "")),
        ("source", about["source"]),
    ):
        facts.add_row(f"[bold]{label}[/]", value)
    console.print(facts)
    console.print(_balance_table(about))


def _balance_table(about: dict[str, Any]) -> Table:
    from rich.table import Table

    balance, num_rows = about["balance"], about["num_rows"]
    regression, language = (about["task"] == task for task in ("regression", "language"))
    first = "target" if regression else "" if language else "class"
    table = Table(first, *(f"{stage} ({num_rows[stage]} rows)" for stage in STAGES))
    if about["task"] == "verification":
        table.columns[0].header = ""
        table.add_row("identities", *(_identities(list(balance[stage].values())) for stage in STAGES))
        return table
    for label in balance["train"]:
        cells = [balance[stage][label] for stage in STAGES]
        table.add_row(
            label,
            *(
                f"{cell['mean']:.4g} ± {cell['std']:.4g}, {cell['min']:.4g} to {cell['max']:.4g}"
                if regression
                else f"{cell}"
                if language
                else f"{cell} ({cell / max(num_rows[stage], 1):.1%})"
                for stage, cell in zip(STAGES, cells, strict=True)
            ),
        )
    if about["kind"] in ("sequence", "text"):
        table.add_section()
        table.add_row("tokens" if about["kind"] == "text" else "steps", *(_length(about, stage) for stage in STAGES))
    return table


def _identities(counts: list[int]) -> str:
    shown = [count for count in counts if count]
    return f"{len(shown)} of {min(shown)} to {max(shown)} rows"


def _environment_table(path: Path) -> Table:
    import yaml
    from rich.table import Table

    from neurofleet.data.environments import EnvironmentDataModule

    text = path.read_text()
    module = EnvironmentDataModule(**{key: value for key, value in yaml.safe_load(text).items() if key != "_target_"})
    spec, table = module.spec, Table.grid(padding=(0, 2))
    acts = ", ".join(spec.classes) or ", ".join(
        f"{name} ({middle - half:g} to {middle + half:g})"
        for name, middle, half in zip(spec.targets, spec.target_mean, spec.target_std, strict=True)
    )
    for label, value in (
        ("name", f"env/{spec.name}"),
        ("about", text.splitlines()[0].removeprefix("# ")),
        ("digest", module.digest),
        ("task", spec.task),
        ("observation", f"{spec.kind} {_shape(spec.shape)}: {_inputs(spec.to_dict())}"),
        ("actions", acts),
        ("epoch", f"{module.steps_per_epoch} steps, over {module.num_environments} environments side by side"),
        ("episodes", f"{module.num_episodes} of a validation, and of the test"),
        ("source", spec.source),
    ):
        table.add_row(f"[bold]{label}[/]", value)
    return table


def _inputs(spec: dict[str, Any]) -> str:
    names = spec["inputs"]
    if spec["kind"] == "categorical":
        return ", ".join(f"{name} ({size})" for name, size in zip(names, spec["cardinalities"], strict=True))
    if spec["kind"] == "text":
        return f"{names[0]}, {spec['vocabulary']} different {spec['tokenizer']}"
    return ", ".join(names) if len(names) <= 40 else f"{len(names)} columns"


def _length(about: dict[str, Any], stage: str) -> str:
    length = about["lengths"][stage]
    text = f"{length['min']} to {length['max']}, median {length['median']:g}"
    if about["kind"] == "text":
        text += f"; {length['longer']:.1%} longer than read, {length['unknown']:.2%} unknown"
    return text


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
