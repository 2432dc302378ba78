"""Checkpoints: directories that are either whole or absent, and that hold arrays and JSON, never code.

A checkpoint is written beside its final place, flushed to the disk, and then renamed, so a crash, a kill or a full disk
leaves the ones before it as they were. A manifest of SHA-256 sums tells a whole one from a damaged one.
"""

import hashlib
import json
import logging
import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mneme.storage.absent import no_run_at
from mneme.storage.paths import CHECKPOINT_PREFIX, CHECKPOINTS, MANIFEST, UNSUPPORTED, Place, is_run, locate
from mneme.storage.retention import superseded

_log = logging.getLogger(__name__)

FORMAT = 2  # 1: Mamba-2 carried [B, H, P, N], and mamba and mamba2 were fed with a bias
RUN = "run.json"
MOST_JSON = 64 << 20  # bytes of one JSON file
ABANDONED = "abandoned-"  # before the name of a checkpoint that lies after the one that the run has gone on from

_unflushed: list[Path] = []  # the first path that could not be flushed, for which it was said

Arrays = Mapping[str, np.ndarray]


class CheckpointError(Exception):
    """A checkpoint that cannot be used; the message is for the user."""


class Checkpoint(NamedTuple):
    """The contents of a checkpoint."""

    run: dict[str, Any]  # JSON: configuration, counters, tracking run
    arrays: dict[str, dict[str, np.ndarray]]  # part ("learner", "worker-0", ...) -> name -> array


def save_checkpoint(
    root: Path,
    step: int,
    run: Mapping[str, Any],
    parts: Mapping[str, Arrays],
    keep: int,
    keep_every: int | None = None,
    best: int | None = None,
) -> Path:
    """Write one checkpoint under `root` and remove those that are `superseded`.

    Raises:
        OSError: the disk is full or not writable; the checkpoints before it are untouched.
    """
    final = root / f"{CHECKPOINT_PREFIX}{step:012d}"
    partial, replaced = (root / f".{what}-{step:012d}-{os.getpid()}" for what in ("partial", "replaced"))
    root.mkdir(parents=True, exist_ok=True)
    try:
        partial.mkdir()
        for part, arrays in parts.items():
            _save_arrays(arrays, partial / f"{part}.safetensors")
        (partial / RUN).write_text(json.dumps({"format": FORMAT, **run}, indent=2))
        sums = {path.name: _sha256(path) for path in sorted(partial.iterdir())}
        (partial / MANIFEST).write_text(json.dumps(sums, indent=2))
        for path in [*partial.iterdir(), partial]:
            _flush(path)
        if final.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            put(final, replaced)
        put(partial, final)
        _flush(root)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        if replaced.exists() and not final.exists():
            put(replaced, final)
        raise
    shutil.rmtree(replaced, ignore_errors=True)
    checkpoints = {step_of(path): path for path in list_checkpoints(root)}
    for old in superseded(checkpoints, keep, keep_every, best):
        shutil.rmtree(checkpoints[old], ignore_errors=True)
    return final


