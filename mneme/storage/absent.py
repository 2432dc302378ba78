"""Paths that were taken for a run: what is there instead, and which run may be meant."""

import difflib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from mneme.storage.paths import is_run, shown
from mneme.storage.settings import CheckpointSettings

_ALIKE = 0.6  # of two names, as difflib measures it


def no_run_at(path: Path) -> str:
    """A sentence for a path at which there is no run; it names one that is spelt alike, or lies below, if there is."""
    path = shown(path)
    if (meant := _alike(path)) is not None:
        return f"there is no run at {path}; did you mean {meant}?"
    if (below := next(_runs_in(path), None)) is not None:
        return f"there is no run at {path}, but there are some below it; name one, such as {below}"
    return f"there is no run at {path}; name a run's folder, or list those of a folder with: mneme runs"


def _alike(path: Path) -> Path | None:
    """The run beside a path, or in the usual folder, whose name is the most like it; None if none is near."""
    if path.is_dir():
        return None
    for folder in (path.parent, Path(CheckpointSettings.root)):
        names = [run.name for run in _runs_in(folder)]
        if near := difflib.get_close_matches(path.name, names, n=1, cutoff=_ALIKE):
            return folder / near[0]
    return None


def _runs_in(folder: Path) -> Iterator[Path]:
    with suppress(OSError):
        yield from (path for path in sorted(folder.iterdir()) if path.is_dir() and is_run(path))
