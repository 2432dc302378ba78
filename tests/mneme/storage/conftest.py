"""A bucket of an S3 server in this process."""

from collections.abc import Iterator
from itertools import count

import pytest

from tests.mneme.storage.s3_server import S3Server, s3_server

_buckets = count()


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture
def bucket(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of an empty one, with credentials for it in the environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    name = f"bucket{next(_buckets)}"
    server.files().create_dir(name)
    yield name
    server.hook = lambda method, path: False
