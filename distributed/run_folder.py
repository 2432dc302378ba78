"""A run's folder: its checkpoints, its metrics line by line, its configuration, its picture.

runs/<name>/config.yaml  metrics.jsonl  curve.png  checkpoints/step-000000500000/
"""

import fcntl
import json
import math
import os
import time
from datetime import datetime
from pathlib import Path
from typing import IO

from distributed.config import Config, ConfigError
from distributed.records import write_yaml

Row = dict[str, float]

_LOCK = ".lock"


def new_run_name(config: Config, preset: Path | None) -> str:
    """The name the user chose, or the preset's with the date, the seed and, in the last place, the process."""
    if config.name:
        return config.name
    stem = preset.stem if preset else config.env.id.rpartition("/")[2]
    return f"{stem}-{datetime.now():%Y%m%d-%H%M%S}-seed{config.seed}-{os.getpid()}"


class RunFolder:
    """Where one run writes.

    Args:
        path: the folder; `create` makes it, or `lock` takes hold of it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.curve = path / "curve.png"
        self.metrics = path / "metrics.jsonl"

    def create(self) -> None:
        """Make the folder of a new run.

        Raises:
            ConfigError: it exists; two runs never share one.
        """
        try:
            self.path.mkdir(parents=True)
        except FileExistsError:
            raise self._taken() from None

    def refuse_if_taken(self) -> None:
        """What `create` would refuse, before anything has started.

        Raises:
            ConfigError: the folder exists.
        """
        if self.path.exists():
            raise self._taken()

    def _taken(self) -> ConfigError:
        return ConfigError(
            f"{self.path} exists already; choose another name=..., or go on with it: --resume {self.path}"
        )

    def lock(self) -> IO[str]:
        """Hold the folder for this process until the returned file is closed, or the process ends.

        Raises:
            ConfigError: another process holds it.
        """
        file = (self.path / _LOCK).open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise ConfigError(f"another process is training in {self.path}; wait for it or stop it") from None
        return file

    def refuse_if_in_use(self) -> None:
        """What `lock` would refuse, before anything has started; makes nothing where no run has been.

        Raises:
            ConfigError: another process holds the folder.
        """
        if (self.path / _LOCK).exists():
            self.lock().close()

    def write_config(self, config: Config) -> Path:
        """Keep the resolved configuration beside the results."""
        target = self.path / "config.yaml"
        target.write_text(write_yaml(config.to_dict()))
        return target

    def append(self, step: int, row: Row) -> None:
        """Add one line of metrics with the time, in seconds since 1970; values that are not finite are left out.

        A line that was cut off, by a full disk or a kill, does not spoil the one behind it.
        """
        finite = {key: value for key, value in row.items() if math.isfinite(value)}
        line = json.dumps({"step": step, "time": round(time.time(), 3), **finite}).encode()
        with self.metrics.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else b"\n" + line
            file.write(line + b"\n")

    def history(self) -> list[Row]:
        """The metrics so far, oldest first; a line cut off by a crash is passed over."""
        rows = []
        for line in self.metrics.read_text().splitlines() if self.metrics.exists() else []:
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return rows

    def rewind(self, step: int) -> None:
        """Forget metrics after `step`, which the resumed run will write again."""
        rows = [row for row in self.history() if row["step"] <= step]
        part = self.metrics.with_suffix(".part")
        part.write_text("".join(json.dumps(row) + "\n" for row in rows))
        os.replace(part, self.metrics)

    @classmethod
    def of(cls, path: Path) -> "RunFolder":
        """The run folder that a path given by the user means: itself, or the one around a checkpoint."""
        return cls(path.parent.parent if path.parent.name == "checkpoints" else path)
