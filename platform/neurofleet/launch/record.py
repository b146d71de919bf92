"""Record: the MLflow run of one execution, from its first tag to its end state, and the figures that it leaves."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib
import json
import pkgutil
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from neurofleet import experiment as experiments
from neurofleet import paths
from neurofleet.errors import ConfigError, NeurofleetError, StoppedError, nearest
from neurofleet.experiment import Experiment
from neurofleet.spec import DataSpec
from neurofleet.tracking import Tracker, code_tags

if TYPE_CHECKING:
    from neurofleet.run import Plan

PREDICTED = ("binary", "multiclass", "multilabel", "regression")
MOST_TARGETS = 4  # with a picture of their own
Drawing = Callable[[Path], object]  # writes the file
ARTIFACTS = ("experiment.yaml", "spec.json", "history.json", "weights.safetensors")


@contextlib.contextmanager
def recorded(
    planned: Plan, *, resume: str | None = None, pipeline: str | None = "train", tags: Mapping[str, str] | None = None
) -> Iterator[tuple[Tracker, Path]]:
    """A tracker, and the folder of its run; the run ends FINISHED, KILLED (a signal) or FAILED with this context.

    resume:   the id of a run that goes on, or None for a new one
    pipeline: by which it goes on after it was cut; None where another run says how
    tags:     of a new run, beside those that follow from its experiment
    """
    experiment, spec, data = planned.experiment, planned.data.spec, planned.data
    digest = data.digest  # refuses what was changed behind DVC's back, also where a run goes on
    with contextlib.ExitStack() as held:
        if resume is None:
            tracker = Tracker.start(
                experiment=experiments.data_name(experiment),
                run_name=run_name(experiment),
                tags=_tags(planned) | dict(tags or {}),
                params=experiment,
            )
        else:  # before the run shows as going on
            held.enter_context(alone(paths.run(resume)))
            tracker = Tracker.resume(resume)
        folder = paths.run(tracker.run_id)
        begins = not (folder / "spec.json").is_file()

        def remedy() -> str:
            resumable = (folder / "checkpoints" / "index.json").is_file()
            go_on = f"neurofleet {pipeline} resume={tracker.run_id}"
            return f"to go on from the last checkpoint: {go_on}" if resumable and pipeline else ""

        held.enter_context(ending(tracker, remedy))
        if resume is None:
            held.enter_context(alone(folder))
        elif begins:
            tracker.set_tags(_tags(planned))
        if begins:
            num_rows = sum(spec.num_rows.values())
            tracker.log_dataset(spec.name, digest, str(data.folder), spec.to_dict(), num_rows)
        yield tracker, folder
        for path in (folder / name for name in ARTIFACTS):
            tracker.log_artifact(path)
        for path in draw(folder):
            tracker.log_artifact(path, "figures")


def scheduled(experiment: Experiment, tags: Mapping[str, str] | None = None) -> str:
    """Open the run of an experiment that trains later, by `resume=ID`; returns its id.

    Raises:
        UnreachableError: there is no MLflow.
    """
    run_id = Tracker.schedule(
        experiment=experiments.data_name(experiment),
        run_name=run_name(experiment),
        tags=_known_tags(experiment) | dict(tags or {}),
        params=experiment,
    )
    experiments.save(experiment, paths.run(run_id) / "experiment.yaml")
    return run_id


@contextlib.contextmanager
def ending(tracker: Tracker, remedy: Callable[[], str]) -> Iterator[None]:
    """The run ends FINISHED, KILLED (a signal: `remedy()` says how to go on) or FAILED with this context."""
    try:
        yield
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt | StoppedError)
        with _undisturbed():
            _finish_after(tracker, "KILLED" if stopped else "FAILED")
        if stopped and remedy():
            print(remedy(), file=sys.stderr)
        raise
    tracker.finish("FINISHED")


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """A second Ctrl-C would leave the run without an end; saying how it ended takes no longer than a server may."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the run's lock: two processes that train one run would write each other's checkpoints."""
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"run {folder.name} is still going in another process; wait for it or stop it") from None
        yield


def run_name(experiment: Experiment) -> str:
    parts = (experiments.family_name(experiment), experiments.data_name(experiment), str(experiment["seed"]))
    return str(experiment["name"] or "-".join(parts))


def stored(run_id: str) -> Experiment:
    """The experiment of a run that was started before.

    Raises:
        ConfigError: there is no such run here.
    """
    path = paths.run(run_id) / "experiment.yaml"
    if not re.fullmatch("[0-9a-f]{32}", run_id) or not path.is_file():
        runs = [folder.parent.name for folder in (paths.home() / "runs").glob("*/experiment.yaml")]
        raise ConfigError(
            f"resume needs the id of a run in {paths.home() / 'runs'}, got {run_id!r}; {nearest(run_id, runs)}"
        )
    return experiments.load(path)


def resumed(run_id: str, composed: Experiment, overrides: list[str]) -> Experiment:
    """The experiment of a run that goes on; beside `resume=ID` only the launcher may be chosen anew.

    Raises:
        ConfigError: no such run, or an override that would be ignored.
    """
    others = [one for one in overrides if not re.match(r"(resume|launcher(\.\w+)?)=", one)]
    if others:
        raise ConfigError(
            f"a run goes on with the experiment that it began with; beside resume=ID only launcher settings can be "
            f"given, got {', '.join(others)}"
        )
    experiment = stored(run_id)
    chosen = any(one.startswith("launcher") for one in overrides)
    return experiment | {"launcher": composed["launcher"]} if chosen else experiment


