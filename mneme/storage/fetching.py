"""Runs that are named by the URI of their mirror: brought home into `runs/NAME`, and used there as any other."""

import fcntl
import glob
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from mneme.storage.checkpoint import (
    MOST_JSON,
    Checkpoint,
    CheckpointError,
    find_checkpoint,
    load_checkpoint,
    parse_json,
    put,
    step_of,
)
from mneme.storage.mirror import BESIDE, Files, whole_checkpoints
from mneme.storage.paths import CHECKPOINT_PREFIX, CHECKPOINTS, MANIFEST, checked_name, explained
from mneme.storage.run_folder import RunFolder
from mneme.storage.settings import CheckpointSettings
from mneme.storage.store import NotThereError, Store, open_store
from mneme.storage.uri import as_uri, split_options

_log = logging.getLogger(__name__)

_RANDOM, _PART = "?" * 8, ".part"  # of the name of a folder for what comes: tempfile's own characters, and its end
_ROUNDS = 3  # of looking for a checkpoint, as a run that goes on may remove those that were there


class Source(NamedTuple):
    """The run, and perhaps the checkpoint, that a URI names."""

    uri: str  # of the run
    name: str  # of the run
    step: int | None  # of the one checkpoint; None: the newest


def source_of(given: Path) -> Source | None:
    """What a URI given in place of a path names; None if it is a path.

    Raises:
        CheckpointError: no run can have its name.
    """
    uri = as_uri(given)
    if uri is None:
        return None
    folder, options = split_options(uri)
    run, _, checkpoint = folder.partition(f"/{CHECKPOINTS}/{CHECKPOINT_PREFIX}")
    run = run.removesuffix(f"/{CHECKPOINTS}")
    step = checkpoint.partition("/")[0]
    try:
        name = checked_name("the run's name", run.rpartition("/")[2])
    except ValueError as error:
        raise CheckpointError(f"{uri} names no run: {error}") from None
    return Source(run + options, name, int(step) if step.isdecimal() else None)


def brought_home(given: Path) -> Path:
    """A path that is used as it is, or what a URI in its place names, in a folder of this machine.

    Raises:
        CheckpointError: there is no whole checkpoint, or the folder holds another run, or more of this one.
        ConfigError: another process trains in the folder.
        OSError: the folder cannot be written.
    """
    source = source_of(given)
    if source is None:
        return given
    folder = RunFolder(Path(CheckpointSettings.root) / source.name)
    try:
        store, files = open_store(source.uri, writing=False)
    except OSError as error:
        raise CheckpointError(str(error)) from None
    if not folder.path.exists():
        with explained(folder.path):
            folder.path.parent.mkdir(parents=True, exist_ok=True)
        return _found(store, files, source, folder, None)
    with closing(folder.lock()):
        try:
            here = find_checkpoint(folder.path)
        except CheckpointError:
            raise CheckpointError(
                f"{folder} exists and holds no whole checkpoint of {source.uri}; move it, or start elsewhere"
            ) from None
        return _found(store, files, source, folder, here)


def fetched(uri: str, folder: RunFolder) -> bool:
    """Bring the newest whole checkpoint of a run's mirror, and its files, into a folder that is not there yet.

    Returns:
        Whether there is one.

    Raises:
        CheckpointError: all are damaged.
        OSError: the mirror cannot be reached, or the folder cannot be written.
    """
    store, files = open_store(uri, writing=False)
    if not whole_checkpoints(files):
        return False
    with explained(folder.path):
        folder.path.parent.mkdir(parents=True, exist_ok=True)
    _found(store, files, Source(uri, folder.path.name, None), folder, None)
    return True


