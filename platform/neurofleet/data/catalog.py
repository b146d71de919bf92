"""What datasets there are: the names in `configs/data`, the folders that are prepared, what each holds.

Answers in well under a second: neither torch nor Lightning is imported here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from neurofleet import paths
from neurofleet.data.digest import folder_digest
from neurofleet.data.splits import STAGES
from neurofleet.errors import DataError, nearest
from neurofleet.spec import DataSpec


def known() -> list[str]:
    """Names of the datasets that have a config, and of prepared folders that have none."""
    configured = {path.stem for path in (paths.shipped("configs") / "data").glob("*.yaml")}
    prepared = {path.parent.name for path in paths.data().glob("*/spec.json")}
    return sorted(configured | prepared)


def remedy(name: str) -> str:
    """The command that makes a dataset's files."""
    return f"neurofleet data prepare {name}"


def locate(name: str) -> Path:
    """The folder of a prepared dataset; DataError if the name is unknown or files of it are missing."""
    if name not in known():
        raise DataError(f"data.name needs a known dataset, got {name!r}; {nearest(name, known())}")
    folder = paths.data() / name
    lacking = [file for file in ("spec.json", *(f"{stage}.parquet" for stage in STAGES))
               if not (folder / file).is_file()]
    if lacking:
        raise DataError(f"dataset {name!r} is not prepared: {folder} lacks {', '.join(lacking)}; "
                        f"make it with: {remedy(name)}")
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
    return {Path(out["path"]).name: out["md5"].removesuffix(".dir")
            for out in outs if Path(out["path"]).parent == Path("data")}


def listing() -> list[dict[str, Any]]:
    """One summary of each known dataset: name, state, and for a prepared one kind, task, shape, num_rows, digest.

    State is `missing`, `prepared` (its digest is that of `dvc.lock`), `modified` (it is another one) or `untracked`
    (`dvc.lock` does not know the dataset).
    """
    locked = locked_digests()
    return [_summary(name, locked) for name in known()]


def describe(name: str) -> dict[str, Any]:
    """Everything about one dataset: its summary, spec, and `balance`.

    `balance` has for each stage the rows of each class (classification) or mean, std, min and max of each target.
    """
    if name in known() and not (paths.data() / name).is_dir():
        return _summary(name, locked_digests())
    spec = load_spec(name)
    return {**_summary(name, locked_digests()), "spec": spec.to_dict(),
            "balance": {stage: _balance(paths.data() / name / f"{stage}.parquet", spec) for stage in STAGES}}


def _summary(name: str, locked: dict[str, str]) -> dict[str, Any]:
    folder = paths.data() / name
    if not folder.is_dir():
        return {"name": name, "state": "missing", "remedy": remedy(name)}
    spec, digest = load_spec(name), folder_digest(folder)
    state = "untracked" if name not in locked else "prepared" if locked[name] == digest else "modified"
    return {"name": name, "state": state, "kind": spec.kind, "task": spec.task, "shape": spec.shape,
            "num_rows": dict(spec.num_rows), "digest": digest, "locked_digest": locked.get(name), "source": spec.source}


def _balance(path: Path, spec: DataSpec) -> dict[str, Any]:
    import numpy as np

    from neurofleet.data.tables import read_columns

    table = read_columns(path, spec.targets)
    columns = {name: table.column(name).to_numpy() for name in spec.targets}
    if spec.task == "regression":
        return {name: {"mean": float(values.mean()), "std": float(values.std()), "min": float(values.min()),
                       "max": float(values.max())} for name, values in columns.items()}
    if spec.task == "multilabel":
        return {name: int(values.sum()) for name, values in columns.items()}
    counts = np.bincount(columns[spec.targets[0]], minlength=len(spec.classes))
    return {name: int(count) for name, count in zip(spec.classes, counts, strict=True)}
