"""Where tracking goes: `MLFLOW_TRACKING_URI` (http, sqlite, postgresql ...), else sqlite under `paths.home()`.

MLflow makes a fresh sqlite database by running every migration since 2018: 2 to 7 s, paid by the first run.  The
result is always the same, so it ships with this package as SQL (`schema.sql`, loaded in under 0.2 s) for the MLflow
version that its first line names; a test compares it with a real migration.  Another MLflow version migrates as
usual.  Make it again after an upgrade:  python -c "from neurofleet.tracking.store import write_schema; write_schema()"

The database is in WAL mode: readers (the MLflow server's pages) and the writer do not block one another.
"""

from __future__ import annotations

import fcntl
import http.client
import importlib.metadata
import json
import os
import re
import socket
import sqlite3
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from neurofleet import paths
from neurofleet.errors import ConfigError, UnreachableError

SCHEMA = Path(__file__).with_name("schema.sql")
VARIABLE = "MLFLOW_TRACKING_URI"


def remedy(variable: str = VARIABLE) -> str:
    return (
        f"start that server, or set {variable} to another one, or unset it to track into sqlite under NEUROFLEET_HOME"
    )


def home_uri() -> str:
    """The platform's own store."""
    return f"sqlite:///{paths.home() / 'mlflow' / 'mlflow.db'}"


def store_uri() -> str:
    """MLFLOW_TRACKING_URI, else the platform's server where that keeps runs for a team, else the platform's own store.

    A relative sqlite address is made absolute: whoever delivers or reads later stands in another folder.
    """
    configured = os.environ.get("MLFLOW_TRACKING_URI") or _shared_server() or home_uri()
    if configured.startswith("sqlite:///"):
        return f"sqlite:///{os.path.abspath(configured.removeprefix('sqlite:///'))}"
    return configured


def _shared_server() -> str:
    """Its address, or nothing where no such server was started here (`neurofleet.cluster.state` writes the file)."""
    try:
        mlflow = json.loads((paths.home() / "platform.json").read_text())["mlflow"]
    except FileNotFoundError:
        return ""
    return str(mlflow["address"]) if mlflow.get("shared") else ""


def artifact_root() -> Path:
    """Where artifacts lie when no server takes them.

    The local platform's MLflow server must use it too, as `--default-artifact-root` with `--no-serve-artifacts`:
    then a run made through the server and one made without it can read each other's files.
    """
    return paths.home() / "mlflow" / "artifacts"


