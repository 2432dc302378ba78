"""How runs are, read from their folders: one in detail, and all of a folder as a table. Nothing of theirs is run."""

import json
import math
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mneme.configuration.records import read_yaml
from mneme.reporting.display import NOTHING, clock
from mneme.storage.checkpoint import list_checkpoints, step_of
from mneme.storage.files import opened, read_text
from mneme.storage.holding import Held, held, read_state
from mneme.storage.run_folder import Row, RunFolder

_TAIL = 1 << 20  # bytes of metrics.jsonl that are read, from its end
_LOG_LINES = 5
_RECENT = 100  # updates over which the rate is taken
_MOST = 1e18  # in metrics; a number beyond is none that a run has written
_WIDTH = 160  # columns where the output is no terminal
_HEADINGS = ("name", "task", "controller", "step", "success", "state", "last seen")


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
        raise ValueError(f"there is no run at {path}; name a run's folder, or list those of a folder with: mneme runs")
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


def show_runs(folder: Path, console: Console | None = None) -> None:
    """Print the runs of a folder.

    Raises:
        ValueError: there is no such folder.
    """
    runs = runs_in(folder)
    console = _console(console)
    if not runs:
        console.print(Text(f"no runs in {folder}; begin one with: mneme train"))
        return
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name in _HEADINGS:
        table.add_column(name, justify="right" if name in ("step", "success") else "left")
    for run in runs:
        table.add_row(*map(Text, _cells(run)))
    console.print(table)


def show_status(path: Path, console: Console | None = None) -> None:
    """Print how one run is.

    Raises:
        ValueError: there is no run.
    """
    _show_lines(_lines(run_status(path)), console)


def show_job(job: str, address: str, console: Console | None = None) -> None:
    """Print how a Ray job is, and the end of its log.

    Raises:
        ServiceError: its state cannot be had.
    """
    from mneme.distributed.ray_jobs import job_state  # only here: a folder needs no Ray

    state = job_state(job, address)
    progress = next((line for line in reversed(state.log) if re.match(r"step +[\d,]+/", line)), NOTHING)
    lines = [("job", job), ("state", state.status), ("message", state.message), ("command", state.entrypoint)]
    lines += [("began", _date(state.began)), ("ended", _date(state.ended)), ("progress", progress)]
    lines += [("log" if i == 0 else "", line) for i, line in enumerate(state.log[-_LOG_LINES:])]
    _show_lines(lines, console)


def _show_lines(lines: Iterable[tuple[str, str]], console: Console | None) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    for name, text in lines:
        table.add_row(Text(name, style="dim"), Text(_text(text)))
    _console(console).print(table)


def _cells(run: RunStatus) -> Iterator[str]:
    yield _text(run.path.name)
    yield _text(run.setting("env", "id"))
    yield _text(run.setting("policy", "controller", "kind"))
    yield _steps(run)
    yield _percent(run.last("evaluation/success", "success"))
    yield run.word
    yield _ago(run.seen)


def _lines(run: RunStatus) -> Iterator[tuple[str, str]]:
    yield "run", str(run.path)
    yield "task", _text(run.setting("env", "id"))
    yield "controller", _text(run.setting("policy", "controller", "kind"))
    word = run.word
    if run.state is not None and word in ("training", "cut off"):
        word += f", process {run.state.pid} on {run.state.host}, since {_date(run.state.began)}"
    if run.state is not None and word == "failed" and run.state.reason:
        word += f": {run.state.reason}"
    yield "state", word
    yield "last seen", _ago(run.seen)
    yield "step", _steps(run)
    rate = run.rate
    yield "steps/s", NOTHING if rate is None else f"{rate:,.0f}"
    left = None if rate is None or run.step is None or run.total is None else max(0, run.total - run.step) / rate
    yield "eta", NOTHING if left is None else clock(left)
    returns = run.last("return")
    yield "return", NOTHING if returns is None else f"{returns:.3f}"
    yield "success", _percent(run.last("success"))
    yield "evaluation", _evaluation(run)
    yield (
        "checkpoint",
        NOTHING if run.checkpoint is None else f"{run.checkpoint}, {_ago(run.checkpoint.stat().st_mtime)}",
    )


def _evaluation(run: RunStatus) -> str:
    row = next((row for row in reversed(run.rows) if "evaluation/return" in row), None)
    if row is None:
        return NOTHING
    text = f"return {row['evaluation/return']:.3f}"
    if "evaluation/success" in row:
        text += f", success {_percent(row['evaluation/success'])}"
    return f"{text} at step {row['step']:,}"


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


def _steps(run: RunStatus) -> str:
    step, total = (NOTHING if number is None else f"{number:,}" for number in (run.step, run.total))
    return f"{step} / {total}"


def _percent(value: float | None) -> str:
    return NOTHING if value is None or not math.isfinite(value) else f"{100 * value:.1f} %"


def _text(value: Any) -> str:
    return "".join(letter for letter in value if letter.isprintable()) if isinstance(value, str) else NOTHING


def _date(seconds: float | None) -> str:
    return NOTHING if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _ago(seconds: float | None) -> str:
    """How long ago something was, in one unit."""
    if seconds is None:
        return NOTHING
    ago = max(0.0, time.time() - seconds)
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if ago >= 2 * length:
            return f"{ago // length:.0f} {unit} ago"
    return f"{ago:.0f} s ago"


def _console(console: Console | None) -> Console:
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH
    return console
