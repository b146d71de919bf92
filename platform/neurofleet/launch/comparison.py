"""Comparison: what the start of a fine-tuned run was worth: its control trains too, and both meet on the test rows.

The control is a run of its own below the fine-tuned one in MLflow.  What is found lies in the fine-tuned run's folder
as evidence.json, among its metrics as `evidence/...`, and in its figures.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np

from neurofleet import checkpoint, launch
from neurofleet.errors import DataError
from neurofleet.launch.record import recorded
from neurofleet.transfer import evidence, forgetting, methods, order

if TYPE_CHECKING:
    from neurofleet.experiment import Experiment
    from neurofleet.run import Plan
    from neurofleet.spec import DataSpec
    from neurofleet.tracking import Tracker

CONTROL = "control.json"  # the id of the run that a fine-tuned one is held against
WANTED = "comparison.json"
EVIDENCE = "evidence.json"
AGAINST = {"scratch": "from scratch", "same_method": "from a random start by the same method"}


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


def advise(planned: Plan, folder: Path) -> None:
    """Say where more training would have helped a head on features that stay."""
    history = json.loads((folder / "history.json").read_text())
    hint = None
    if planned.experiment["family"]["method"] == "frozen":
        hint = methods.unconverged(history, planned.config.max_epochs)
    if hint is not None:
        print(f"{'hint':24} {hint}", flush=True)


def remembered(wanted: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What a run was to be compared with when it began, by the keys `order.COMPARED` of configs/finetune.yaml."""
    path = folder / WANTED
    if not path.is_file():
        chosen = {name: wanted[name] for name in order.COMPARED}
        checkpoint.write(path, json.dumps(chosen).encode())
    return {name: wanted[name] for name in order.COMPARED} | json.loads(path.read_text())


def compare(
    planned: Plan,
    tracker: Tracker,
    folder: Path,
    *,
    control: str | bool,
    control_lr: float | None,
    label_counts: list[int],
) -> None:
    """Hold a finished run against its control, and against what its base knew; log, print and draw what comes of it.

    control:      one of `order.CONTROLS`
    control_lr:   its learning rate, or None for the run's own
    label_counts: numbers of training rows with which both are trained again, for the curve of label efficiency
    """
    known = _known(folder)
    if "gain" in known:  # of a finished run that goes on: what it found is all there
        _tell("gain", evidence.Gain(**known["gain"]))
    elif control not in ("off", False):
        _gained(planned, tracker, folder, str(control), control_lr, label_counts)
    if "forgetting" in known:
        _tell("forgetting", evidence.Gain(**known["forgetting"]))
    else:
        _forgotten(planned, tracker, folder)


def _gained(
    planned: Plan, tracker: Tracker, folder: Path, kind: str, control_lr: float | None, label_counts: list[int]
) -> None:
    """Train the control, and tell, draw and log what comes of it; evidence.json says when all of that is done."""
    experiment, spec = planned.experiment, planned.data.spec
    other = order.control(experiment, kind, control_lr)
    print("training the control from a random start ...", flush=True)
    there = _train_control(other, planned, tracker, folder)
    drawings: dict[str, Callable[[Path], object]] = {}
    gain = None
    try:
        ours, theirs = evidence.read_predictions(folder), evidence.read_predictions(there)
        gain = evidence.gain(ours, theirs, spec, seed=experiment["seed"])
        gain = dataclasses.replace(gain, against=AGAINST[kind])
    except DataError as error:
        print(f"warning: the gain cannot be told: {error}", file=sys.stderr)
    else:
        _tell("gain", gain)
        drawings |= _of_gain(gain, folder, there, spec)
    if label_counts:
        drawings["label_efficiency"] = _of_labels(experiment, other, sorted(set(label_counts)), spec, folder)
    with mpl.rc_context({"text.parse_math": False}):
        for name, drawing in drawings.items():
            path = folder / "figures" / f"{name}.png"
            path.parent.mkdir(exist_ok=True)
            drawing(path)
            tracker.log_artifact(path, "figures")
    if gain is not None:
        _log("gain", gain, tracker, folder)


def _tell(name: str, found: evidence.Gain) -> None:
    chance = " (within chance)" if name == "gain" and not found.is_outside else ""
    print(f"{name:24} {found}{chance}", flush=True)


