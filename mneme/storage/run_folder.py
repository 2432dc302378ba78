"""A run's folder: its checkpoints, its metrics line by line, its configuration, its picture.

runs/<name>/config.yaml  state.json  metrics.jsonl  log.jsonl  curve.png  checkpoints/step-000000500000/
"""

import json
import logging
import math
import os
import re
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

from mneme.configuration.config import Config
from mneme.configuration.records import write_yaml
from mneme.distributed.config import ConfigError
from mneme.storage.checkpoint import list_checkpoints
from mneme.storage.files import opened, replace
from mneme.storage.holding import LOCK, STATE, Holding
from mneme.storage.paths import CHECKPOINTS, checked_name, explained, local_path, locate, pasted, shown

_log = logging.getLogger(__name__)

Row = dict[str, float]

_named = count()  # runs of this process, which may begin several within a second
_PROBE_BYTES = 16_384  # a disk without room for these is full


def new_run_name(config: Config, preset: Path | None) -> str:
    """The name the user chose, or one of the preset, controller, date, seed and, in the last place, the process."""
    if config.name:
        return config.name
    stem = preset.stem if preset else re.split("[/:]", config.env.id)[-1]
    kind = config.policy.controller.kind.rpartition(":")[2]
    again = f"-{number}" if (number := next(_named)) else ""
    return f"{stem}-{kind}-{datetime.now():%Y%m%d-%H%M%S}-seed{config.seed}-{os.getpid()}{again}"


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Add a line of JSON to a file. A line that was cut off, by a full disk or a kill, does not spoil the one behind
    it."""
    line = json.dumps(record).encode()
    with os.fdopen(opened(path, os.O_RDWR | os.O_APPEND | os.O_CREAT), "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        file.write(line + b"\n")


class RunFolder:
    """The folder in which one run writes, wherever the environments that it steps may go.

    Args:
        path: the folder; `create` makes it, or `lock` takes hold of it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.checkpoints = self.path / CHECKPOINTS
        self.curve = self.path / "curve.png"
        self.metrics = self.path / "metrics.jsonl"
        self.log = self.path / "log.jsonl"
        self.config = self.path / "config.yaml"

    def __str__(self) -> str:
        return str(shown(self.path))

    @classmethod
    def new(cls, config: Config, preset: Path | None) -> "RunFolder":
        """The folder that a new run would get, tried out: made, written into and taken away again.

        What a run has left there that ended before its first update is discarded.

        Raises:
            ConfigError: it exists, or its name or root cannot be.
            OSError: it cannot be made or written, and what helps.
        """
        try:
            if config.name is not None:
                checked_name("name", config.name)
            root = local_path(config.checkpoint.root)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        folder = cls(root / new_run_name(config, preset))
        if os.path.lexists(folder.path) and not folder.metrics.exists():
            folder.discard_beginning()
        missing = [path for path in (folder.path, *folder.path.parents) if not os.path.lexists(path)]
        folder.create()
        probe = folder.path / ".probe"
        try:
            with explained(folder.path):
                probe.write_bytes(bytes(_PROBE_BYTES))
        finally:
            probe.unlink(missing_ok=True)
            with suppress(OSError):  # another run may have begun in one of them
                for path in missing:
                    path.rmdir()
        return folder

    @classmethod
    def named(cls, config: Config) -> "RunFolder":
        """The folder of the run that a configuration names, whether or not it is there.

        Raises:
            ConfigError: it names none, or its root cannot be.
        """
        if config.name is None:
            raise ConfigError("--retries finds its run again by name; give name=...")
        try:
            return cls(local_path(config.checkpoint.root) / config.name)
        except ValueError as error:
            raise ConfigError(str(error)) from None

    def discard_beginning(self) -> None:
        """Take away what a run has left that ended before its first checkpoint, and nothing else.

        Raises:
            ConfigError: another process holds the folder.
            OSError: it cannot be written, and what helps.
        """
        if not (self.path / LOCK).exists() or list_checkpoints(self.checkpoints):
            return
        ours = {path.name for path in (self.checkpoints, self.curve, self.metrics, self.log, self.config)} | {STATE}
        if all(path.name in ours or path.name.startswith(".") for path in self.path.iterdir()):
            with explained(self.path):
                holding = self.lock()
                shutil.rmtree(self.path)
                holding.close()
            _log.info(f"{self} held a run that ended before its first checkpoint; it begins anew")

    def create(self) -> None:
        """Make the folder of a new run, its owner's alone.

        Raises:
            ConfigError: it exists; two runs never share one.
            OSError: it cannot be made, and what helps.
        """
        with explained(self.path):
            try:
                with suppress(FileNotFoundError):  # another new run may take a parent away that it has tried out
                    self.path.mkdir(0o700, parents=True)
                    return
                self.path.mkdir(0o700, parents=True)
            except FileExistsError:
                if not self.path.exists():  # a link to nothing
                    raise
                raise ConfigError(f"{self} exists already; choose another name=..., or {self._way_out()}") from None

    def _way_out(self) -> str:
        if list_checkpoints(self.checkpoints):
            return f"go on with it: --resume {pasted(self.path)}"
        self.refuse_if_in_use()
        return "move it: it holds no checkpoint to go on from"

    def lock(self) -> Holding:
        """Hold the folder for this process, without the half of a checkpoint that a kill has left; see `Holding`."""
        holding = Holding(self.path)
        for half in self.checkpoints.glob(".partial-*-*"):
            shutil.rmtree(half, ignore_errors=True)
        return holding

    def refuse_if_in_use(self) -> None:
        """Refuse what `lock` would refuse, before anything has started; makes nothing where no run has been.

        Raises:
            ConfigError: another process holds the folder.
        """
        if (self.path / LOCK).exists():
            self.lock().close()

    def write_config(self, config: Config) -> None:
        """Keep the resolved configuration beside the results, without a password."""
        self._replace(self.config, write_yaml(config.without_password().to_dict()))

    def append(self, step: int, row: Row) -> None:
        """Add one line of metrics with the time, in seconds since 1970; values that are not finite are left out."""
        finite = {key: value for key, value in row.items() if math.isfinite(value)}
        append_line(self.metrics, {"step": step, "time": round(time.time(), 3), **finite})

    def history(self) -> list[Row]:
        """The metrics so far, oldest first; a line cut off by a crash is passed over."""
        rows = []
        for line in self.metrics.read_text().splitlines() if self.metrics.exists() else []:
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return rows

    def rewind(self, step: int, evaluation_due: bool = False) -> None:
        """Forget metrics after `step`, and of the evaluation after it if that is due: the resumed run will write them
        again."""
        rows = [row for row in self.history() if row["step"] <= step]
        if evaluation_due:
            rows = [row for row in rows if row["step"] < step or "weights_version" in row]
        self._replace(self.metrics, "".join(json.dumps(row) + "\n" for row in rows))

    def _replace(self, target: Path, text: str) -> None:
        """Write a file whole or not at all."""
        with explained(self.path):
            replace(target, text)

    @classmethod
    def of(cls, path: Path) -> "RunFolder":
        """The run folder that a path given by the user means; see `locate`.

        Raises:
            ConfigError: a checkpoint that lies in none.
        """
        run, checkpoint = locate(path)
        if run is None:
            raise ConfigError(
                f"{checkpoint} lies in no run's folder, where its run could go on; move it to "
                f"NAME/checkpoints/step-... and give that"
            )
        return cls(run)
