"""What dead processes left behind.

A spool is locked by the process that writes it, its `.lock` by the child that delivers it.  Whoever finds both free
and the spool not concluded may finish it: both are dead (a machine that lost power, a worker killed with all its
children).  A tracking child does so for all runs here when it starts, and for its own run before it ends that.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from neurofleet.tracking import records
from neurofleet.tracking.delivery import Delivery, try_lock

if TYPE_CHECKING:
    from mlflow import MlflowClient


def end_run(client: MlflowClient, run_id: str, status: str | None) -> None:
    """Set how the run ended; None says that its process died."""
    if status is None:
        client.set_tag(run_id, "failure", "the training process died without a word")
    client.set_terminated(run_id, status or "FAILED")


def deliver_orphans(client: MlflowClient, spools: Iterable[Path]) -> None:
    """Ship what dead processes left behind, and end their runs.

    A run is ended only by its newest spool: after a resume, an older one has nothing to say about the end.
    """
    for spool in sorted(spools):
        with open(spool, "rb") as file:
            if not try_lock(file):
                continue
            first = file.readline()
        if not first.endswith(b"\n"):
            continue
        about = records.decode(first)["open"]
        if about["uri"] != client.tracking_uri:
            continue
        delivery = Delivery(client, about["run_id"], spool)
        if delivery.concluded or not delivery.lock():
            continue
        delivery.ship()
        if about["own"] and spool.name == max(each.name for each in spool.parent.glob("*.jsonl")):
            delivery.attempt(lambda some: end_run(client, *some[0]), [(about["run_id"], delivery.end)])
        delivery.concluded = True
        delivery.save()
