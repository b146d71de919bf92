"""How the child makes or finds the run that it serves."""

from __future__ import annotations

import contextlib
import getpass
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


KIND = {"mlflow.experimentKind": "custom_model_development"}
"""opens MLflow's pages on training runs, where they would open on language-model traces"""
FAILURE = "failure"
"""the tag of a run whose process is dead"""
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}
"""of MLflow in whoever delivers: it repeats failed requests itself, and reports nothing to anyone but the store"""


def find_run(client: MlflowClient, order: Mapping[str, Any]) -> Run:
    run = client.get_run(order["run_id"])
    if order.get("reopen"):
        if FAILURE in run.data.tags:
            client.delete_tag(order["run_id"], FAILURE)
        client.update_run(order["run_id"], status="RUNNING")
    return run


def create_run(client: MlflowClient, order: Mapping[str, Any]) -> Run:
    tags = {"mlflow.source.name": order["command"], "mlflow.source.type": "LOCAL"}
    with contextlib.suppress(KeyError, OSError):  # a container's user may have no name
        tags["mlflow.user"] = getpass.getuser()
    return client.create_run(_experiment(client, order), tags=tags | order["tags"], run_name=order["run_name"])


def _experiment(client: MlflowClient, order: Mapping[str, Any]) -> str:
    """The experiment's id, made where it is lacking; somebody else may make it in the same moment."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(order["experiment"])
    if found is None:
        local = order["uri"].startswith("sqlite")
        try:
            return client.create_experiment(order["experiment"], order["artifact_root"] if local else None, tags=KIND)
        except MlflowException as error:
            found = client.get_experiment_by_name(order["experiment"])
            if found is None:
                raise error
    return str(found.experiment_id)
