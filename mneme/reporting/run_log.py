"""The log of a run for programs to read: a line of JSON in its folder for everything that is logged under "mneme"."""

import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from mneme.callbacks import Callback, Progress
from mneme.reporting.listening import LOGGER, Listener
from mneme.storage.run_folder import append_line


class RunLog(Listener, Callback):
    """Writes while it is entered. Each line has `time`, in seconds since 1970, `level` and `message`; once training has
    begun, `step` and `version` of the newest update; and where the message is about a rollout actor, `worker`.

    A disk that is full costs lines, not the run.

    Args:
        path: of the file, which is made, or gone on with.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._progress: dict[str, int] = {}

    def __enter__(self) -> Self:
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_listening()

    def on_begin(self, progress: Progress) -> None:
        """Take note of it."""
        self._progress = {"step": progress.steps, "version": progress.update}

    def on_update(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        """Take note of it."""
        self.on_begin(progress)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one."""
        alone = LOGGER.handlers == [self] and not logging.root.handlers
        if alone and logging.lastResort is not None and record.levelno >= logging.lastResort.level:
            logging.lastResort.handle(record)  # with which Python shows what nobody else listens to
        line: dict[str, Any] = {"time": round(record.created, 3), "level": record.levelname}
        line |= {"message": record.getMessage(), **self._progress}
        if (worker := getattr(record, "worker", None)) is not None:
            line["worker"] = worker
        with suppress(OSError):
            append_line(self._path, line)
