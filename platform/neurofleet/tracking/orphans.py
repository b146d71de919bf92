"""What dead processes left behind.

A spool is locked by the process that writes it, its `.lock` by the child that delivers it.  Whoever finds both free
and the spool not concluded may finish it: both are dead (a machine that lost power, a worker killed with all its
children).  A tracking child tries so once for all runs here when it starts, and insists for its own run before it ends
that.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from neurofleet.tracking import records
from neurofleet.tracking.delivery import Delivery, try_lock
from neurofleet.tracking.store import censored

if TYPE_CHECKING:
    from mlflow import MlflowClient


def end_run(client: MlflowClient, run_id: str, status: str | None) -> None:
    """Set how the run ended; None says that its process died."""
    if status is None:
        client.set_tag(run_id, "failure", "the training process died without a word")
    client.set_terminated(run_id, status or "FAILED")


def sweep(client: MlflowClient, spools: Iterable[Path]) -> None:
    """Try each once."""
    for spool in sorted(spools):
        try:
            deliver_orphan(client, spool)
        # Whatever is wrong with what a stranger left, the run that this child serves must not suffer from it.
        except Exception as error:  # noqa: BLE001
            _report(spool, error, client)


def deliver_orphan(client: MlflowClient, spool: Path) -> None:
    """Ship what a dead process left behind, and end its run.

    A run is ended only by its newest spool: after a resume, an older one has nothing to say about the end.
    """
    state = spool.with_suffix(".state")
    if state.exists() and json.loads(state.read_text()).get("concluded"):
        return
    with open(spool, "rb") as file:
        if not try_lock(file):
            return
        first = file.readline()
    if not first.endswith(b"\n"):
        return
    try:
        about = records.decode(first)["open"]
        run_id, uri, own = about["run_id"], about["uri"], about["own"]
    except records.DAMAGED as error:  # asking again would change nothing
        _report(spool, error, client)
        return
    if uri != client.tracking_uri:
        return
    delivery = Delivery(client, run_id, spool)
    if delivery.concluded or not delivery.lock():
        return
    delivery.ship()
    if own and spool.name == max(each.name for each in spool.parent.glob("*.jsonl")):
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
