"""MLflow's SQLite file: made once by any number of processes, mended where an earlier one was left half made."""

import errno
import fcntl
import json
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mneme.reporting.tracking import database
from mneme.reporting.tracking.groups import stored_name
from mneme.reporting.tracking.settings import absolute_uri

ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole store, in a folder that a URI must quote."""
    file = tmp_path_factory.mktemp("store") / "what? #1 100% 50%25 ü" / "mlflow.db"
    database.prepare(file)
    return file


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(made, tmp_path / "mlflow.db"))


def client_of(file: Path) -> Any:
    from mlflow.tracking import MlflowClient

    uri = absolute_uri("sqlite:///" + str(file).replace("%", "%25").replace("?", "%3F"))
    database.connect(uri)
    return MlflowClient(tracking_uri=uri)


def test_a_store_is_made_where_it_is_said_and_nowhere_else(made: Path) -> None:
    client = client_of(made)
    assert client.get_run(client.create_run("0").info.run_id).info.status == "RUNNING"
    assert sorted(path.name for path in made.parent.iterdir()) == [".mlflow.db.lock", "mlflow.db"]
    assert [path.name for path in made.parent.parent.iterdir()] == [made.parent.name]


def test_a_whole_store_is_left_alone(made: Path) -> None:
    before = made.stat()
    database.prepare(made)
    assert made.stat() == before


@pytest.mark.slow
def test_a_store_that_was_left_half_made_is_mended_with_its_rows(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    client = client_of(copy)
    run_id = client.create_run(client.create_experiment("mneme")).info.run_id
    client.log_metric(run_id, "return", 0.5, step=3)
    with closing(sqlite3.connect(copy)) as broken:  # as after two processes that made it at once
        broken.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
        broken.execute("DROP TABLE webhook_events")
        broken.commit()
    with caplog.at_level(logging.WARNING, "mneme"):
        database.prepare(copy)
    (kept,) = copy.parent.glob("mlflow.db.2*")
    assert f"it is mended, and what it was is kept as {kept.name}" in caplog.text
    again = client_of(copy)
    assert again.get_run(run_id).data.metrics == {"return": 0.5}
    assert again.get_experiment_by_name("mneme").experiment_id == again.get_run(run_id).info.experiment_id
    again.create_experiment("another")
    with closing(sqlite3.connect(kept)) as database_:
        assert database_.execute("SELECT version_num FROM alembic_version").fetchall() == [("451aebb31d03",)]


@pytest.mark.slow
def test_a_store_that_a_kill_left_half_made_is_migrated(copy: Path) -> None:
    copy.unlink()
    from mlflow.store.tracking.dbmodels.initial_models import Base

    with database._engine(copy) as engine:
        Base.metadata.create_all(engine)
    database.prepare(copy)
    client_of(copy).create_experiment("mneme")


def test_a_store_of_a_later_mlflow_is_left_alone(copy: Path) -> None:
    with closing(sqlite3.connect(copy)) as later:
        later.execute("UPDATE alembic_version SET version_num = 'unheard_of'")
        later.commit()
    before = copy.read_bytes()
    database.prepare(copy)
    assert copy.read_bytes() == before


def test_a_file_that_is_not_mlflows_is_refused_and_left_alone(tmp_path: Path) -> None:
    other, text, gone = (tmp_path / name for name in ("other.db", "notes.db", "gone.db"))
    with closing(sqlite3.connect(other)) as tables:
        tables.execute("CREATE TABLE runs (distance REAL)")
        tables.commit()
    text.write_text("not a database at all, " * 100)
    with closing(sqlite3.connect(gone)) as broken:  # its pages are lost
        broken.execute("CREATE TABLE alembic_version (version_num TEXT)")
        broken.commit()
    gone.write_bytes(gone.read_bytes()[:4096] + bytes(4096))
    for file, why in (
        (other, "is a SQLite file, but not MLflow's; name another"),
        (text, r"cannot be used as MLflow's store \(file is not a database\); name another"),
        (gone, r"cannot be used as MLflow's store \(database disk image is malformed\); name another"),
    ):
        before = file.read_bytes()
        with pytest.raises(OSError, match=f"^{file} {why}"):
            database.prepare(file)
        assert file.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gone.db", "notes.db", "other.db"]


def test_a_lock_that_is_a_link_is_refused_and_its_target_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / ".mlflow.db.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match=r"\.mlflow\.db\.lock is a link, which may lead anywhere; remove it$"):
        database.prepare(tmp_path / "mlflow.db")
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.parametrize("flock", [True, False])
def test_one_process_at_a_time_holds_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flock: bool) -> None:
    if not flock:

        def unsupported(*_: Any) -> None:
            raise OSError(errno.ENOTSUP, "Operation not supported")

        monkeypatch.setattr(fcntl, "flock", unsupported)
    lock = tmp_path / ".lock"
    held = pytest.raises(TimeoutError, match="another process has held")
    with database.one_at_a_time(lock), held, database.one_at_a_time(lock, 0.05):
        pytest.fail("two hold it")
    with database.one_at_a_time(lock, 0.05):
        pass
    if not flock:  # one that a killed process left is taken over
        lock.with_suffix(".held").mkdir()
        os.utime(lock.with_suffix(".held"), (0, time.time() - 10))
        with database.one_at_a_time(lock, 5.0):
            pass


TRACK = """
import json, sys, time
from pathlib import Path
from mneme.storage.run_folder import RunFolder
from mneme.reporting.tracking.store_run import Identity
from mneme.reporting.tracking.tracker import Tracker
from mneme.reporting.tracking.settings import TrackingSettings, absolute_uri
name = sys.argv[1]
folder = RunFolder(Path("runs") / name)
folder.create()
time.sleep(max(0.0, float(sys.argv[2]) - time.time()))
tracker = Tracker(TrackingSettings(uri=absolute_uri(TrackingSettings.uri), system_metrics=False),
                  Identity(name, folder.path.resolve(), False), params=dict.fromkeys(map(str, range(80)), name))
tracker.follow(folder.metrics)
for step in range(50):
    folder.append(step, {"return": float(step), "kl": 0.5})
tracker.close("FINISHED", timeout=240)
"""


@pytest.mark.slow
def test_runs_that_start_at_the_same_moment_in_a_fresh_folder_are_all_recorded(tmp_path: Path) -> None:
    names = [f"run{i}" for i in range(4)]
    at = str(time.time() + 3)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    runs = [
        subprocess.Popen([sys.executable, "-c", TRACK, name, at], cwd=tmp_path, env=environment, stderr=subprocess.PIPE)
        for name in names
    ]
    assert [(run.communicate()[1], run.returncode) for run in runs] == [(b"", 0)] * len(names)
    client = client_of(tmp_path / "runs" / "mlflow.db")
    assert sorted(experiment.name for experiment in client.search_experiments()) == ["Default", "mneme"]
    found = client.search_runs([client.get_experiment_by_name("mneme").experiment_id])
    assert sorted(run.info.run_name for run in found) == names
    for run in found:
        assert (run.info.status, len(run.data.params)) == ("FINISHED", 80)
        for key in ("return", "kl"):
            points = client.get_metric_history(run.info.run_id, stored_name(key))
            assert sorted(point.step for point in points) == list(range(50))
        lines = (tmp_path / "runs" / run.info.run_name / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(50))