def draw(folder: Path) -> list[Path]:
    """The figures of a finished run, as PNG files in its folder: learning curves, how the test rows came out, and
    what the family exhibits.  One that cannot be drawn is named on stderr, and costs the run nothing else.

    Of several targets the first `MOST_TARGETS` get a picture each.
    """
    import matplotlib as mpl

    spec, into = DataSpec.load(folder / "spec.json"), folder / "figures"
    into.mkdir(exist_ok=True)
    drawn: list[Path] = []
    # Names that come from data are no formulas, whatever dollars are in them.
    with mpl.rc_context({"text.parse_math": False}):
        for name, drawing in (_of_history(folder), *_of_predictions(folder, spec), *_of_exhibits(folder, spec)):
            try:
                drawing(into / f"{name}.png")
            except Exception as error:  # noqa: BLE001  a picture is not worth the run that it is of
                print(f"warning: figure {name} was not drawn: {type(error).__name__}: {error}", file=sys.stderr)
            drawn += sorted(into.glob(f"{name}.*"))  # what moves is a GIF beside it
    return drawn


def _of_history(folder: Path) -> tuple[str, Drawing]:
    from neurofleet.figures.learning_curves import learning_curves

    history = json.loads((folder / "history.json").read_text())
    for row in history:  # beside val/loss, in one panel
        row["train/loss"] = row.pop("train/loss_epoch")
        row.pop("train/environment_steps", None)  # an axis, no curve
    experiment = experiments.load(folder / "experiment.yaml")
    what = f"{experiments.family_name(experiment)} on {experiments.data_name(experiment)}"
    return "learning_curves", functools.partial(learning_curves, history, title=f"{what}: learning curves")


def _of_predictions(folder: Path, spec: DataSpec) -> Iterator[tuple[str, Drawing]]:
    from neurofleet import checkpoint
    from neurofleet.figures.confusion_matrix import confusion_matrix
    from neurofleet.figures.predicted_vs_true import predicted_vs_true

    tensors, _ = checkpoint.decode((folder / "predictions.safetensors").read_bytes())
    if "outputs" not in tensors or tensors["outputs"].shape[1:] != (spec.num_outputs,) or spec.task not in PREDICTED:
        return  # no predictions of the targets: the family has other things to show
    outputs, targets = tensors["outputs"].double(), tensors["targets"]
    for index, column in enumerate(spec.targets[:MOST_TARGETS]):
        suffix = f"_{column}" if len(spec.targets) > 1 else ""
        title = f"{spec.name}: {column}, test"
        if spec.task == "regression":
            mean, std = spec.target_mean[index], spec.target_std[index]
            true, predicted = (tensor[:, index].double() * std + mean for tensor in (targets, outputs))
            drawing = functools.partial(predicted_vs_true, true.numpy(), predicted.numpy(), name=column, title=title)
            yield f"predicted_vs_true{suffix}", drawing
            continue
        if spec.task == "multiclass":
            true, predicted, classes = targets, outputs.argmax(dim=1), spec.classes
        else:
            classes = spec.classes if spec.task == "binary" else (f"not {column}", column)
            true, predicted = targets[:, index].long(), (outputs[:, index] > 0).long()
        drawing = functools.partial(confusion_matrix, true.tolist(), predicted.tolist(), classes, title=title)
        yield f"confusion_matrix{suffix}", drawing


def _of_exhibits(folder: Path, spec: DataSpec) -> Iterator[tuple[str, Drawing]]:
    from neurofleet import checkpoint, figures

    tensors, _ = checkpoint.decode((folder / "exhibits.safetensors").read_bytes())
    known = [module.name for module in pkgutil.iter_modules(figures.__path__)]
    for picture in sorted({name.split("/")[0] for name in tensors}):
        if picture not in known:
            print(f"warning: there is no figure {picture!r}; {nearest(picture, known)}", file=sys.stderr)
            continue
        draw_picture = getattr(importlib.import_module(f"neurofleet.figures.{picture}"), picture)
        arrays = {
            name.removeprefix(f"{picture}/"): tensor.numpy()
            for name, tensor in tensors.items()
            if name.startswith(f"{picture}/")
        }
        yield picture, functools.partial(draw_picture, spec=spec, **arrays)


def _tags(planned: Plan) -> dict[str, str]:
    built = {"data.digest": planned.data.digest, "num_parameters": str(planned.num_parameters)}
    return _known_tags(planned.experiment) | built


def _known_tags(experiment: Experiment) -> dict[str, str]:
    """Those that need nothing built."""
    return {
        "family": experiments.family_name(experiment),
        "data": experiments.data_name(experiment),
        "launcher": experiment["launcher"]["name"],
        "seed": str(experiment["seed"]),
        "experiment.digest": experiments.digest(experiment),
        **code_tags(),
    }


def _finish_after(tracker: Tracker, status: str) -> None:
    """End the run without hiding why it ends."""
    try:
        tracker.finish(status)
    except NeurofleetError as error:
        print(f"warning: {error}", file=sys.stderr)
