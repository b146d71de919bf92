"""Files stay short, finished and free of one machine's names, and the README knows every file at the top."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

MOST_LINES = 300
HOSTS = re.compile(r"pypi\.org|pythonhosted|index-url|find-links|jfrog|artifactory|/simple\b", re.IGNORECASE)
UNFINISHED = re.compile(r"\b(?:TO" r"DO|FIX" r"ME|X" r"XX)\b")


@pytest.fixture(scope="module")
def texts(project_root: Path) -> dict[str, str]:
    """Every file that git tracks or would track, by its path from the top; binary files are left out."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=project_root, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = {}
    for name in listing.stdout.splitlines():
        path = project_root / name
        if path.is_file():  # a deletion that is not committed yet is still listed
            content = path.read_bytes()
            if b"\0" not in content:
                found[name] = content.decode()
    assert len(found) > 10
    return found


def test_no_python_file_is_long(texts: dict[str, str]) -> None:
    code = {name for name in texts if name.startswith(("platform/", "pipelines/")) and name.endswith(".py")}
    lengths = {name: texts[name].count("\n") for name in code}
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}


def test_nothing_is_left_to_be_done(texts: dict[str, str]) -> None:
    assert [name for name, text in texts.items() if UNFINISHED.search(text)] == []


def test_no_file_names_a_package_host(texts: dict[str, str]) -> None:
    """The lock says which versions; where they come from is the business of the machine that installs them."""
    here = "tests/architecture/test_text.py"
    assert [name for name, text in texts.items() if HOSTS.search(text) and name != here] == []


def test_the_readme_names_everything_at_the_top(texts: dict[str, str]) -> None:
    tops = {name.split("/")[0] + ("/" if "/" in name else "") for name in texts}
    _, _, table = texts["README.md"].partition("## What lies where")
    named = set(re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE))
    assert named == tops


def test_the_lock_holds_plain_pins_with_torch_first(texts: dict[str, str]) -> None:
    lines = texts["requirements.lock"].splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert pins[0] == lines[0] == "torch==2.13.0"
    assert [pin for pin in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", pin)] == []
    assert [pin for pin in pins if re.match(r"nvidia|cuda|triton|torchvision|torchaudio", pin)] == []
