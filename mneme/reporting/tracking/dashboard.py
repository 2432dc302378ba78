"""MLflow's own pages for a store, on this machine."""

import os
import socket
import sys
from importlib.metadata import entry_points
from pathlib import Path
from urllib.parse import quote

from mneme.configuration.passwords import without_password
from mneme.reporting.tracking import database
from mneme.reporting.tracking.client import ENVIRONMENT, hush
from mneme.reporting.tracking.settings import absolute_uri, fault_of, sqlite_file


def serve_dashboard(store: str, port: int) -> None:
    """Serve MLflow's pages for a store on loopback until interrupted.

    Args:
        store: a SQLite file, or a folder that holds one; or the URI of a store.
        port: on 127.0.0.1.

    Raises:
        ValueError: the store is none that MLflow's pages can show.
        OSError: the port is taken, or the store's file cannot be made. One sentence each.
    """
    uri = store_uri(store)
    file = sqlite_file(uri)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise OSError(
                f"port {port} on 127.0.0.1 cannot be used ({error.strerror}); choose another: --port"
            ) from None
    environment = os.environ | ENVIRONMENT
    if file is not None:
        hush()
        database.prepare(file)
        if "%" in uri:  # MLflow would make a folder of that quoted name; here the file's name alone is read
            os.chdir(file.parent)
            uri = f"sqlite:///{uri.rpartition('/')[2]}"
            environment["PYTHONSAFEPATH"] = "1"
    arguments = ["--backend-store-uri", uri, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    print(f"MLflow for model training: http://127.0.0.1:{port}/#/experiments?workflowType=machine_learning", flush=True)
    # In this process's place, so that whoever stops this process stops the server.
    os.execve(sys.executable, [sys.executable, "-m", "mlflow", "ui", *arguments], environment)


def store_uri(store: str) -> str:
    """The URI of a store that MLflow's pages can show.

    Raises:
        ValueError: there is none, in one sentence that says why.
    """
    scheme, colon, _ = store.partition("://")
    if not colon and not store.startswith(("file:", "databricks")):
        path = Path(store).expanduser()
        file = path / "mlflow.db" if path.is_dir() else path
        if file.is_file():
            return absolute_uri(f"sqlite:///{quote(str(file))}")
        if not path.is_dir():
            raise ValueError(
                f"--store is {store}, where there is nothing; give mlflow.db, its folder, or a store's URI"
            )
    if scheme in ("http", "https"):
        raise ValueError(f"--store is {store}, a server, which serves its own pages: open that address in a browser")
    if fault := fault_of(store):
        raise ValueError(f"--store is {store}; {fault}")
    kind = scheme.partition("+")[0]
    if kind == "sqlite":
        return absolute_uri(store)
    from mlflow.store.db.db_types import DATABASE_ENGINES  # it takes a second

    if kind in DATABASE_ENGINES:
        _refuse_without_driver(store)
    elif colon and not store.startswith(("file:", "databricks")) and scheme not in _plugins():
        raise ValueError(
            f"--store is {store}; give mlflow.db, its folder, or the URI of a database that MLflow knows: "
            f"{', '.join(DATABASE_ENGINES)}"
        )
    return store


def _plugins() -> set[str]:
    return {plugin.name for plugin in entry_points(group="mlflow.tracking_store")}


def _refuse_without_driver(store: str) -> None:
    from sqlalchemy import make_url
    from sqlalchemy.exc import SQLAlchemyError

    shown = without_password(store)
    try:
        make_url(store).get_dialect().import_dbapi()
    except ImportError as error:
        raise ValueError(
            f"--store is {shown}, for which Python needs {error.name}, which is not installed; install it, or name "
            f"another driver, as in mysql+pymysql://"
        ) from None
    except (SQLAlchemyError, ValueError) as error:
        raise ValueError(
            f"--store is {shown}, which cannot be read ({error}); see SQLAlchemy's database URLs"
        ) from None
