"""A dataset's digest: the `<hash>` of `md5: <hash>.dir` in `dvc.lock`, from the files themselves.

DVC digests a folder as the MD5 of a JSON list with one `{"md5": ..., "relpath": ...}` for each file, sorted by path
(`dvc_data.hashfile.tree.Tree`).  Having it here lets a machine without DVC say which data a run learned from, and
tells data that was changed after `dvc repro` from data that was not.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path


def file_digest(path: Path) -> str:
    """The MD5 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def folder_digest(folder: Path) -> str:
    """DVC's digest of a folder, without the `.dir` that DVC appends."""
    entries = sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*") if path.is_file())
    listing = [{"md5": file_digest(path), "relpath": name} for name, path in entries]
    return hashlib.md5(json.dumps(listing, sort_keys=True).encode(), usedforsecurity=False).hexdigest()
