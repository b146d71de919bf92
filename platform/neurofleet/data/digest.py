"""A dataset's digest: the `<hash>` of `md5: <hash>.dir` in `dvc.lock`, from the files themselves.

DVC digests a folder as the MD5 of a JSON list with one `{"md5": ..., "relpath": ...}` for each file, sorted by path
(`dvc_data.hashfile.tree.Tree`).  Having it here lets a machine without DVC say which data a run learned from, and
tells data that was changed after `dvc repro` from data that was not.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from neurofleet import paths
from neurofleet.errors import DataError


def file_digest(path: Path) -> str:
    """The MD5 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def folder_digest(folder: Path) -> str:
    """DVC's digest of a folder, without the `.dir` that DVC appends."""
    entries = sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*") if path.is_file())
    listing = [{"md5": file_digest(path), "relpath": name} for name, path in entries]
    return hashlib.md5(json.dumps(listing, sort_keys=True).encode(), usedforsecurity=False).hexdigest()


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


def need_locked(name: str, folder: Path, digest: str) -> None:
    """Raise DataError, which names the files, where a dataset of the project is not the one that `dvc.lock` says."""
    locked = locked_digests().get(name)
    if locked in (None, digest) or folder.resolve().parent != (paths.project() / "data").resolve():
        return
    changed = ", ".join(_changed(folder, locked)) or "which files cannot be told without DVC's cache"
    raise DataError(
        f"dataset {name!r} needs to be the one that dvc.lock says, {locked}, got {digest} ({changed}); make it again "
        f"with: neurofleet data prepare {name}, or, if the change is meant: dvc commit --force"
    )


def _changed(folder: Path, locked: str) -> list[str]:
    """Files that are not as DVC's cache lists them."""
    listing = paths.project() / ".dvc" / "cache" / "files" / "md5" / locked[:2] / f"{locked[2:]}.dir"
    if not listing.is_file():
        return []
    wanted = {entry["relpath"]: entry["md5"] for entry in json.loads(listing.read_text())}
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    files = sorted(wanted.keys() | there)
    return [str(folder / file) for file in files if file not in there or file_digest(folder / file) != wanted.get(file)]
