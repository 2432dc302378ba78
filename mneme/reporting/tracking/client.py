"""How MLflow is spoken to: without telemetry, without long waits, without words of its own. Imports MLflow."""

import logging
import os
from typing import Any

from mneme.reporting.tracking.database import connect
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


def client_of(uri: str) -> Any:
    """A client of a store and of the models registered in it; a SQLite file has its tables already."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    for logger in ("mlflow", "alembic", "urllib3.connectionpool"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    if sqlite_file(uri):
        connect(uri)
    return MlflowClient(uri, uri)
