"""How MLflow is spoken to: without telemetry, without long waits, without words of its own. Imports MLflow."""

import logging
import os
from typing import Any

from mneme.reporting.tracking.database import connect, prepare
from mneme.reporting.tracking.settings import sqlite_file

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_UV_AUTO_DETECT": "false",
}
"""Environment variables of MLflow, where the user has set no others."""


def hush() -> None:
    """Set MLflow up before it is imported, which is when it reads its environment."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for logger in ("mlflow", "alembic", "urllib3.connectionpool"):
        logging.getLogger(logger).setLevel(logging.ERROR)


def client_of(uri: str) -> Any:
    """A client of a store and of the models registered in it; a SQLite file is made, or brought up to date.

    Raises:
        OSError: see `database.prepare`.
    """
    hush()
    from mlflow.tracking import MlflowClient

    hush()  # MLflow sets levels of its own when it is imported
    if (file := sqlite_file(uri)) is not None:
        prepare(file)
        connect(uri)
    return MlflowClient(uri, uri)
