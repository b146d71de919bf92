"""Submit: from a pipeline and its overrides to an order that the ledger takes: checked, its run open, its id known.

train, finetune   the run is opened here, its experiment written; each attempt is `neurofleet train resume=RUN_ID`,
                  which begins where there is no checkpoint yet
tune              the study gets its name here; each attempt is `neurofleet tune ... study=NAME`
the user's own    a script in the project's `pipelines/`, as it is
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from neurofleet import experiment as experiments
from neurofleet import launch, paths, tracking
from neurofleet.cluster import jobs
from neurofleet.cluster.job import Job, Order
from neurofleet.cluster.ledger import need_same
from neurofleet.data import catalog
from neurofleet.errors import ConfigError, nearest
from neurofleet.launch.machine import num_cpus, num_gpus
from neurofleet.launch.size import bounds

Parts = dict[str, Any]  # fields of an Order


def submit(
    pipeline: str,
    overrides: Sequence[str],
    *,
    key: str | None = None,
    priority: int = 0,
    time_limit: float | None = None,
) -> Job:
    """Check an order, open its run, and put it into the ledger.

    key:        a name; whoever submits the same under the same name gets the same job
    time_limit: seconds that its attempts may run, all together

    Raises:
        UserError: a mistake in the overrides; more asked for than the cluster has; no platform is up.
    """
    known = pipelines()
    if pipeline not in known:
        raise ConfigError(f"there is no pipeline {pipeline!r} to submit; {nearest(pipeline, known)}")
    prepare = PREPARE.get(pipeline)
    with jobs.naming(key) as taken:
        if taken is not None:
            need_same(taken, pipeline, list(overrides))
            return taken
        prepared = _own(known[pipeline], overrides) if prepare is None else prepare(list(overrides))
        return jobs.submit(
            Order(
                pipeline=pipeline,
                arguments=list(overrides),
                project=str(paths.project()),
                environment=launch.passed_on(),
                time_limit=time_limit,
                **prepared(jobs.address()),
            ),
            key=key,
            priority=priority,
        )


def pipelines() -> dict[str, Path]:
    """What can be submitted, by name: those of this package, and those of the project."""
    found = {path.stem: path for path in (paths.project() / "pipelines").glob("*.py")}
    shipped = {path.stem: path for path in paths.shipped("pipelines").glob("*.py")}
    return {name: path for name, path in sorted((found | shipped).items()) if name != "prepare"}


Finish = Callable[[str], Parts]
"""what is left to do when the order is checked and the cluster's address known; then something is written"""


def _train(overrides: list[str]) -> Finish:
    from neurofleet.launch.record import resumed, scheduled

    experiment = experiments.compose(overrides)
    resume = _value("resume", overrides)
    if resume is not None:
        experiment = resumed(resume, experiment, overrides)
        return lambda address: _run(experiment, address, resume, ["train", *overrides])
    catalog.need(experiment["data"])
    tracking.warm_up()  # MLflow takes seconds to import
    launch.check(experiment)

    def finish(address: str) -> Parts:
        run_id = scheduled(experiment)
        return _run(experiment, address, run_id, ["train", f"resume={run_id}"])

    return finish


def _finetune(overrides: list[str]) -> Finish:
    from neurofleet.launch.record import resumed, scheduled
    from neurofleet.release import bases
    from neurofleet.transfer import order as orders

    settings = experiments.plain(experiments.composed("finetune", overrides))
    if settings["resume"] is not None:
        resume = str(settings["resume"])
        experiment = orders.resumed(resumed(resume, settings, overrides)).experiment
        return lambda address: _run(experiment, address, resume, ["finetune", *overrides])
    catalog.need(settings["data"])
    tracking.warm_up()
    order = orders.Start(bases.named(settings["base"])).order(settings)
    launch.check(order.experiment)

    def finish(address: str) -> Parts:
        from neurofleet.launch import comparison

        run_id = scheduled(order.experiment, order.tags)
        comparison.remembered(settings, paths.run(run_id))
        return _run(order.experiment, address, run_id, ["finetune", f"resume={run_id}"])

    return finish


def _tune(overrides: list[str]) -> Finish:
    from neurofleet.study import finder, session

    if finder.asked(overrides):
        finder.order(overrides)
        found = {"command": jobs.entry(["tune", *overrides]), "what": " ".join(overrides), **_one_process({})}
        return lambda address: found | {"address": address}
    from neurofleet.release.bases import resolve

    order = session.order(overrides, resolve)
    planned = session.begin(order)
    name = order.name
    if order.run_id is None and _value("study", overrides) is None:  # two that are submitted at once are two studies
        name = f"{order.name.rpartition('-')[0]}-{secrets.token_hex(3)}"
    again = [*order.overrides, *(["failed_only=true"] if order.failed_only else []), f"study={name}"]

    def finish(address: str) -> Parts:
        parts = _run(planned.experiment, address, None, ["tune", *again])
        return parts | {"what": f"study {name}", "study": name}

    return finish


def _own(script: Path, overrides: Sequence[str]) -> Finish:
    command = [sys.executable, str(script), *overrides]
    return lambda address: {"command": command, "what": script.name, "address": address, **_one_process({})}


PREPARE: dict[str, Callable[[list[str]], Finish]] = {"train": _train, "finetune": _finetune, "tune": _tune}


def _run(experiment: experiments.Experiment, address: str, run_id: str | None, arguments: list[str]) -> Parts:
    launcher = experiment["launcher"]
    needs = _one_process(experiment["trainer"])
    if launcher["name"] == "ray":
        workers = bounds(launcher)[0]  # it starts where the fewest fit
        needs = {"cpus": float(workers * launcher["cpus_per_worker"]), "own_cpus": 0.0}
        needs |= {"gpus": float(workers) if launcher["use_gpu"] else 0.0, "own_gpus": 0.0}
    what = f"{experiments.family_name(experiment)} on {experiments.data_name(experiment)}"
    named = experiment["name"]
    return {
        "command": jobs.entry(arguments),
        "what": f"{named}: {what}" if named else what,
        "run_id": run_id,
        "address": address,
        **needs,
    }


def _one_process(trainer: Mapping[str, Any]) -> dict[str, float]:
    """What a process needs that trains by itself: its threads, and a GPU if it would use one."""
    cpus = float(min(trainer.get("num_threads") or 1, num_cpus()))
    gpus = 0.0 if trainer.get("accelerator", "auto") == "cpu" else float(min(1, num_gpus()))
    return {"cpus": cpus, "gpus": gpus, "own_cpus": cpus, "own_gpus": gpus}


def _value(name: str, overrides: Sequence[str]) -> str | None:
    given = [one.removeprefix(f"{name}=") for one in overrides if one.startswith(f"{name}=")]
    return given[-1] if given else None
