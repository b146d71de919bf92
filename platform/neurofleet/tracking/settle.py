"""`python -m neurofleet.tracking.settle STATUS RUN_ID...`: runs whose process is gone do not stay RUNNING.

What dead processes left of them is delivered first; a run that ended by itself keeps its end.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from neurofleet import paths
from neurofleet.tracking.opening import FAILURE, SETTINGS
from neurofleet.tracking.orphans import sweep
from neurofleet.tracking.store import check_reachable, store_uri

UNENDED = ("RUNNING", "SCHEDULED")


def settle(status: str, run_ids: Sequence[str]) -> list[str]:
    """Those of the runs that had to be ended here.

    Raises:
        UnreachableError: no MLflow.
    """
    uri = store_uri()
    check_reachable(uri)
    from mlflow import MlflowClient

    client, ended = MlflowClient(uri, uri), []
    for run_id in run_ids:
        before = client.get_run(run_id).info.status
        sweep(client, (paths.run(run_id) / "tracking").glob("*.jsonl"))
        run = client.get_run(run_id)
        # What was swept shows as FAILED where its process died without a word; here somebody knows more.
        unsaid = run.info.status in UNENDED or (before in UNENDED and FAILURE in run.data.tags)
        if unsaid:
            client.set_terminated(run_id, status)
            ended.append(run_id)
    return ended


if __name__ == "__main__":
    os.environ.update({name: os.environ.get(name, value) for name, value in SETTINGS.items()})
    settle(sys.argv[1], sys.argv[2:])