def sqlite_file(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")).resolve() if uri.startswith("sqlite:///") else None


def prepare_store(uri: str | None = None) -> None:
    """Make the sqlite database if there is none (whole or not at all; safe for many processes at once) and set WAL."""
    database = sqlite_file(uri or store_uri())
    if database is None:
        return
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        with open(database.with_name(f".{database.name}.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not database.exists() or database.stat().st_size == 0:
                _create(database)
            with sqlite3.connect(database, timeout=20) as connection:
                connection.execute("PRAGMA journal_mode=WAL")
            connection.close()
    except (OSError, sqlite3.Error) as error:
        raise UnreachableError(
            f"tracking needs a writable sqlite database, got {error} for {database}; "
            "mend that, or set MLFLOW_TRACKING_URI or NEUROFLEET_HOME to another place"
        ) from error


def schema_is_known() -> bool:
    """Whether the installed MLflow is the one whose tables `schema.sql` holds."""
    with SCHEMA.open() as schema:
        return schema.readline().startswith(f"-- mlflow {importlib.metadata.version('mlflow')},")


def _create(database: Path) -> None:
    """Build beside its final name, then rename: nobody ever sees half a database."""
    built = database.with_name(f".{database.name}-new")
    built.unlink(missing_ok=True)
    try:
        if schema_is_known():
            connection = sqlite3.connect(built)
            connection.executescript(SCHEMA.read_text())
        else:
            migrate(built)
            connection = sqlite3.connect(built)
        # MLflow's pages expect experiment 0; left to itself MLflow would put its artifacts under the working directory.
        now = int(time.time() * 1000)
        connection.execute(
            "INSERT OR IGNORE INTO experiments (experiment_id, name, artifact_location, lifecycle_stage,"
            " creation_time, last_update_time, workspace) VALUES (0, 'Default', ?, 'active', ?, ?,"
            " 'default')",
            (str(artifact_root() / "0"), now, now),
        )
        connection.commit()
        connection.close()
        built.rename(database)
    finally:
        built.unlink(missing_ok=True)


def migrate(database: Path) -> None:
    """MLflow's own way: every migration since its first version."""
    from mlflow.store.db import utils

    engine = utils.create_sqlalchemy_engine(f"sqlite:///{database}")
    utils._initialize_tables(engine)
    engine.dispose()


def check_reachable(uri: str, variable: str = VARIABLE) -> None:
    """Raise UnreachableError within seconds where MLflow's own retries would take minutes; `variable` named `uri`."""
    try:
        parts = urllib.parse.urlsplit(uri)
        port = parts.port
    except ValueError as error:  # its words may quote a part of the password
        raise ConfigError(
            f"{variable} needs a host and a port that is a number, got {shown(uri)!r}; write /, @ and : in a "
            f"password as %2F, %40 and %3A, or {remedy(variable)}"
        ) from error
    if parts.scheme in ("http", "https"):
        _check_http(uri)
    elif parts.scheme.split("+")[0] in ("postgresql", "mysql", "mssql"):
        _check_socket(uri, parts.scheme.split("+")[0], parts.hostname or "localhost", port, variable)
    elif parts.scheme not in ("sqlite", "databricks", "databricks-uc"):
        raise ConfigError(
            f"{variable} needs a server (http://...) or a database (sqlite:///..., "
            f"postgresql://...), got {shown(uri)!r}; {remedy(variable)}"
        )


def _check_http(uri: str) -> None:
    try:
        # without user and password, which urllib takes for a part of the host's name
        with urllib.request.urlopen(f"{shown(uri).rstrip('/')}/health", timeout=5):
            return
    except urllib.error.HTTPError as error:
        if error.code in (401, 403, 404):  # it lives; a gateway before it may guard or hide /health
            return
        reason = f"HTTP {error.code}"
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = str(getattr(error, "reason", error)).strip()
    raise UnreachableError(
        f"tracking needs the MLflow server at {shown(uri)}, which does not answer ({reason}); {remedy()}"
    )


def _check_socket(uri: str, kind: str, host: str, port: int | None, variable: str) -> None:
    import sqlalchemy

    ports = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
    try:
        socket.create_connection((host, port or ports[kind]), timeout=5).close()
        sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool).connect().close()
    except (OSError, ImportError, sqlalchemy.exc.SQLAlchemyError) as error:
        reason = censored(str(error), uri).splitlines()[0]
        lacking = ", and pip install -c requirements.lock 'neurofleet[team]'" if isinstance(error, ImportError) else ""
        raise UnreachableError(
            f"tracking needs the database at {shown(uri)}, got: {reason}; {remedy(variable)}{lacking}"
        ) from error


def shown(uri: str) -> str:
    """The address without the user and password that it may hold."""
    if uri.startswith("sqlite"):
        return uri
    return re.sub(r"(password=)[^&]*", r"\1***", re.sub(r"//.*@", "//", uri))


def censored(text: str, uri: str) -> str:
    """Somebody else's words about `uri`, without its password."""
    return text.replace(uri.rstrip("/"), shown(uri).rstrip("/"))


def ui_address(run_id: str) -> str:
    """Where to look at a run: a link while a server runs, else how to open one."""
    about = json.loads((paths.run(run_id) / "tracking" / "run.json").read_text())
    page = f"#/experiments/{about['experiment_id']}/runs/{run_id}?workflowType=machine_learning"
    if about["uri"].startswith("http"):
        return f"{shown(about['uri']).rstrip('/')}/{page}"
    platform = paths.home() / "platform.json"
    if platform.is_file() and sqlite_file(about["uri"]) == (paths.home() / "mlflow" / "mlflow.db").resolve():
        return f"{shown(json.loads(platform.read_text())['mlflow']['address']).rstrip('/')}/{page}"
    return f"run {run_id} of {shown(about['uri'])} (to open it: neurofleet up)"


def write_schema() -> None:
    """Write schema.sql for the installed MLflow."""
    with tempfile.TemporaryDirectory() as folder:
        SCHEMA.write_text(dump(Path(folder) / "mlflow.db"))


def dump(database: Path) -> str:
    """The text of schema.sql, from a real migration into `database`."""
    migrate(database)
    connection = sqlite3.connect(database)
    revision = connection.execute("SELECT version_num FROM alembic_version").fetchone()[0]
    lines = [
        f"-- mlflow {importlib.metadata.version('mlflow')}, alembic revision {revision}; made by "
        "neurofleet.tracking.store.write_schema, never by hand",
        *connection.iterdump(),
    ]
    connection.close()
    return "\n".join(lines) + "\n"
