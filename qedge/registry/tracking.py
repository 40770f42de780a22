"""The connection to MLflow: quiet, quick to say that nobody answers, and its errors in our words.

MLflow takes seconds to import, so that happens when a connection is first used. Every call names its store: MLflow's
process-wide tracking URI is neither read nor changed.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from qedge.config import Settings, ensure_home
from qedge.errors import InvalidConfig, RegistryUnavailable, StorageFull
from qedge.storage import locked

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from sqlalchemy.engine.interfaces import DBAPIConnection

EXPERIMENT = "qedge"
CONNECT_TIMEOUT_S = 5.0
OPEN_TIMEOUT_S = 120.0
DEFAULT_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    # One attempt: a repeated "create" whose first answer was lost would make two; the publisher looks first, then repeats.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


@contextlib.contextmanager
def connection(settings: Settings) -> Iterator[MlflowClient]:
    """A client of the tracking store; what goes wrong while it is used is raised as one of our errors.

    Raises:
        RegistryUnavailable: MLflow does not answer, or refused what it was asked.
        InvalidConfig: a tracking URI of a kind that MLflow, or this installation, does not know.
        StorageFull: the disk under a local store is full.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    uri = settings.mlflow_uri
    _reach_database(uri)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException
    from sqlalchemy.exc import SQLAlchemyError

    logging.getLogger("mlflow").setLevel(os.environ["MLFLOW_LOGGING_LEVEL"].upper())
    try:
        with _opened_alone(settings):
            _create_whole(uri)
            client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        yield client
    except (UnsupportedModelRegistryStoreURIException, ImportError) as error:
        raise InvalidConfig(f"tracking_uri '{shown(uri)}' cannot be used: {_reason(uri, error)}", given=shown(uri)) from None
    except (MlflowException, SQLAlchemyError, OSError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f"no room for MLflow's files: {error}", uri=shown(uri)) from None
        raise RegistryUnavailable(f"MLflow at {shown(uri)}: {_reason(uri, error)}", uri=shown(uri)) from None


def shown(uri: str) -> str:
    """A tracking URI without its credentials."""
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if "@" in parts.netloc else uri


def _reason(uri: str, error: BaseException) -> str:
    """The first line of what MLflow said, without the credentials of the URI, which its messages repeat."""
    credentials = urlsplit(uri).netloc.rpartition("@")[0]
    lines = str(error).strip().splitlines() or [type(error).__name__]
    text = lines[0][:400]
    password = credentials.partition(":")[2]
    for secret in filter(None, (credentials, password, unquote(password))):
        text = text.replace(secret, "***")
    return text


def _reach_database(uri: str) -> None:
    """Knock at a database server first: MLflow itself would try for minutes before it says that nobody answers."""
    parts = urlsplit(uri)
    port = DEFAULT_PORTS.get(parts.scheme.split("+")[0])
    if port is None or not parts.hostname:
        return
    try:
        socket.create_connection((parts.hostname, parts.port or port), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise RegistryUnavailable(f"MLflow's database at {shown(uri)} does not answer: {error}", uri=shown(uri)) from None


def _opened_alone(settings: Settings) -> contextlib.AbstractContextManager[object]:
    """One process at a time opens a local store: the first one creates the tables, which MLflow does without a lock."""
    local = settings.mlflow_uri.startswith("sqlite:")
    return locked(ensure_home(settings.home) / "mlflow.lock", timeout_s=OPEN_TIMEOUT_S) if local else contextlib.nullcontext()


def _create_whole(uri: str) -> None:
    """Make a new SQLite store beside its place and put it there when all its tables are made.

    MLflow makes them in dozens of migrations; one that was killed in their midst could never be opened again.
    """
    place = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or place.exists():
        return
    from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine_with_retry
    from sqlalchemy import event

    making = place.with_name(f".{place.name}.new")
    for leftover in place.parent.glob(f"{making.name}*"):
        leftover.unlink()
    engine = create_sqlalchemy_engine_with_retry(f"sqlite:///{making}")
    event.listen(engine, "connect", _write_unsynced)
    engine.dispose()  # of the connection by which it was tried
    try:
        _initialize_tables(engine)
    finally:
        engine.dispose()
    making.chmod(0o600)
    with making.open("rb") as whole:
        os.fsync(whole.fileno())
    making.replace(place)


def _write_unsynced(connection: DBAPIConnection, _record: object) -> None:
    """Nothing of a file is kept unless it is whole: its hundreds of transactions need not reach the disk one by one."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA synchronous = OFF")
    cursor.close()


def experiment_id(client: MlflowClient, settings: Settings) -> str:
    """The experiment all runs belong to, created when missing; a database store keeps artifacts under the home."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        local = not urlsplit(settings.mlflow_uri).scheme.startswith(("http", "databricks"))
        try:
            return str(client.create_experiment(EXPERIMENT, (settings.home / "artifacts").as_uri() if local else None))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    return str(experiment.experiment_id)
