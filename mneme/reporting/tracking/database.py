"""MLflow's SQLite file, made and brought up to date by one process at a time.

MLflow itself looks whether there are tables and makes them if not; of two processes that do so at once, one breaks what
the other makes. Here that is done under a lock, and a new file is made beside its place and moved there when it is
whole, so that a process killed meanwhile leaves nothing half made.

Called where MLflow may be imported: in the tracking thread, and before the dashboard.
"""

import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mneme.reporting.tracking.settings import absolute_uri
from mneme.storage.files import opened

LOCK_SECONDS = 120.0  # making a store takes some seconds, on a loaded machine tens of them
_POLL_SECONDS = 0.1
_ANOTHER = "name another file, or move this one away"

logger = logging.getLogger("mneme")


def prepare(file: Path) -> None:
    """Make MLflow's SQLite store, or bring it up to date, unless it is whole.

    Raises:
        OSError: it cannot be made there, or another process has been making it for `LOCK_SECONDS`, or there is another
            file, which stays as it is.
    """
    from sqlalchemy.exc import DatabaseError

    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        _refuse_foreign(file)
        if _is_whole(file):
            return
        with one_at_a_time(file.with_name(f".{file.name}.lock")):
            if _is_whole(file):
                return
            if not file.exists() or file.stat().st_size == 0:
                _make(file)
            else:
                _mend(file)
    except (sqlite3.DatabaseError, DatabaseError) as error:
        reason = getattr(error, "orig", None) or error
        raise OSError(f"{file} cannot be used as MLflow's store ({reason}); {_ANOTHER}") from None


def connect(uri: str) -> None:
    """Open a SQLite store by its URI for MLflow, which would make a folder of the quoted name first."""
    from mlflow.store.db.utils import create_sqlalchemy_engine
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    if "%" in uri and uri not in SqlAlchemyStore._engine_map:
        SqlAlchemyStore._engine_map[uri] = create_sqlalchemy_engine(uri)


