"""The dashboard: which stores it shows, and what it says of the others."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mneme.reporting.tracking import dashboard, database
from mneme.reporting.tracking.dashboard import serve_dashboard, store_uri


def test_a_file_its_folder_and_its_uri_name_the_same_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "what? 100%"
    folder.mkdir()
    with closing(sqlite3.connect(folder / "mlflow.db")):
        (folder / "mlflow.db").touch()
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/what%3F 100%25/mlflow.db"
    for store in ("what? 100%", "what? 100%/mlflow.db", str(folder), "sqlite:///what%3F 100%25/mlflow.db", uri):
        assert store_uri(store) == uri


@pytest.mark.parametrize(
    ("store", "sentence"),
    [
        ("http://127.0.0.1:5000", "a server, which serves its own pages: open that address in a browser"),
        ("nowhere/mlflow.db", "where there is nothing; give mlflow.db, its folder, or a store's URI"),
        (".", "MLflow keeps no stores in plain folders any more; use sqlite:///./mlflow.db"),
        ("file:///srv/mlruns", "MLflow keeps no stores in plain folders any more"),
        ("sqlite://mlflow.db", "a store in SQLite is a file"),
        ("mysql://me:secret@host/runs", "--store is mysql://***@host/runs, for which Python needs MySQLdb"),
        ("postgresql://me@host/runs", "for which Python needs psycopg"),
        ("mysql+nonsense://host/runs", "which cannot be read"),
        ("nonsense://host", "or the URI of a database that MLflow knows: postgresql, mysql, sqlite, mssql"),
    ],
)
def test_what_cannot_be_shown_is_said_with_the_reason(
    store: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as refused:
        serve_dashboard(store, 5000)
    assert sentence in str(refused.value)
    assert "secret" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_the_server_gets_a_store_that_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared: list[Path] = []
    commands: list[list[str]] = []
    monkeypatch.setattr(database, "prepare", prepared.append)
    monkeypatch.setattr(dashboard.os, "execve", lambda program, arguments, environment: commands.append(arguments))
    monkeypatch.chdir(tmp_path)
    serve_dashboard("sqlite:///runs/mlflow.db", 0)
    assert prepared == [tmp_path / "runs" / "mlflow.db"]
    assert commands[0][commands[0].index("--backend-store-uri") + 1] == f"sqlite:///{tmp_path}/runs/mlflow.db"


def test_a_folder_that_a_uri_must_quote_is_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "what?"
    here.mkdir()
    commands: list[Any] = []
    monkeypatch.setattr(database, "prepare", lambda file: None)
    monkeypatch.setattr(dashboard.os, "execve", lambda program, *rest: commands.append(rest))
    monkeypatch.chdir(here)
    serve_dashboard("sqlite:///mlflow.db?timeout=5", 0)
    assert commands[0][0][5] == "sqlite:///mlflow.db?timeout=5"
    assert Path(os.getcwd()) == here
