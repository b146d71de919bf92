"""What a fine-tuned run was worth is found out once, however often the run goes on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from neurofleet.launch import comparison
from neurofleet.transfer.evidence import Gain

GAIN = Gain(metric="accuracy", ours=0.9, control=0.8, difference=0.1, low=-0.1, high=0.2, num_rows=50, num_runs=1)


def test_a_finished_run_that_goes_on_tells_what_it_found_and_finds_nothing_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forgotten = dataclasses.replace(GAIN, against="before fine-tuning", on="mnist5k")
    found = {"gain": dataclasses.asdict(GAIN), "forgetting": dataclasses.asdict(forgotten)}
    (tmp_path / comparison.EVIDENCE).write_text(json.dumps(found))
    nothing: Any = None  # neither a plan to train by nor a tracker to tell
    comparison.compare(nothing, nothing, tmp_path, control="scratch", control_lr=None, label_counts=[])
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{'gain':24} {GAIN} (within chance)", f"{'forgetting':24} {forgotten}"]


@pytest.mark.parametrize(("method", "hint"), [("frozen", True), ("full", False)])
def test_a_head_alone_that_was_still_learning_is_hinted_at(
    method: str, hint: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"epoch": float(epoch), "train/loss_epoch": 10.0 - epoch} for epoch in range(1, 6)]
    (tmp_path / "history.json").write_text(json.dumps(rows))
    planned: Any = SimpleNamespace(experiment={"family": {"method": method}}, config=SimpleNamespace(max_epochs=5))
    comparison.advise(planned, tmp_path)
    assert ("raise trainer.max_epochs" in capsys.readouterr().out) is hint
