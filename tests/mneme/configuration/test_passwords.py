"""What of a URI is a password, and what is kept and shown of it."""

import pytest

from mneme.configuration.passwords import passwordless, without_password


@pytest.mark.parametrize(
    ("uri", "kept", "shown"),
    [
        ("http://me:secret@host:5000/x", "http://me@host:5000/x", "http://***@host:5000/x"),
        ("postgresql+psycopg2://me:se@cr:et@host/db", "postgresql+psycopg2://me@host/db", "postgresql+psycopg2://***@host/db"),
        ("http://:secret@host", "http://@host", "http://***@host"),
        ("http://me@host", "http://me@host", "http://***@host"),
        ("http://host:5000", "http://host:5000", "http://host:5000"),
        ("sqlite:////a:b@c/mlflow.db", "sqlite:////a:b@c/mlflow.db", "sqlite:////***@c/mlflow.db"),
        ("http://me@corp.com:secret@host", "http://me@corp.com@host", "http://***@host"),
        ("databricks", "databricks", "databricks"),
        ("postgresql://host/db?user=me&password=secret", "postgresql://host/db?user=me",
         "postgresql://host/db?user=me&password=***"),
        ("mysql://host/db?passwd=secret&charset=utf8", "mysql://host/db?charset=utf8", "mysql://host/db?passwd=***&charset=utf8"),
        ("http://me:secret@host?access_token=secret", "http://me@host", "http://***@host?access_token=***"),
        ("https://host/x?API-Key=se=cret&a=b", "https://host/x?a=b", "https://host/x?API-Key=***&a=b"),
        ("https://host?pass%77ord=secret", "https://host", "https://host?pass%77ord=***"),
        ("https://host?X-Amz-Signature=secret&sig=secret", "https://host", "https://host?X-Amz-Signature=***&sig=***"),
        ("mssql+pyodbc:///?odbc_connect=DRIVER%3DX%3BPWD%3Dsecret%3B", "mssql+pyodbc:///",
         "mssql+pyodbc:///?odbc_connect=***"),
        ("postgresql://host/db?passfile=/a/b&sslkey=/c&keepalives=1", "postgresql://host/db?passfile=/a/b&sslkey=/c&keepalives=1",
         "postgresql://host/db?passfile=/a/b&sslkey=/c&keepalives=1"),
        ("sqlite:////srv/mlflow.db?timeout=5", "sqlite:////srv/mlflow.db?timeout=5", "sqlite:////srv/mlflow.db?timeout=5"),
    ],
)  # fmt: skip
def test_a_password_is_neither_kept_nor_shown(uri: str, kept: str, shown: str) -> None:
    assert passwordless(uri) == kept
    assert without_password(uri) == shown


def test_a_text_hides_those_of_all_uris_in_it_and_nothing_else() -> None:
    said = "no https://host?token=secret here, (http://me:secret@host/x?a=1&pwd=secret), is password=what right?"
    shown = "no https://host?token=*** here, (http://***@host/x?a=1&pwd=*** is password=what right?"
    assert without_password(said) == shown
