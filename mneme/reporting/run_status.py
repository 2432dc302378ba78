"""How runs are, read from their folders: one, or all that a folder holds. Nothing of theirs is run."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mneme.configuration.records import read_yaml
from mneme.reporting.display import NOTHING
from mneme.storage.absent import no_run_at
from mneme.storage.checkpoint import list_checkpoints, step_of
from mneme.storage.files import opened, read_text
from mneme.storage.holding import Held, held, read_state
from mneme.storage.run_folder import Row, RunFolder

_TAIL = 1 << 20  # bytes of metrics.jsonl that are read, from its end
_RECENT = 100  # updates over which the rate is taken
_MOST = 1e18  # in metrics; a number beyond is none that a run has written


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """A run as its folder has it; None is what that does not say."""

    path: Path
    settings: Mapping[str, Any]  # config.yaml
    held: bool  # a process trains there now
    state: Held | None
    checkpoint: Path | None  # the newest
    rows: list[Row]  # the last of metrics.jsonl, oldest first
    seen: float | None  # seconds since 1970, of its last sign of life

    @property
    def word(self) -> str:
        """Its state in a word or two."""
        if self.held:
            return "training"
        if self.state is None:
            return NOTHING
        return "cut off" if self.state.state == "training" else self.state.state

    @property
    def step(self) -> int | None:
        """Environment steps that it has trained on."""
        saved = None if self.checkpoint is None else step_of(self.checkpoint)
        return int(self.rows[-1]["step"]) if self.rows else saved

    @property
    def total(self) -> int | None:
        """Environment steps after which it ends."""
        total = self.setting("train", "total_timesteps")
        return total if type(total) is int and _plain(total) else None

    @property
    def rate(self) -> float | None:
        """Environment steps a second lately, evaluations and checkpoints included; while it trains."""
        began = self.state.began if self.state is not None else 0.0
        rows = [row for row in self.rows if "weights_version" in row and row["time"] >= began][-_RECENT:]
        if not self.held or not rows:
            return None
        steps, seconds = rows[-1]["step"] - rows[0]["step"], rows[-1]["time"] - rows[0]["time"]
        rate = steps / seconds if seconds > 0 else rows[-1].get("steps_per_second", 0)
        return float(rate) if rate > 0 else None

    def setting(self, *keys: str) -> Any:
        """A setting of its configuration."""
        value: Any = self.settings
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def last(self, *names: str) -> float | None:
        """The newest value of any of these metrics."""
        for row in reversed(self.rows):
            for name in names:
                if name in row:
                    return float(row[name])
        return None


def run_status(path: Path) -> RunStatus:
    """How the run in a folder is.

    Raises:
        ValueError: there is no run.
    """
    folder = RunFolder(path)
    state = read_state(path)
    try:
        settings = read_yaml(read_text(folder.config)) if folder.config.exists() else {}
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        settings = {}
    checkpoints = list_checkpoints(folder.checkpoints)
    if not (folder.config.exists() or checkpoints):
        raise ValueError(no_run_at(path))
    rows, modified = _last_rows(folder.metrics)
    signs = [modified] if state is None else [modified, state.seen]
    return RunStatus(
        path=path,
        settings=settings if isinstance(settings, dict) else {},
        held=held(path),
        state=state,
        checkpoint=checkpoints[-1] if checkpoints else None,
        rows=rows,
        seen=max((sign for sign in signs if sign is not None), default=None),
    )


def runs_in(folder: Path) -> list[RunStatus]:
    """The runs whose folders lie in a folder, the one that was seen last at the end.

    Raises:
        ValueError: there is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; name the one that holds your runs, as checkpoint.root had it")
    found = []
    for path in filter(Path.is_dir, folder.iterdir()):
        try:
            found.append(run_status(path))
        except (ValueError, OSError):  # another folder, or one that may not be read
            continue
    return sorted(found, key=lambda run: (run.seen or 0.0, run.path.name))


def gathered_in(folder: Path) -> Iterator[tuple[Path, list[RunStatus]]]:
    """Folders below a folder that hold runs and are none themselves, such as sweeps/NAME and suites/NAME in runs/, each
    with what `runs_in` finds there."""
    for path in _folders_in(folder):
        for inner in (path, *_folders_in(path)):
            with suppress(OSError):  # it may not be read
                if runs := runs_in(inner):
                    yield inner, runs


def _folders_in(folder: Path) -> list[Path]:
    """Folders in a folder; those of runs are left out, and that in which MLflow has copies of runs' files."""
    try:
        found = sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:
        return []
    return [path for path in found if path.name != "mlartifacts" and not (path / "config.yaml").exists()]


def _last_rows(metrics: Path) -> tuple[list[Row], float | None]:
    """The rows at the end of a file of metrics, and when it was written."""
    try:
        with os.fdopen(opened(metrics, os.O_RDONLY), "rb") as file:
            status = os.fstat(file.fileno())
            file.seek(max(0, status.st_size - _TAIL))
            lines = file.read().splitlines()
    except OSError:
        return [], None
    rows = []
    for line in lines:  # the first may be a part of one
        try:
            row = {key: value for key, value in json.loads(line).items() if _plain(value)}
        except (ValueError, AttributeError, RecursionError):
            continue
        if type(row.get("step")) is int and "time" in row:
            rows.append(row)
    return rows, status.st_mtime


def _plain(value: Any) -> bool:
    """True of numbers that can be reckoned with; neither those without end nor NaN are."""
    return isinstance(value, int | float) and abs(value) < _MOST
