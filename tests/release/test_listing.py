"""Registered models on the terminal, and the tree of what was fine-tuned from what."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from neurofleet.errors import ConfigError
from neurofleet.release import listing, registry
from neurofleet.release.registry import Version

# MLflow 3.17 with SQLAlchemy 2.1, and MLflow's own annotations when mlflow.pyfunc is imported
pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]


def paper(width: int = 75) -> Console:
    return Console(file=io.StringIO(), width=width)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert all(len(line) <= console.width for line in lines)
    return "\n".join(lines)


def version(uri: str, base: str = "", run_id: str = "", base_run: str = "", **fields: Any) -> Version:
    name, number = uri.removeprefix("models:/").split("/")
    tags = {"data": name.split("-")[0]} | ({"base.uri": base} if base else {})
    tags |= {"base.run_id": base_run} if base_run else {}
    aliases = fields.get("aliases", ())
    return Version(name=name, number=int(number), run_id=run_id, aliases=aliases, tags=tags, created=0)


def drawn(name: str, known: list[Version]) -> str:
    console = paper()
    for tree in listing.family_tree(name, known):
        console.print(tree)
    return printed(console)


FAMILY = [
    version("models:/digits-cnn/1", base="models:/mnist-cnn/2", aliases=("champion",)),
    version("models:/digits-cnn/2", base="pretrained/efficientnet_lite0"),
    version("models:/faces-cnn/1", base="models:/digits-cnn/1"),
    version("models:/mnist-cnn/1"),
    version("models:/mnist-cnn/2", run_id="a" * 32),
    version("models:/signs-cnn/1", base="runs:/" + "a" * 32, base_run="a" * 32),
    version("models:/teas-mlp/1"),
]


def test_a_tree_goes_to_the_roots_and_down_to_what_came_of_it() -> None:
    assert drawn("digits-cnn", FAMILY) == "\n".join(
        [
            "mnist-cnn/2  mnist",
            "└── digits-cnn/1 @champion  digits",
            "    └── faces-cnn/1  faces",
            "pretrained/efficientnet_lite0",
            "└── digits-cnn/2  digits",
        ]
    )


def test_a_run_that_is_registered_stands_in_the_tree_as_its_version() -> None:
    assert drawn("mnist-cnn", FAMILY) == "\n".join(
        [
            "mnist-cnn/1  mnist",
            "mnist-cnn/2  mnist",
            "├── digits-cnn/1 @champion  digits",
            "│   └── faces-cnn/1  faces",
            "└── signs-cnn/1  signs",
        ]
    )


def test_a_base_that_is_gone_is_said_to_be() -> None:
    assert drawn("x", [version("models:/x/1", base="models:/gone/4")]).splitlines()[0] == (
        "models:/gone/4 (no longer registered)"
    )


def test_a_circle_ends_and_shows_everybody() -> None:
    circle = [
        version("models:/a/1", base="models:/c/1"),
        version("models:/b/1", base="models:/a/1"),
        version("models:/c/1", base="models:/b/1"),
        version("models:/own/1", base="models:/own/1"),
    ]
    for name in "abc":
        shown = drawn(name, circle)
        assert sorted(re.split(r"── |  ", line)[-2] for line in shown.splitlines()) == ["a/1", "b/1", "c/1"]
    assert drawn("own", circle) == "own/1  own"


def test_what_is_registered_is_listed_and_shown(registered: Any) -> None:
    with registry.opened() as client:
        client.create_registered_model("wine-finetuned")
        client.create_model_version(
            "wine-finetuned", "/nowhere", tags={"family": "finetuned", "data": "wine", "base.uri": "models:/wine-mlp/1"}
        )
        client.create_registered_model("[red]odd")
        client.create_model_version("[red]odd", "/nowhere", run_id="0" * 32)
    console = paper()
    listing.set_alias("wine-mlp", "latest", "champion", console)
    listing.print_models(console)
    listing.print_model("wine-mlp", console)
    listing.print_model("[red]odd", console)
    shown = printed(console).splitlines()
    assert shown[0] == "models:/wine-mlp@champion is version 1"
    rows = [" ".join(line.split()) for line in shown]
    assert "name latest aliases family data base" in rows
    assert "wine-mlp 1 @champion 1 mlp wine -" in rows
    assert "wine-finetuned 1 - finetuned wine models:/wine-mlp/1" in rows
    assert "[red]odd 1 - - - -" in rows
    assert any(row.startswith("1 @champion 20") and " mlp wine accuracy 0." in row for row in rows)
    assert shown[shown.index("wine-mlp/1 @champion  wine") + 1] == "└── wine-finetuned/1  wine"
    assert any(row.startswith("1 - 20") and row.endswith("- - run deleted") for row in rows)


def test_runs_are_named_where_there_is_room(registered: Any) -> None:
    console = paper(120)
    listing.print_model("wine-mlp", console)
    assert registered.run_id in printed(console)


def test_an_alias_moves(registered: Any) -> None:
    with registry.opened() as client:
        source = client.get_model_version("wine-mlp", "1").source
        number = client.create_model_version("wine-mlp", source, run_id=registered.run_id).version
    console = paper()
    listing.set_alias("wine-mlp", "1", "best", console)
    listing.set_alias("wine-mlp", str(number), "best", console)
    assert printed(console).splitlines()[1] == f"models:/wine-mlp@best is version {number} (it was 1)"
    with registry.opened() as client:
        assert client.get_model_version_by_alias("wine-mlp", "best").version == number


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("wine-mpl", "1", "champion"), "did you mean wine-mlp"),
        (("wine-mlp", "77", "champion"), "no version '77'; it has versions 1"),
        (("wine-mlp", "one", "champion"), "no version 'one'; it has versions 1"),
        (("wine-mlp", "1", "latest"), "an alias needs letters"),
        (("wine-mlp", "1", "v2"), "an alias needs letters"),
        (("wine-mlp", "1", "a b"), "an alias needs letters"),
    ],
)
def test_an_alias_that_cannot_be_set(registered: Any, arguments: tuple[str, str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        listing.set_alias(*arguments, paper())


def test_one_version_is_shown(registered: Any) -> None:
    with registry.opened() as client:
        source = client.get_model_version("wine-mlp", "1").source
        client.create_model_version("wine-mlp", source, run_id=registered.run_id)
    listing.set_alias("wine-mlp", "1", "shown", paper())
    for asked in ("wine-mlp/1", "models:/wine-mlp/1", "models:/wine-mlp@shown"):
        console = paper()
        listing.print_model(asked, console)
        table, _, _ = printed(console).partition("\n\n")
        assert [line.split()[0] for line in table.splitlines()[3:] if line.split()[0].isdigit()] == ["1"]
    with pytest.raises(ConfigError, match="no version '99'; it has versions 1"):
        listing.print_model("wine-mlp/99", paper())


def test_a_model_that_is_not_there(registered: Any) -> None:
    with pytest.raises(ConfigError, match=r"no registered model 'wine'; did you mean wine-mlp\?"):
        listing.print_model("wine", paper())


def test_no_models(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEUROFLEET_HOME", str(tmp_path))
    console = paper(120)
    listing.print_models(console)
    assert printed(console) == listing.NONE_YET
