"""Where runs are recorded: what a store's URI means, whatever the folders are called."""

from pathlib import Path

import pytest

from mneme.reporting.tracking.settings import TrackingSettings, absolute_uri, fault_of, sqlite_file

ODD = "what? #1 100% 50%25 ü & a=b;c"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"uri": ""}, "tracking.uri is empty"),
        ({"experiment": ""}, "experiment"),
        ({"registered_model_name": "a/b"}, "it is part of models:/NAME/VERSION"),
        ({"uri": "runs/mlruns"}, "no stores in plain folders any more; use sqlite:///runs/mlruns/mlflow.db"),
        ({"uri": "runs/my mlflow.db"}, "use sqlite:///runs/my mlflow.db"),
        ({"uri": "file:///srv/mlruns"}, "use sqlite:////srv/mlruns/mlflow.db"),
        ({"uri": "sqlite://runs/mlflow.db"}, "sqlite:///runs/mlflow.db, or sqlite:////full/path"),
        ({"uri": "sqlite:///:memory:"}, "a store in SQLite is a file"),
        ({"uri": "sqlite:///what?/mlflow.db"}, "in the name of a file or folder write %3F"),
    ],
)
def test_settings_name_what_is_wrong(changes: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrackingSettings(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite:///a b/mlflow.db", "sqlite:////srv/mlflow.db?timeout=5", "sqlite+pysqlite:///x.db", "databricks",
        "databricks://profile", "http://127.0.0.1:5000", "mysql+pymysql://user:secret@host/db?charset=utf8mb4",
        "postgresql://host/db", "plugin://anything",
    ],
)  # fmt: skip
def test_what_may_be_a_store_is_taken(uri: str) -> None:
    assert fault_of(uri) is None
    if sqlite_file(uri) is None:
        assert absolute_uri(uri) == uri


def test_a_relative_file_is_found_again_below_a_folder_of_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / ODD
    here.mkdir()
    monkeypatch.chdir(here)
    uri = absolute_uri("sqlite:///runs/mlflow.db?timeout=5")
    monkeypatch.chdir(tmp_path)
    assert sqlite_file(uri) == here / "runs" / "mlflow.db"
    assert absolute_uri(uri) == uri
    assert uri.endswith("/runs/mlflow.db?timeout=5")
    from sqlalchemy import make_url

    assert make_url(uri).database == str(here / "runs" / "mlflow.db")


def test_the_home_folder_may_be_meant(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert sqlite_file("sqlite:///~/mlflow.db") == tmp_path / "mlflow.db"


def test_a_folder_whose_name_is_no_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "caf\udce9"
    here.mkdir()
    monkeypatch.chdir(here)
    with pytest.raises(ValueError, match="whose name is no text"):
        absolute_uri("sqlite:///mlflow.db")
