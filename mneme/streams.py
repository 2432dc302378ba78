"""Output that costs only itself: streams that may be closed, full, gone or short of letters, and never raise."""

import ctypes
import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import IO

_PLAIN = str.maketrans({"–": "-", "•": "*", "…": "...", "×": "x", "·": "-", "Δ": "d", "│": "|"})
_GONE = (errno.EPIPE, errno.EIO, errno.EBADF)  # the reader, the terminal, the descriptor
_STANDARD = (0, 1, 2)


class Forgiving(io.TextIOBase):
    """A text stream in front of another, whose failures it keeps to itself.

    What the encoding cannot hold is written in plainer letters. While a disk is full, lines are lost; once the reader
    or the terminal is gone, everything is.

    Args:
        stream: where to write; None, as Python has it for a closed descriptor, takes nothing.
    """

    def __init__(self, stream: IO[str] | None) -> None:
        self._stream = stream
        self.error: Exception | None = None  # the last one, for commands whose output is their result

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """That of the stream behind."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Write what can be written, and say that all of it was."""
        try:
            if self._stream is not None:
                try:
                    self._stream.write(text)
                except UnicodeEncodeError:
                    plain = text.translate(_PLAIN).encode(self.encoding, "replace")
                    self._stream.write(plain.decode(self.encoding))
        except Exception as error:
            self._failed(error)
        return len(text)

    def flush(self) -> None:
        """Flush, where that can be done."""
        try:
            if self._stream is not None:
                self._stream.flush()
        except Exception as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        self.error = error
        if isinstance(error, ValueError) or getattr(error, "errno", None) in _GONE:  # ValueError: it was closed
            self._stream = None

    def writable(self) -> bool:
        """Always."""
        return True

    def isatty(self) -> bool:
        """True if it is a terminal; false if the stream cannot tell."""
        try:
            return self._stream is not None and self._stream.isatty()
        except Exception:
            return False

    def fileno(self) -> int:
        """The descriptor of the stream behind, if it has one."""
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return self._stream.fileno()


@contextmanager
def forgiving_output() -> Iterator[Forgiving]:
    """Standard output and standard error that cannot end the program; yields the former.

    What could not be written in the end is dropped, so that the interpreter, which flushes once more when it ends, has
    nothing to complain of. Descriptors that were closed are opened on nothing: the next file would take their number,
    and what others print would end in it.
    """
    for descriptor in _STANDARD:
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    forgiving = Forgiving(sys.stdout), Forgiving(sys.stderr)
    sys.stdout, sys.stderr = forgiving
    try:
        yield forgiving[0]
    finally:
        sys.stdout, sys.stderr = before
        for stream, wrapped in zip(before, forgiving, strict=True):
            wrapped.flush()
            if wrapped.error is not None:
                _give_up(stream)


@contextmanager
def kept_for_the_result(wanted: bool) -> Iterator[None]:
    """Let whatever is printed within go to standard error, be it by an environment, a process of its or a library in C,
    so that standard output holds the result alone.

    Args:
        wanted: otherwise nothing is changed.
    """
    if not wanted:
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        with redirect_stdout(sys.stderr):
            yield
    finally:
        with suppress(Exception):
            ctypes.CDLL(None).fflush(None)  # what such a library still holds back
        os.dup2(kept, 1)
        os.close(kept)


def _give_up(stream: IO[str] | None) -> None:
    with suppress(Exception):
        if stream is not None and stream.fileno() in _STANDARD:
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, stream.fileno())
            os.close(nothing)
