"""Paths that users give, and the run, checkpoint or folder that they mean; also why a folder cannot be written."""

import errno
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

CHECKPOINTS, CHECKPOINT_PREFIX, MANIFEST = "checkpoints", "step-", "manifest.json"
UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EBADF)
"""Error numbers by which network and user-space file systems say that they do not lock files or flush folders."""
_RESERVED = ("suites", "sweeps", "reports", "mlflow.db", "mlartifacts")  # what else lies under runs/
_LONGEST_NAME = 200  # bytes; file systems take 255, and files beside it get longer names
_ELSEWHERE = "name a folder that can be written, such as checkpoint.root=/tmp/runs"


class Place(NamedTuple):
    """The run and the checkpoint that a path given by the user means."""

    run: Path | None  # the run's folder; None: a checkpoint that lies in none
    checkpoint: Path | None  # the one checkpoint it names; None: the run as a whole


def locate(given: Path) -> Place:
    """The run and, if it is one, the checkpoint that a path means, however it is spelt and wherever one stands.

    It may be the run's folder, the folder of its checkpoints, one of these, or a file in one of them; a link to it, or
    relative to any of these. Nothing needs to be there.
    """
    path = local_path(given)
    real = path.resolve()
    if real.is_file():
        path = real = real.parent
    if is_run(real):
        return Place(path if path.name and ".." not in path.parts else shown(real), None)
    if (real / MANIFEST).exists() or (real.name.startswith(CHECKPOINT_PREFIX) and real.parent.name == CHECKPOINTS):
        return Place(shown(real.parent.parent) if real.parent.name == CHECKPOINTS else None, shown(real))
    if real.name == CHECKPOINTS and real.exists():
        return Place(shown(real.parent), None)
    return Place(path, None)


def is_run(path: Path) -> bool:
    """True if a folder is a run's, as its checkpoints or its configuration tell."""
    return (path / CHECKPOINTS).is_dir() or ((path / "config.yaml").exists() and not (path / MANIFEST).exists())


def shown(path: Path) -> Path:
    """Relative to where one stands, if it lies below."""
    try:
        here = Path.cwd()
    except OSError:  # it is gone
        return path
    return path.relative_to(here) if here in path.parents else path


def pasted(path: Path) -> str:
    """A path as a shell takes it."""
    return shlex.quote(str(shown(path)))


def local_path(given: str | Path) -> Path:
    """A path on this machine with ~ and $NAME replaced; $NAME stays where something has the very name that was given.

    Raises:
        ValueError: it is a URL, or names a user or variable that is not known, or cannot be a path.
    """
    literal = os.path.lexists(given)
    text = str(given) if literal else os.path.expandvars(str(given))
    if re.match(r"^[a-zA-Z][a-zA-Z0-9+.-]+:/", text) and not os.path.exists(text):
        raise ValueError(
            f"{given} is no folder of this machine; give one, and copy what it holds from there, or mount it"
        )
    if not literal and (unknown := re.search(r"\$(\w+|\{\w+\})", text)):
        raise ValueError(f"{given} names {unknown[0]}, which is not set; set it, or write the path out")
    if "\0" in text:
        raise ValueError(f"{str(given)!r} is no path: it holds a NUL character; leave that out")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError(f"{given} names a home directory that is not known; write the path out") from None


def no_folder(name: str) -> str | None:
    """Why no folder can have a name, whatever the system; None if one can."""
    if not name:
        return "it is empty, and a folder has a name"
    if not name.strip("."):
        return "it is dots alone, which mean a folder that is there already"
    return "it names a folder, so it holds no slashes" if "/" in name or "\\" in name else None


def checked_name(key: str, name: str) -> str:
    """A name that can be a folder's, and be given to commands.

    Raises:
        ValueError: it cannot, and why.
    """
    length, why_none = len(name.encode(errors="replace")), no_folder(name)
    unseen = [letter for letter in name if not letter.isprintable()]
    for wrong, why in (
        (bool(why_none), why_none),
        (bool(unseen), f"it holds {''.join(unseen[:1])!r}, which cannot be shown or typed"),
        (name != name.strip(), "it begins or ends with a space"),
        (name.startswith(("-", "~")), "commands would take it for an option or a home directory"),
        ("$" in name, "commands would take what follows its $ for a variable"),
        (length > _LONGEST_NAME, f"it is {length} bytes long, and {_LONGEST_NAME} is the most"),
        (name.lower() in _RESERVED, "Mneme keeps something else under that name"),
    ):
        if wrong:
            shown = name if len(name) <= 40 else f"{name[:40]}…"
            raise ValueError(f"{key} is {shown!r}; {why}; choose another")
    return name


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write at `path` into a sentence with a remedy.

    Raises:
        OSError: without a number, its message for the user.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(_explanation(path, error)) from None


def _explanation(path: Path, error: OSError) -> str:
    for part in (path, *path.parents):
        if os.path.islink(part) and not os.path.exists(part):
            return f"{part} is a link to {os.readlink(part)}, which is not there; mount or make that, or {_ELSEWHERE}"
        if os.path.exists(part):
            if not os.path.isdir(part):
                return f"{path} cannot be made, as {part} is a file; move that, or {_ELSEWHERE}"
            break
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{path} cannot be written, as its disk is full ({error.strerror}); make room, or {_ELSEWHERE}"
    return f"{path} cannot be written ({error.strerror}); {_ELSEWHERE}"
