from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import yaml
from rich.console import Console

from neurofleet.data import catalog
from neurofleet.data.digest import folder_digest
from neurofleet.data.texts import tokenise
from neurofleet.errors import DataError


@pytest.fixture
def project(datasets: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose dvc.lock knows `tags` as it is and `yes_no` as it was."""
    folder = datasets.parent
    (folder / "dvc.yaml").touch()
    digests = {"tags": folder_digest(datasets / "tags"), "yes_no": "0" * 32}
    stages = {
        f"prepare@{name}": {"cmd": "x", "outs": [{"path": f"data/{name}", "hash": "md5", "md5": f"{digest}.dir"}]}
        for name, digest in digests.items()
    }
    stages["other"] = {"cmd": "x"}
    (folder / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))
    monkeypatch.chdir(folder)
    return folder


def test_the_listing_names_shipped_and_own_datasets_with_their_state(project: Path) -> None:
    (project / "data" / ".tags-unfinished").mkdir()
    (project / "data" / ".tags-unfinished" / "spec.json").touch()
    states = {summary["name"]: summary["state"] for summary in catalog.listing()}
    assert ".tags-unfinished" not in states
    shipped = {"breast_cancer", "diabetes", "digits", "email", "mnist5k", "wine"}
    assert {name for name, state in states.items() if state == "missing"} >= shipped
    own = {name: state for name, state in states.items() if state != "missing"}
    assert own == dict.fromkeys(own, "untracked") | {"tags": "prepared", "yes_no": "modified"}
    assert {"amounts", "notes", "pictures", "tags", "yes_no"} <= set(own)


def test_a_changed_file_makes_a_dataset_modified(project: Path) -> None:
    assert catalog.describe("tags")["state"] == "prepared"
    spec = project / "data" / "tags" / "spec.json"
    spec.write_text(spec.read_text() + "\n")
    about = catalog.describe("tags")
    assert about["state"] == "modified"
    assert about["digest"] != about["locked_digest"]


def test_describe_counts_classes_labels_and_targets(project: Path) -> None:
    about = catalog.describe("yes_no")
    assert (about["kind"], about["task"], about["shape"]) == ("tabular", "binary", (3,))
    assert about["num_rows"] == {"train": 70, "val": 10, "test": 20}
    assert about["balance"]["test"] == {"no": 15, "yes": 5}
    assert sum(stage["yes"] for stage in about["balance"].values()) == 25
    tags = catalog.describe("tags")["balance"]
    assert tags["test"] == {"odd": 10, "high": 10}
    assert set(catalog.describe("pictures")["balance"]["val"]) == {"a", "b", "c", "d"}
    scaled = catalog.describe("amounts")["balance"]["train"]["scaled"]
    assert scaled["min"] < scaled["mean"] - scaled["std"] < scaled["mean"] < scaled["max"]


def test_describe_refuses_what_is_unknown_or_missing(project: Path) -> None:
    with pytest.raises(DataError, match="got 'tag'; did you mean tags"):
        catalog.describe("tag")
    with pytest.raises(DataError, match=r"make it with: neurofleet data prepare digits$"):
        catalog.describe("digits")


def test_what_is_needed_depends_on_the_kind_of_data(project: Path) -> None:
    rows, acting = "neurofleet.data.ParquetDataModule", "neurofleet.data.EnvironmentDataModule"
    catalog.need({"_target_": rows, "name": "tags"})
    catalog.need({"_target_": acting, "name": "mine"})
    for name in ("digits", "cartpole"):
        with pytest.raises(DataError, match=name):
            catalog.need({"_target_": rows, "name": name})


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=110)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_printed_listing(project: Path, console: Console) -> None:
    catalog.print_listing(console)
    lines = printed(console).splitlines()
    (tags,) = [line.split() for line in lines if line.startswith("tags ")]
    digest = folder_digest(project / "data" / "tags")[:12]
    assert tags == ["tags", "prepared", "multilabel", "tabular", "3", "70", "10", "20", digest]
    text = " ".join(lines)
    assert (
        "make a missing one with: neurofleet data prepare basic_motions speech needs the clips of five Debian" in text
    )
    assert "apt-get install asterisk-core-sounds-en-wav" in text


def test_the_listing_is_whole_in_80_columns(project: Path) -> None:
    shipped = Path(__file__).resolve().parents[2] / "data"
    for folder in shipped.glob("[!.]*"):  # those with the longest names, where they are prepared
        (project / "data" / folder.name).symlink_to(folder)
    console = Console(file=io.StringIO(), width=80)
    catalog.print_listing(console)
    table = printed(console).split("environments, in")[0].splitlines()
    assert max(map(len, table)) <= 80
    begins = [line.split()[0] for line in table[2:]]
    assert begins == catalog.known(), "one line each, and no name cut"
    assert [line.split() for line in table if line.startswith("pictures ")] == [
        ["pictures", "untracked", "multiclass", "image", "3x4x5", "70", "10", "20"]
    ]


def test_the_printed_page_of_a_dataset(project: Path, console: Console) -> None:
    catalog.print_description("yes_no", console)
    catalog.print_description("amounts", console)
    text = " ".join(printed(console).split())
    assert "modified (dvc.lock says 00000000000000000000000000000000; restore it with: neurofleet data prepare" in text
    assert "15 (75.0%)" in text
    assert "inputs tabular 3: wide, narrow, constant" in text
    assert "scaled" in text


def note_texts(path: Path) -> list[str]:
    return pyarrow.parquet.read_table(path).column("note").to_pylist()


def test_pages_of_other_kinds_say_how_long_rows_are(project: Path) -> None:
    console = Console(file=io.StringIO(), width=300)
    for name in ("notes", "tale", "tracks", "places", "faces"):
        catalog.print_description(name, console)
    text = " ".join(printed(console).replace("│", " ").split())
    assert "inputs text 6: note, 5 different words" in text  # and none of them
    lengths = catalog.describe("notes")["lengths"]["train"]
    whole = [len(tokenise(note, "words")) for note in note_texts(project / "data" / "notes" / "train.parquet")]
    assert lengths == {
        "min": min(whole), "median": np.median(whole), "max": 8, "longer": np.mean(np.array(whole) > 6), "unknown": 0
    }  # fmt: skip
    assert f"tokens 1 to 8, median {np.median(whole):g}; {lengths['longer']:.1%} longer than read, 0.00% un" in text
    assert "inputs text 8: text, 26 different characters" in text
    assert "tokens to predict 490 70 140" in text
    assert "steps 1 to 5, median 3" in text
    assert "inputs categorical 2: user (5), item (7)" in text
    assert "split official (has to be kept)" in text
    assert "identities 3 of 10 to 10 rows 1 of 10 to 10 rows 2 of 10 to 10 rows" in text
    assert catalog.describe("notes")["spec"]["vocabulary"] == 5


def test_outside_a_checkout_nothing_is_tracked(datasets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(datasets)
    assert catalog.locked_digests() == {}
    assert catalog.describe("tags")["state"] == "untracked"


def test_the_catalogue_imports_neither_torch_nor_pandas(project: Path) -> None:
    code = (
        "import sys; from neurofleet.data import catalog; catalog.listing(); catalog.describe('tags');"
        "print([name for name in ('torch', 'pytorch_lightning', 'pandas') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "[]"
