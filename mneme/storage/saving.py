"""A run's last checkpoint, without which the run was for nothing: written to its folder, or else elsewhere."""

import logging
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain, repeat
from pathlib import Path
from time import sleep

from mneme.configuration.config import Config
from mneme.interruption import StopRequest
from mneme.storage.paths import local_path, pasted
from mneme.storage.run_folder import RunFolder

_log = logging.getLogger(__name__)

PAUSES = (1, 2, 4, 8, 15)  # seconds between tries, after which a run that nobody watches gives up
_WATCHED_PAUSE = 15  # while somebody at a terminal may make room


def save_last(
    write: Callable[[Path], Path],
    folder: RunFolder,
    config: Config,
    stop: StopRequest,
) -> tuple[Path | None, str | None]:
    """Write the state that a run ends with.

    Tries the run's folder, then a folder of its own under `checkpoint.fallback`, which is a run's folder too. Where
    neither can be written it tries again: some times, and on a terminal until it is asked to stop.

    Args:
        write: writes the checkpoint under a folder of checkpoints; raises OSError where it cannot.

    Returns:
        Where it is, if anywhere; and what went wrong, if it is not in the run's folder, for the user.
    """
    stopped_before = stop.made
    fallback, reasons = _fallback(config), ""
    for pause in _pauses():
        try:
            return write(folder.checkpoints), None
        except OSError as error:
            reason = str(error)
        try:
            path, elsewhere = _write_elsewhere(write, folder, fallback, config)
            return path, (
                f"the last checkpoint could not be written to {folder.checkpoints} ({reason}); it is whole in "
                f"{elsewhere}: evaluate it there, or go on with: mneme train --resume {pasted(elsewhere)}"
            )
        except OSError as error:
            reasons = f"{folder.checkpoints} ({reason}) nor to {fallback} ({error})"
        _log.warning(f"the last checkpoint could be written neither to {reasons}; make room: trying again in {pause} s")
        try:
            for _ in range(pause):
                sleep(1)
                if stop.made and not stopped_before:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            break
    return None, (
        f"the last checkpoint could be written neither to {reasons}, so what was learned since the one before is lost; "
        f"make room, or name another folder in checkpoint.fallback"
    )


def _pauses() -> Iterator[int]:
    with suppress(Exception):
        if sys.stdin.isatty() and sys.stdout.isatty():
            return chain(PAUSES, repeat(_WATCHED_PAUSE))
    return iter(PAUSES)


def _fallback(config: Config) -> Path:
    try:
        return local_path(config.checkpoint.fallback or tempfile.gettempdir())
    except (ValueError, OSError):  # no temporary folder can be written: the attempt will say so
        return Path(config.checkpoint.fallback or "/tmp")


def _write_elsewhere(
    write: Callable[[Path], Path], folder: RunFolder, fallback: Path, config: Config
) -> tuple[Path, Path]:
    """The checkpoint, and the new run folder under `fallback` that it is in, which is this user's alone."""
    fallback.mkdir(parents=True, exist_ok=True)
    elsewhere = RunFolder(Path(tempfile.mkdtemp(prefix=f"mneme-{folder.path.name}-", dir=fallback)))
    try:
        path = write(elsewhere.checkpoints)
        elsewhere.write_config(config)
    except OSError:
        shutil.rmtree(elsewhere.path, ignore_errors=True)
        raise
    with suppress(OSError):
        shutil.copyfile(folder.metrics, elsewhere.metrics)
    return path, elsewhere.path
