"""Files in a run's folder, opened so that nothing in their place leads elsewhere: it may come from a stranger."""

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path


def opened(path: Path, flags: int) -> int:
    """A descriptor of a file itself.

    Raises:
        OSError: it is a link or anything else but a file, as one sentence; or it cannot be opened.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(f"{path} is a link, which may lead anywhere; remove it") from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is no file; remove it")
    return descriptor


def read_text(path: Path) -> str:
    """What a file holds; raises as `opened` does."""
    with os.fdopen(opened(path, os.O_RDONLY), encoding="utf-8") as file:
        return file.read()


def replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    with suppress(FileNotFoundError):
        part.unlink()
    with os.fdopen(opened(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "w") as file:
        file.write(text)
    os.replace(part, path)