def _forgotten(planned: Plan, tracker: Tracker, folder: Path) -> None:
    experiment = planned.experiment
    if experiment["family"]["method"] == "frozen":  # the very encoder that the base has
        return
    tensors, _ = checkpoint.decode((folder / "weights.safetensors").read_bytes())
    known = forgetting.predictions(experiment, planned.data.spec, tensors)
    if known is not None:
        old, before, after = known
        forgotten = evidence.forgetting(before, after, old, seed=experiment["seed"])
        _tell("forgetting", forgotten)
        _log("forgetting", forgotten, tracker, folder)


def _of_gain(gain: evidence.Gain, ours: Path, theirs: Path, spec: DataSpec) -> dict[str, Callable[[Path], object]]:
    from neurofleet.figures.confusion_matrices import confusion_matrices
    from neurofleet.figures.gain import gain as draw_gain

    def forest(path: Path) -> object:
        numbers = (np.array([one]) for one in (gain.ours, gain.control, gain.low, gain.high))
        own, control, low, high = numbers
        names, metric = [spec.name], gain.metric
        return draw_gain(
            path, names=names, ours=own, control=control, low=low, high=high, metric=metric, against=gain.against
        )

    drawings: dict[str, Callable[[Path], object]] = {"gain": forest}
    if spec.task == "multiclass":
        told = {"fine-tuned": ours, gain.against: theirs}
        said = {name: evidence.read_predictions(folder) for name, folder in told.items()}
        targets = said["fine-tuned"].targets.tolist()
        predictions = {name: one.outputs.argmax(dim=1).tolist() for name, one in said.items()}
        title = f"{spec.name}: {spec.targets[0]}, test"
        drawings["confusion_matrices"] = lambda path: confusion_matrices(
            targets, predictions, spec.classes, path, title=title
        )
    return drawings


def _of_labels(
    experiment: Experiment, control: Experiment, counts: Sequence[int], spec: DataSpec, folder: Path
) -> Callable[[Path], object]:
    """Train both with fewer labels, here and untracked, and draw their scores."""
    from neurofleet.figures.label_efficiency import label_efficiency
    from neurofleet.run import run

    local = {"launcher": {"name": "local"}}
    scores: list[list[float]] = [[], []]
    for count in counts:
        for place, one in enumerate((experiment, control)):
            part = folder / "labels" / f"{count}-{('fine-tuned', 'control')[place]}"
            if not (part / "predictions.safetensors").is_file():
                print(f"training with {count} labels, {part.name.partition('-')[2]} ...", flush=True)
                run(
                    one | local | {"data": one["data"] | {"train_rows": count}},
                    folder=part,
                    resume=(part / "experiment.yaml").is_file(),
                )
            scores[place].append(evidence.score(evidence.read_predictions(part), spec))
    fine_tuned, from_scratch = (np.array(row)[:, None] for row in scores)
    return functools.partial(
        label_efficiency,
        num_labels=np.array(counts),
        fine_tuned=fine_tuned,
        from_scratch=from_scratch,
        metric=evidence.METRICS[spec.task],
        title=f"{spec.name}: label efficiency",
    )


def _train_control(control: Experiment, planned: Plan, tracker: Tracker, folder: Path) -> Path:
    """Train the control of a finished run, or go on with it; its folder."""
    from neurofleet.run import plan

    mark = folder / CONTROL
    resume = json.loads(mark.read_text())["run_id"] if mark.is_file() else None
    tags = {"mlflow.parentRunId": tracker.run_id, "control_of": tracker.run_id}
    made = plan(control, planned.data)
    with recorded(made, resume=resume, pipeline=None, tags=tags) as (own_tracker, own_folder):
        checkpoint.write(mark, json.dumps({"run_id": own_tracker.run_id}).encode())
        begun = (own_folder / "experiment.yaml").is_file()  # not where it was stopped before its first step
        launch.launch(control, tracker=own_tracker, folder=own_folder, resume=begun)
    return own_folder


def _log(name: str, gain: evidence.Gain, tracker: Tracker, folder: Path) -> None:
    """One finding among the run's metrics, and in its evidence.json."""
    values = {name: gain.difference, f"{name}_low": gain.low, f"{name}_high": gain.high}
    tracker.log_metrics(0, 0.0, {f"evidence/{key}": value for key, value in values.items()})
    path = folder / EVIDENCE
    checkpoint.write(path, json.dumps(_known(folder) | {name: dataclasses.asdict(gain)}, indent=1).encode())
    tracker.log_artifact(path)


def _known(folder: Path) -> dict[str, dict[str, Any]]:
    """What was found before, by name."""
    path = folder / EVIDENCE
    found: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else {}
    return found
