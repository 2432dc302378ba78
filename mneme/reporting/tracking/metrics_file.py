"""The metrics of a run, read from its file as far as it has been written."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mneme.reporting.tracking.store_run import Point


class MetricsFile:
    """metrics.jsonl from a place onwards, which moves on when what was read has been dealt with.

    Args:
        path: the file; it need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.offset = 0
        """Bytes that are dealt with."""

    def read(self, most: int = -1) -> tuple[list[Point], int]:
        """The points that follow, of about `most` bytes or all of them, and the offset behind them.

        A line that is still being written waits; one that was cut off is passed over.
        """
        if not self._path.exists():
            return [], self.offset
        with self._path.open("rb") as file:
            file.seek(self.offset)
            block = file.read(most) + file.readline()
            modified_ms = int(self._path.stat().st_mtime * 1000)
        whole = block[: block.rfind(b"\n") + 1]
        return [point for line in whole.splitlines() for point in _parse(line, modified_ms)], self.offset + len(whole)


def points_of(row: Mapping[str, Any], step: int, time_ms: int) -> list[Point]:
    """The values of a row that are finite numbers."""
    return [Point(key, float(value), time_ms, step) for key, value in row.items() if _is_finite(value)]


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _parse(line: bytes, modified_ms: int) -> list[Point]:
    """The points of one line; those of earlier releases say no time."""
    try:
        row = json.loads(line)
        step, seconds = int(row.pop("step")), row.pop("time", None)
        return points_of(row, step, modified_ms if seconds is None else round(seconds * 1000))
    except (ValueError, TypeError, KeyError, AttributeError):
        return []
