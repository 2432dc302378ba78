"""A run's folder: its checkpoints, its metrics line by line, its configuration, its picture.

runs/<name>/config.yaml  metrics.jsonl  curve.png  checkpoints/step-000000500000/
"""

import json
import math
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from distributed.config import Config

Row = dict[str, float]


def new_run_name(config: Config, preset: Path | None) -> str:
    """The name the user chose, or the preset's with the date and the seed."""
    if config.name:
        return config.name
    stem = preset.stem if preset else config.env.id.rpartition("/")[2]
    return f"{stem}-{datetime.now():%Y%m%d-%H%M%S}-seed{config.seed}"


class RunFolder:
    """Where one run writes.

    Args:
        path: the folder; `write_config`, the first to write, makes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.curve = path / "curve.png"
        self._metrics = path / "metrics.jsonl"

    def write_config(self, config: dict[str, Any]) -> Path:
        """Keep the resolved configuration beside the results."""
        self.path.mkdir(parents=True, exist_ok=True)
        target = self.path / "config.yaml"
        target.write_text(yaml.safe_dump(config, sort_keys=False))
        return target

    def append(self, step: int, row: Row) -> None:
        """Add one line of metrics; values that are not finite are left out."""
        finite = {key: value for key, value in row.items() if math.isfinite(value)}
        with self._metrics.open("a") as file:
            file.write(json.dumps({"step": step, **finite}) + "\n")

    def history(self) -> list[Row]:
        """The metrics so far, oldest first; a line cut off by a crash is passed over."""
        rows = []
        for line in self._metrics.read_text().splitlines() if self._metrics.exists() else []:
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return rows

    def rewind(self, step: int) -> None:
        """Forget metrics after `step`, which the resumed run will write again."""
        rows = [row for row in self.history() if row["step"] <= step]
        self._metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))

    @classmethod
    def of(cls, path: Path) -> "RunFolder":
        """The run folder that a path given by the user means: itself, or the one around a checkpoint."""
        return cls(path.parent.parent if path.parent.name == "checkpoints" else path)