def _found(store: Store, files: Files, source: Source, folder: RunFolder, here: tuple[Path, Checkpoint] | None) -> Path:
    for _ in range(_ROUNDS):
        whole = whole_checkpoints(files)
        for step in sorted(whole, reverse=True):
            if source.step not in (None, step):
                continue
            try:
                if here is None or not _same(store, whole[step], folder, here[0], source):
                    _take(store, files, whole[step], folder, here)
            except _RefusedError:
                raise
            except (CheckpointError, ValueError, NotThereError) as error:
                _log.warning(f"{error}; trying the one before it")
                continue
            except OSError as error:
                raise CheckpointError(str(error)) from None
            return folder.path if source.step is None else folder.path / whole[step]
        before, files = files, store.files()
        if files == before:
            break
    what = "no checkpoint" if source.step is None else f"no checkpoint of step {source.step:,}"
    raise CheckpointError(f"{source.uri} holds {what} that is whole; give the URI of a run's mirror")


class _RefusedError(CheckpointError):
    """The folder here stands in the way, whichever checkpoint is taken."""


def _take(store: Store, files: Files, name: str, folder: RunFolder, here: tuple[Path, Checkpoint] | None) -> None:
    """Take one checkpoint, and the files of its run where it is newer than what is here, into the run's folder."""
    final = folder.path / name
    newer = here is None or step_of(final) > step_of(here[0])
    with _beside(folder) as partial:
        _download(store, files, name, partial, BESIDE if newer else ())
        loaded = load_checkpoint(partial / name)
        if here is not None and here[1].run.get("tracking_run") != loaded.run.get("tracking_run"):
            raise _RefusedError(f"{folder} holds another run than {store.uri}; move it, or start elsewhere")
        with explained(folder.path):
            if here is None:
                partial.rename(folder.path)
            else:
                for file in partial.iterdir():
                    if file.is_file():
                        os.replace(file, folder.path / file.name)
                put(partial / name, final)
    _log.info(f"{store.uri}: {final.name} is now in {folder}")


@contextmanager
def _beside(folder: RunFolder) -> Iterator[Path]:
    """A new folder beside a run's, locked as long as it is in use; those that a kill has left are taken away."""
    name, parent = folder.path.name, folder.path.parent
    for left in parent.glob(f".{glob.escape(name)}-{_RANDOM}{_PART}"):
        with suppress(OSError), _locked(left):
            shutil.rmtree(left, ignore_errors=True)
    with explained(folder.path):
        partial = Path(tempfile.mkdtemp(prefix=f".{name}-", suffix=_PART, dir=parent))
    try:
        with ExitStack() as stack:
            with suppress(OSError):  # a file system without locks, on which what is left stays
                stack.enter_context(_locked(partial))
            yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder itself.

    Raises:
        OSError: another process holds it, or it is none, or its file system has no locks.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _same(store: Store, name: str, folder: RunFolder, newest: Path, source: Source) -> bool:
    """True if a checkpoint is here already; refused where it may not be added to what is here."""
    here, there = folder.path / name, store.read(f"{name}/{MANIFEST}", MOST_JSON)
    same = (here / MANIFEST).is_file() and (here / MANIFEST).read_bytes() == there
    ahead = source.step is None and step_of(newest) > step_of(here)
    if ahead or (here.exists() and not same):
        raise _RefusedError(
            f"{folder} has step {step_of(newest):,} and is ahead of {store.uri}, or differs from its step "
            f"{step_of(here):,}; give that folder, or move it"
        )
    if same:
        load_checkpoint(here)
    return same


def _download(store: Store, files: Files, name: str, target: Path, beside: Sequence[str]) -> None:
    """Copy a checkpoint, and files beside it that are there, below a folder."""
    manifest = store.read(f"{name}/{MANIFEST}", MOST_JSON)
    (target / name).mkdir(parents=True)
    (target / name / MANIFEST).write_bytes(manifest)
    for file in parse_json(manifest, MANIFEST):
        if f"{name}/{file}" not in files or file != Path(file).name:
            raise ValueError(f"{name} in {store.uri} names {file!r}, which is no file of its own")
        store.fetch(f"{name}/{file}", target / name / file)
    for file in beside:
        if file in files:
            store.fetch(file, target / file)