def set_aside_after(root: Path, step: int) -> None:
    """Rename the checkpoints after `step` to abandoned-*, as the run goes on from `step` another time."""
    for path in list_checkpoints(root):
        if step_of(path) > step:
            aside = path.with_name(f"{ABANDONED}{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            put(path, aside)


def list_checkpoints(root: Path) -> list[Path]:
    """The checkpoints under `root`, oldest first, damaged ones included."""
    found = (path for path in root.glob(f"{CHECKPOINT_PREFIX}*") if path.is_dir())
    return sorted(path for path in found if path.name.removeprefix(CHECKPOINT_PREFIX).isdecimal())


def step_of(path: Path) -> int:
    """Environment steps before a checkpoint, as its name has them."""
    return int(path.name.removeprefix(CHECKPOINT_PREFIX))


def load_checkpoint(path: Path, part: str | None = None) -> Checkpoint:
    """Read one checkpoint, every byte checked against its manifest.

    Args:
        path: its folder.
        part: the only one whose arrays are read; unset: all.

    Raises:
        CheckpointError: it is missing, incomplete, damaged or of another format.
    """
    if not path.is_dir():
        raise CheckpointError(f"there is no checkpoint at {path}; give a run folder or one of its checkpoints")
    try:
        sums = _read_json(path / MANIFEST)
        if not {RUN, "learner.safetensors"} <= set(sums):
            raise CheckpointError(f"the checkpoint {path} is damaged: its manifest does not name every part")
        for name in sums:
            if name != Path(name).name or not stat.S_ISREG((path / name).lstat().st_mode):
                raise CheckpointError(f"the checkpoint {path} is damaged: {name} is no file of its own")
        if part is not None:
            sums = {name: sums[name] for name in (RUN, f"{part}.safetensors")}
        for name, expected in sums.items():
            if _sha256(path / name) != expected:
                raise CheckpointError(f"the checkpoint {path} is damaged: {name} does not match its checksum")
        run = _read_json(path / RUN)
        arrays = {Path(name).stem: load_file(path / name) for name in sums if name.endswith(".safetensors")}
    except (OSError, ValueError, TypeError, AttributeError, LookupError, RecursionError, SafetensorError) as error:
        raise CheckpointError(f"the checkpoint {path} is incomplete or damaged: {error}") from None
    if run.get("format") != FORMAT:
        raise CheckpointError(
            f"the checkpoint {path} has format {run.get('format')} and this code reads {FORMAT}; "
            f"use the release of Mneme that wrote it"
        )
    return Checkpoint(run, arrays)


def existing(path: Path) -> Place:
    """The run, or the one checkpoint, that `path` names; see `locate`.

    Raises:
        CheckpointError: it names no checkpoint, and there is no run.
    """
    try:
        place = locate(path)
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    if place.checkpoint is None and place.run is not None and not is_run(place.run):
        raise CheckpointError(no_run_at(place.run))
    return place


def find_checkpoint(path: Path) -> tuple[Path, Checkpoint]:
    """The newest whole checkpoint of the run that `path` names, or the very one, if it names that; see `locate`.

    Where a run's newest is damaged, the one before it is used, with a warning.

    Raises:
        CheckpointError: there is none.
    """
    run, named = existing(path)
    if named is not None:
        return named, load_checkpoint(named)
    assert run is not None
    root = run / CHECKPOINTS
    candidates = list_checkpoints(root)
    for candidate in reversed(candidates):
        try:
            return candidate, load_checkpoint(candidate)
        except CheckpointError as error:
            _log.warning(f"{error}; trying the one before it")
    if candidates:
        raise CheckpointError(f"no usable checkpoint under {root}; all of them are damaged")
    raise CheckpointError(
        f"no usable checkpoint under {root}; a run leaves the first after checkpoint.every steps, or at its end: if "
        f"this one has ended, choose another run, or train it anew with: mneme train name=..."
    )


def _read_json(path: Path) -> dict[str, Any]:
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_JSON:
        raise ValueError(f"{path.name} is no file of its own, or has more than {MOST_JSON:,} bytes")
    return parse_json(path.read_bytes(), path.name)


def parse_json(text: bytes, name: str) -> dict[str, Any]:
    """The object that a file holds.

    Raises:
        ValueError: it holds none.
    """
    try:
        data = json.loads(text)
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply") from None
    if not isinstance(data, dict):
        raise ValueError(f"{name} does not hold an object")
    return data


def best_of(path: Path) -> int | None:
    """The step of the best checkpoint that a run had when it wrote this one."""
    best = _read_json(path / RUN)["best"]
    return None if best is None else int(best["step"])


def _save_arrays(arrays: Arrays, path: Path) -> None:
    try:
        # safetensors wants contiguous arrays; ascontiguousarray would turn a scalar into a vector.
        save_file({name: np.array(array, order="C") for name, array in arrays.items()}, path)
    except SafetensorError as error:  # its way of saying that the disk is full
        raise OSError(str(error)) from None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def put(partial: Path, final: Path) -> None:
    """Move a written checkpoint to its place; where folders cannot be renamed it is copied, its manifest last."""
    try:
        partial.rename(final)
    except OSError:
        final.mkdir()
        try:
            for path in sorted(partial.iterdir(), key=lambda path: path.name == MANIFEST):
                shutil.copyfile(path, final / path.name)
                _flush(final / path.name)
        except BaseException:
            shutil.rmtree(final, ignore_errors=True)
            raise
        shutil.rmtree(partial, ignore_errors=True)


def _flush(path: Path) -> None:
    """Have a file or a folder reach the disk; a file system that does not know how to is noted once."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        if not _unflushed:
            _unflushed.append(path)
            what = "folders" if path.is_dir() else "files"
            _log.warning(
                f"the file system of {path} does not flush {what} to the disk ({error.strerror}): after a power cut "
                f"the newest checkpoint may be damaged, and the one before it is then used"
            )
