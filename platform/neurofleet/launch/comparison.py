"""Comparison: what the start of a fine-tuned run was worth: its control trains too, and both meet on the test rows.

The control is a run of its own below the fine-tuned one in MLflow.  What is found lies in the fine-tuned run's folder as
evidence.json, among its metrics as `gain/...` and `forgetting/...`, and in its figures.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from neurofleet import checkpoint, launch
from neurofleet.launch.record import recorded
from neurofleet.transfer import evidence, forgetting, order

if TYPE_CHECKING:
    from neurofleet.experiment import Experiment
    from neurofleet.run import Plan
    from neurofleet.tracking import Tracker

CONTROL = "control.json"  # the id of the run that a fine-tuned one is held against


def introduce(planned: Plan, reason: str | None) -> None:
    """Say what the network starts with, and how it will learn."""
    from rich.console import Console

    from neurofleet.transfer.finetuned import Finetuned
    from neurofleet.transfer.table import starts

    family = planned.family
    assert isinstance(family, Finetuned)
    kept, dropped, new = family.origins()
    learning = {name for name, one in family.named_parameters() if one.requires_grad}
    shapes = [{name: tuple(tensor.shape) for name, tensor in tensors.items()} for tensors in (kept, new)]
    Console().print(starts(shapes[0], dropped, shapes[1], frozen=set(kept) - learning))
    print(f"{'method':24} {family.method}{f': {reason}' if reason else ''}")
    if family.bridge.steps:
        print(f"{'inputs':24} {', '.join(family.bridge.steps)}")


def compare(planned: Plan, kind: str | bool, tracker: Tracker, folder: Path) -> None:
    """Hold a finished run against its control, and against what its base knew; log and print both, and draw them."""
    experiment, spec = planned.experiment, planned.data.spec
    if kind not in ("off", False):
        print("training the control from a random start ...", flush=True)
        gain, control = against(order.control(experiment, str(kind)), planned, tracker, folder)
        log("gain", gain, tracker, folder)
        print(f"{'gain':24} {gain}{'' if gain.is_outside else ' (within chance)'}", flush=True)
    tensors, _ = checkpoint.decode((folder / "weights.safetensors").read_bytes())
    known = forgetting.predictions(experiment, spec, tensors)
    if known is not None and experiment["family"]["method"] != "frozen":
        old, before, after = known
        forgotten = evidence.forgetting(before, after, old, seed=experiment["seed"])
        log("forgetting", forgotten, tracker, folder)
        print(f"{'forgetting':24} {forgotten}", flush=True)


def against(control: Experiment, planned: Plan, tracker: Tracker, folder: Path) -> tuple[evidence.Gain, Path]:
    """Train the control of a finished run, or go on with it: what the run gained over it, and the control's folder."""
    from neurofleet.run import plan

    mark = folder / CONTROL
    resume = json.loads(mark.read_text())["run_id"] if mark.is_file() else None
    data = planned.data
    other = plan(control, data)
    tags = {"mlflow.parentRunId": tracker.run_id, "control_of": tracker.run_id}
    with recorded(other, resume=resume, pipeline="finetune", tags=tags) as (own_tracker, own_folder):
        checkpoint.write(mark, json.dumps({"run_id": own_tracker.run_id}).encode())
        launch.launch(control, tracker=own_tracker, folder=own_folder, resume=resume is not None)
    ours, theirs = evidence.read_predictions(folder), evidence.read_predictions(own_folder)
    return evidence.gain(ours, theirs, data.spec, seed=control["seed"]), own_folder


def log(name: str, gain: evidence.Gain, tracker: Tracker, folder: Path) -> None:
    """One finding among the run's metrics, and in its evidence.json."""
    values = {name: gain.difference, f"{name}_low": gain.low, f"{name}_high": gain.high}
    tracker.log_metrics(0, 0.0, {f"evidence/{key}": value for key, value in values.items()})
    path = folder / "evidence.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    checkpoint.write(path, json.dumps(known | {name: dataclasses.asdict(gain)}, indent=1).encode())
    tracker.log_artifact(path)