@contextmanager
def one_at_a_time(lock: Path, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Hold a lock file that others wait for; a folder in its place where the file system has no flock.

    Raises:
        TimeoutError: another process held it for `seconds`.
        OSError: it is a link, or cannot be made.
    """
    with os.fdopen(opened(lock, os.O_RDWR | os.O_CREAT), "r+") as file:
        deadline, folder = time.monotonic() + seconds, lock.with_suffix(".held")
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                pass
            except OSError:  # no flock here
                if _took(folder, seconds):
                    break
            if time.monotonic() > deadline:
                raise TimeoutError(f"another process has held {lock} for {seconds:g} s")
            time.sleep(_POLL_SECONDS)
        try:
            yield
        finally:
            with suppress(OSError):
                folder.rmdir()


def _took(folder: Path, seconds: float) -> bool:
    """True if the folder could be made, as a lock; one older than anybody would hold it is removed for the next try."""
    try:
        folder.mkdir()
    except FileExistsError:
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > seconds:
                folder.rmdir()
        return False
    return True


def _refuse_foreign(file: Path) -> None:
    """Keep off a database that is somebody else's.

    Raises:
        OSError: it is.
        sqlite3.DatabaseError: it is none, or cannot be read.
    """
    if not file.exists() or file.stat().st_size == 0:
        return
    with closing(sqlite3.connect(file, timeout=LOCK_SECONDS)) as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if tables and "alembic_version" not in tables and not {"experiments", "runs"} <= tables:
        raise OSError(f"{file} is a SQLite file, but not MLflow's; {_ANOTHER}")


def _is_whole(file: Path) -> bool:
    """True if the file has the tables and revision of this MLflow, or an unknown revision, which MLflow will report."""
    from alembic.util.exc import CommandError
    from mlflow.store.db import utils

    if not file.exists() or file.stat().st_size == 0:
        return False
    with _engine(file) as engine:
        revision = utils._get_schema_version(engine)
        if revision == utils._get_latest_schema_revision():
            return utils._all_tables_exist(engine)
    try:
        _scripts().get_revision(revision or "base")
    except CommandError:
        return True
    return False


def _make(file: Path, fill_from: Path | None = None) -> None:
    """Make a whole store at `file`, with the rows of a broken one if given.

    Raises:
        sqlite3.Error: rows of the broken one do not fit.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    uri = absolute_uri(f"sqlite:///{quote(str(part))}")
    try:
        connect(uri)
        SqlAlchemyStore(uri, (file.parent / "mlartifacts").as_uri())
        SqlAlchemyStore._engine_map.pop(uri).dispose()
        if fill_from is None:
            os.replace(part, file)
        else:
            _copy_rows(fill_from, part)
            _overwrite(file, part)
    finally:
        part.unlink(missing_ok=True)


def _mend(file: Path) -> None:
    """Migrate an older store; one that was left half made is made anew, with its rows. What was there is kept."""
    from mlflow.store.db.utils import _upgrade_db

    kept = file.with_name(f"{file.name}.{datetime.now():%Y%m%d-%H%M%S}")
    _overwrite(kept, file)
    try:
        with _engine(file) as engine:
            _upgrade_db(engine)
            whole = _is_whole(file)
    except Exception:  # whichever step of a migration finds what it would make
        whole = False
    if not whole:
        _make(file, fill_from=kept)
    logger.warning(
        "MLflow's store %s was of an older MLflow or left half made; it is mended, and what it was is kept as %s.",
        file,
        kept.name,
    )


def _copy_rows(source: Path, target: Path) -> None:
    """Copy the rows of all tables and columns that both files have."""
    with closing(sqlite3.connect(target)) as database:
        database.execute("ATTACH ? AS broken", (str(source),))
        tables = {name for (name,) in database.execute("SELECT name FROM broken.sqlite_master WHERE type = 'table'")}
        for (table,) in database.execute("SELECT name FROM main.sqlite_master WHERE type = 'table'").fetchall():
            if table in tables and not table.startswith(("alembic_", "sqlite_")):
                columns = ", ".join(
                    f'"{name}"' for name in _columns(database, "main", table) & _columns(database, "broken", table)
                )
                database.execute(
                    f'INSERT OR REPLACE INTO main."{table}" ({columns}) SELECT {columns} FROM broken."{table}"'
                )
        database.commit()


def _columns(database: sqlite3.Connection, schema: str, table: str) -> set[str]:
    return {
        row[1] for row in database.execute(f'PRAGMA {schema}.table_xinfo("{table}")') if not row[6]
    }  # none computed


def _overwrite(target: Path, source: Path) -> None:
    """Copy a database, whole or not at all, into the same file, which others may have open."""
    with closing(sqlite3.connect(source)) as database, closing(sqlite3.connect(target, timeout=LOCK_SECONDS)) as copy:
        database.backup(copy)


@contextmanager
def _engine(file: Path) -> Iterator[Any]:
    from mlflow.store.db.utils import create_sqlalchemy_engine

    engine = create_sqlalchemy_engine(absolute_uri(f"sqlite:///{quote(str(file))}"))
    try:
        yield engine
    finally:
        engine.dispose()


def _scripts() -> Any:
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _get_alembic_config

    return ScriptDirectory.from_config(_get_alembic_config(""))


def database_of(client: Any) -> Any:
    """The database behind a store that is one; None for a server."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    store = client._tracking_client.store
    return store if isinstance(store, SqlAlchemyStore) else None


def delete_metrics(store: Any, run_id: str, keys: Sequence[str], step: int) -> None:
    """Delete from a database the values of metrics after a step, and set which is the latest."""
    from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlMetric

    metric: Any = SqlMetric
    with store.ManagedSessionMaker(read_only=False) as session:
        for key in keys:
            of_key = session.query(metric).filter_by(run_uuid=run_id, key=key)
            of_key.filter(metric.step > step).delete()
            session.query(SqlLatestMetric).filter_by(run_uuid=run_id, key=key).delete()
            last = of_key.order_by(metric.step.desc(), metric.timestamp.desc(), metric.value.desc()).first()
            if last:
                names = ("key", "value", "timestamp", "step", "is_nan", "run_uuid")
                session.add(SqlLatestMetric(**{name: getattr(last, name) for name in names}))
