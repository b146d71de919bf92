"""What dead processes left behind.

A spool is locked by the process that writes it, its `.lock` by the child that delivers it.  Whoever finds both free
and the spool not concluded may finish it: both are dead (a machine that lost power, a worker killed with all its
children).  A tracking child tries so once for all runs here when it starts, and insists for its own run before it ends
that; `sync` does so when a user asks.

A run whose end its own process could not deliver, since MLflow was away, carries the tag tracking=degraded: its records
are complete, but nobody could watch it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurofleet import paths
from neurofleet.errors import UnreachableError
from neurofleet.tracking import records
from neurofleet.tracking.delivery import Delivery, try_lock
from neurofleet.tracking.opening import FAILURE, SETTINGS
from neurofleet.tracking.store import censored, check_reachable

if TYPE_CHECKING:
    from mlflow import MlflowClient


def end_run(client: MlflowClient, run_id: str, status: str | None) -> None:
    """Set how the run ended; None says that its process died."""
    if status == "SCHEDULED":
        client.update_run(run_id, status)
        return
    if status is None:
        client.set_tag(run_id, FAILURE, "the training process died without a word")
    client.set_terminated(run_id, status or "FAILED")


def sweep(client: MlflowClient, spools: Iterable[Path]) -> None:
    """Try each once, those of one run in their order."""
    held_up: set[Path] = set()
    for spool in sorted(spools):
        if spool.parent in held_up:
            continue
        try:
            deliver_orphan(client, spool)
        # Whatever is wrong with what a stranger left, the run that this child serves must not suffer from it.
        except Exception as error:  # noqa: BLE001
            held_up.add(spool.parent)
            _report(spool, error, client)


def sync() -> int:
    """Deliver what runs here left on disk, to whichever MLflow each belongs; how many runs that completed.

    Raises:
        UnreachableError: some of it still waits: for which server, or why.
    """
    os.environ.update({name: os.environ.get(name, value) for name, value in SETTINGS.items()})
    waiting: dict[str, list[Path]] = {}
    for spool in sorted(paths.home().glob("runs/*/tracking/*.jsonl")):
        try:
            about = _about(spool)
        except records.DAMAGED:  # whoever swept here before has said so
            continue
        if about is not None:
            waiting.setdefault(about["uri"], []).append(spool)
    num_runs, reasons = 0, []
    for uri, spools in waiting.items():
        try:
            check_reachable(uri)
        except UnreachableError as error:
            reasons.append(f"{len({spool.parent for spool in spools})} run(s) wait: {error}")
            continue
        from mlflow import MlflowClient

        sweep(MlflowClient(uri, uri), spools)
        runs = {spool.parent for spool in spools}
        left = {spool.parent for spool in spools if _about(spool) is not None}
        for run in sorted(runs - left):
            print(f"delivered run {run.parent.name}", flush=True)
        reasons += [f"run {run.parent.name} could not be delivered, as told above" for run in sorted(left)]
        num_runs += len(runs - left)
    if reasons:
        raise UnreachableError("; ".join(reasons))
    return num_runs


def _about(spool: Path) -> dict[str, Any] | None:
    """What the first line of a spool says, if its process is dead and it is not concluded."""
    state = spool.with_suffix(".state")
    if state.exists() and json.loads(state.read_text()).get("concluded"):
        return None
    with open(spool, "rb") as file:
        if not try_lock(file):
            return None
        first = file.readline()
    if not first.endswith(b"\n"):
        return None
    about = records.decode(first)["open"]
    return {name: about[name] for name in ("run_id", "uri", "own")}


def deliver_orphan(client: MlflowClient, spool: Path) -> None:
    """Ship what a dead process left behind, and end its run.

    A run is ended only by its newest spool: after a resume, an older one has nothing to say about the end.
    """
    try:
        about = _about(spool)
    except records.DAMAGED as error:  # asking again would change nothing
        _report(spool, error, client)
        return
    if about is None:
        return
    run_id, uri, own = about["run_id"], about["uri"], about["own"]
    if uri != client.tracking_uri:
        return
    with contextlib.closing(Delivery(client, run_id, spool)) as delivery:
        if delivery.concluded or not delivery.lock():
            return
        delivery.ship()
        if own and spool.name == max(each.name for each in spool.parent.glob("*.jsonl")):
            if delivery.end is not None:
                delivery.attempt(lambda some: client.set_tag(*some[0]), [(run_id, "tracking", "degraded")])
            delivery.attempt(lambda some: end_run(client, *some[0]), [(run_id, delivery.end)])
        delivery.concluded = True
        delivery.save()


def _report(spool: Path, error: Exception, client: MlflowClient) -> None:
    reason = censored(str(error), client.tracking_uri)[:500]
    print(
        f"{time.strftime('%F %T')} could not deliver {spool}: {type(error).__name__}: {reason}",
        file=sys.stderr,
        flush=True,
    )
