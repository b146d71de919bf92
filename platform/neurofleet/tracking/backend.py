"""Where the platform's own MLflow server keeps runs and files, in the words of `mlflow server`.

Alone at a desk it is sqlite and a folder under `paths.home()`, which runs here write to without it.  A team names a
database and a bucket by MLflow's own variables; then all runs go through the server, and only it holds their keys.
"""

from __future__ import annotations

import os

from neurofleet.errors import ConfigError, UnreachableError
from neurofleet.tracking.store import (
    VARIABLE,
    artifact_root,
    censored,
    check_reachable,
    home_uri,
    prepare_store,
    shown,
    store_uri,
)

DATABASE, ARTIFACTS = "MLFLOW_BACKEND_STORE_URI", "MLFLOW_ARTIFACTS_DESTINATION"


def is_shared() -> bool:
    """Whether a server that starts now keeps its runs or files in a team's store."""
    return bool(os.environ.get(DATABASE) or os.environ.get(ARTIFACTS))


def environment() -> dict[str, str]:
    """What MLflow's server application reads, as `mlflow server` would set it; its database is there, or was made.

    With DATABASE or ARTIFACTS it gives out files itself, so that nobody but the server needs the keys of their store.

    Raises:
        ConfigError: DATABASE is no database.
        UnreachableError: the database or the place for files does not answer.
    """
    configured = os.environ.get(VARIABLE, "")  # may name a database; it may also name this very server
    store = os.environ.get(DATABASE) or (home_uri() if configured.startswith("http") or not configured else store_uri())
    if store.startswith("http"):
        raise ConfigError(f"{DATABASE} needs a database (postgresql://...), got {shown(store)!r}, which is a server")
    check_reachable(store, DATABASE if os.environ.get(DATABASE) else VARIABLE)
    prepare_store(store)
    settings = {"_MLFLOW_SERVER_FILE_STORE": store}
    if not is_shared():
        return settings | {"_MLFLOW_SERVER_ARTIFACT_ROOT": str(artifact_root())}
    destination = os.environ.get(ARTIFACTS) or str(artifact_root())
    _check_artifacts(destination)
    settings |= {"_MLFLOW_SERVER_SERVE_ARTIFACTS": "true", "_MLFLOW_SERVER_ARTIFACT_DESTINATION": destination}
    return settings | {"_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/"}


def _check_artifacts(destination: str) -> None:
    """Raise UnreachableError where files cannot be listed: MLflow's server would say so at the end of a training."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    try:
        get_artifact_repository(destination).list_artifacts()
    # Every kind of store raises its own (botocore: no credentials, no bucket; a missing package), with no base class
    # in common.
    except Exception as error:
        reason = censored(str(error), destination).strip().splitlines()[0]
        raise UnreachableError(
            f"{ARTIFACTS} needs a place that exists and can be read, got {shown(destination)!r}: {reason}; make the "
            f"bucket, set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and MLFLOW_S3_ENDPOINT_URL, and "
            "pip install -c requirements.lock 'neurofleet[team]'"
        ) from error
