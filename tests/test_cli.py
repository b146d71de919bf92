"""The command line: what it lists, how it answers mistakes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from neurofleet import cli


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["neurofleet", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    code = ended.value.code
    return 0 if code is None else int(code)


def test_help_lists_every_verb_in_a_group(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "--help") == 0
    shown = capsys.readouterr().out
    grouped = [name for names in cli.GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(cli.neurofleet.commands)
    for title, names in cli.GROUPS.items():
        section = shown.split(f"{title}:\n")[1].split("\n\n")[0]
        assert all(f"  {name} " in section for name in names)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["trian"], "did you mean train?"),
        (["submit", "trian"], "did you mean train?"),
        (["submit", "train", "family=cn"], "did you mean cnn?"),
        (["submit", "train", "data=mnist"], "did you mean mnist5k"),
        (["submit", "train", "family.hiden=[3]"], "did you mean family.hidden"),
        (["submit", "train", "hydra.run.dir=/x"], "hydra's own settings"),
        (["submit", "train", "name=${oc.env:HOME}"], "may not read the environment"),
        (["submit", "train", "famly=cnn"], "did you mean family"),
        (["submit", "train", "launcher.num_workers=2"], "launcher=ray has it"),
        (["submit", "train", "resume=nowhere"], "resume needs the id of a run"),
        (["data", "show", "mnist"], "mnist5k"),
        (["train", "family=cn"], "did you mean cnn?"),
        (["train", "trainer.max_epoch=3"], "did you mean trainer.max_epochs"),
    ],
    ids=lambda part: part if isinstance(part, str) else " ".join(part),
)
def test_a_mistake_ends_with_2_and_the_nearest_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert call(monkeypatch, *arguments) == 2
    told = capsys.readouterr().err
    assert says in told
    assert "Traceback" not in told


def test_data_list_names_every_dataset(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert call(monkeypatch, "data", "list") == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("digits", "mnist5k", "breast_cancer", "diabetes", "wine", "email"))


@pytest.mark.slow
def test_hydra_flags_reach_the_pipeline() -> None:
    command = [sys.executable, "-m", "neurofleet.cli", "train", "--cfg", "job", "family=cnn", "data=mnist5k"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "neurofleet.families.cnn.CNN" in done.stdout
    assert "name: mnist5k" in done.stdout
