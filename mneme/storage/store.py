"""A folder of an object store or of a shared file system, named by a URI, through `pyarrow.fs`.

Whatever goes wrong is a StoreError with a sentence, within a bounded time.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qsl, unquote, urlsplit

import pyarrow as pa
from pyarrow import fs

from mneme.distributed.in_time import in_time
from mneme.storage.uri import fault_of, split_options

_CONNECT, _REQUEST, _ATTEMPTS = 3.0, 10.0, 3  # seconds, seconds, and tries of one request
_ANSWER = 20.0  # seconds in which a store must show that it can be used
_CHUNK = 4 << 20  # bytes
_S3_VARIABLES = {"AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"}


class StoreError(OSError):
    """A store that cannot be used; the message is for the user."""


class NotThereError(StoreError):
    """A file that is not in the store."""


def open_store(uri: str, *, writing: bool) -> tuple["Store", dict[str, int]]:
    """A store that has shown that it can be used, and the files in it.

    Args:
        uri: of a folder, which need not be there.
        writing: whether a file can be written and removed there, too.

    Raises:
        StoreError: it cannot be reached, or not with the credentials at hand; one sentence.
    """
    if fault := fault_of(uri):
        raise StoreError(f"{uri} names no store; {fault}")

    def opened() -> tuple[Store, dict[str, int]]:
        store = Store(uri)
        if writing:
            store.try_out()
        return store, store.files()

    try:
        return in_time(opened, _ANSWER)
    except TimeoutError as error:
        raise StoreError(f"{split_options(uri)[0]} cannot be used ({error})") from None


class Store:
    """A folder that may not be there yet; see `open_store`. Names are of files, relative to it, with slashes."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.moved = 0  # bytes, either way
        with self._explained():
            self._fs, self._root = _open(uri)

    def files(self) -> dict[str, int]:
        """Every file there is, and its size in bytes."""
        with self._explained():
            found = self._fs.get_file_info(fs.FileSelector(self._root, recursive=True, allow_not_found=True))
        start = len(self._root) + 1
        return {info.path[start:]: info.size for info in found if info.type == fs.FileType.File}

    def read(self, name: str, most: int) -> bytes:
        """A file of at most so many bytes.

        Raises:
            ValueError: it is larger.
        """
        with self._explained(), self._fs.open_input_stream(self._at(name)) as file:
            data: bytes = file.read(most + 1)
        if len(data) > most:
            raise ValueError(f"{name} has more than {most:,} bytes")
        return data

    def fetch(self, name: str, target: Path) -> None:
        """Copy a file from there."""
        with self._explained(), self._fs.open_input_stream(self._at(name)) as source, target.open("xb") as file:
            while chunk := source.read(_CHUNK):
                file.write(chunk)
                self.moved += len(chunk)

    def put(self, name: str, source: BinaryIO) -> None:
        """Copy a file there, or replace it. One whose copying breaks off may be there in part."""
        with self._explained():
            self._fs.create_dir(self._at(name).rpartition("/")[0], recursive=True)
            with self._fs.open_output_stream(self._at(name)) as target:
                while chunk := source.read(_CHUNK):
                    target.write(chunk)
                    self.moved += len(chunk)

    def remove(self, folder: str, first: str) -> None:
        """Remove a folder, beginning with one of its files if that is there."""
        with self._explained():
            if self._fs.get_file_info(self._at(f"{folder}/{first}")).type == fs.FileType.File:
                self._fs.delete_file(self._at(f"{folder}/{first}"))
            self._fs.delete_dir(self._at(folder))

    def try_out(self) -> None:
        """Write a file and remove it."""
        with self._explained():
            new = isinstance(self._fs, fs.LocalFileSystem) and not os.path.exists(self._root)
            self._fs.create_dir(self._root, recursive=True)
            if new:  # its owner's alone, as a run's folder is
                os.chmod(self._root, 0o700)
            with self._fs.open_output_stream(self._at(".probe")) as probe:
                probe.write(b"mneme")
            self._fs.delete_file(self._at(".probe"))

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what a store says into one sentence."""
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            reason = " ".join(str(error).split())
            kind = NotThereError if isinstance(error, FileNotFoundError) else StoreError
            raise kind(f"{split_options(self.uri)[0]} cannot be used ({reason[:300]})") from None


def _open(uri: str) -> tuple[Any, str]:
    """A file system, and the folder in it."""
    parts = urlsplit(uri)
    options: dict[str, Any] = dict(parse_qsl(parts.query))
    folder = unquote(parts.netloc + parts.path).rstrip("/")
    if parts.scheme == "s3":
        known = options.keys() & {"region", "endpoint_override"} or os.environ.keys() & _S3_VARIABLES
        if not known:
            options["region"] = fs.resolve_s3_region(parts.netloc)
        retries = fs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS)
        limits = {"connect_timeout": _CONNECT, "request_timeout": _REQUEST, "retry_strategy": retries}
        return fs.S3FileSystem(**limits, **options), folder
    if parts.scheme == "gs":
        return fs.GcsFileSystem(retry_time_limit=timedelta(seconds=_REQUEST), **options), folder
    found, folder = fs.FileSystem.from_uri(uri)
    return found, folder.rstrip("/")
