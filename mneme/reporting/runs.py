"""How runs are, as people read it: one in detail, and all of a folder as a table."""

import math
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mneme.reporting.display import NOTHING, clock
from mneme.reporting.run_status import RunStatus, gathered_in, run_status, runs_in

_LOG_LINES = 5
_WIDTH = 160  # columns where the output is no terminal
_HEADINGS = ("name", "task", "controller", "step", "success", "state", "last seen")


def show_runs(folder: Path, console: Console | None = None) -> None:
    """Print the runs of a folder, and a line for each folder in it that gathers others, such as a sweep's.

    Raises:
        ValueError: there is no such folder.
    """
    runs, gathered = runs_in(folder), list(gathered_in(folder))
    console = _console(console)
    if not runs and not gathered:
        console.print(Text(f"no runs in {folder}; begin one with: mneme train"))
        return
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name in _HEADINGS:
        table.add_column(name, justify="right" if name in ("step", "success") else "left")
    for run in runs:
        table.add_row(*map(Text, _cells(run)))
    if runs:
        console.print(table)
    for path, inner in gathered:
        console.print(Text(_text(f"{path.relative_to(folder)}: {_summary(inner)}; mneme runs {path}")), soft_wrap=True)


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


def _summary(runs: list[RunStatus]) -> str:
    words = Counter(run.word for run in runs)
    known = ", ".join(f"{number} {word}" for word, number in words.most_common() if word != NOTHING)
    what = f"{len(runs)} runs" if len(runs) > 1 else "1 run"
    return f"{what}{known and f', {known}'}, last seen {_ago(runs[-1].seen)}"


def _cells(run: RunStatus) -> Iterator[str]:
    yield _text(run.path.name)
    yield _text(run.setting("env", "id"))
    yield _text(run.setting("policy", "controller", "kind"))
    yield _steps(run)
    yield _success(run)
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
    yield "training", _outcome(run, "", "actions drawn")
    yield "evaluation", _outcome(run, "evaluation/", "greedy")
    yield (
        "checkpoint",
        NOTHING if run.checkpoint is None else f"{run.checkpoint}, {_ago(run.checkpoint.stat().st_mtime)}",
    )


def _outcome(run: RunStatus, prefix: str, how: str) -> str:
    """The newest return and success of training or of evaluations, with how actions were chosen, and when."""
    row = next((row for row in reversed(run.rows) if f"{prefix}return" in row), None)
    if row is None:
        return NOTHING
    success = row.get(f"{prefix}success")
    shown = "" if success is None else f", success {_percent(success)}"
    return f"return {row[f'{prefix}return']:.3f}{shown} at step {row['step']:,} ({how})"


def _success(run: RunStatus) -> str:
    """The newest success, greedy unless it says otherwise."""
    row = next((row for row in reversed(run.rows) if {"success", "evaluation/success"} & row.keys()), None)
    if row is None:
        return NOTHING
    return _percent(row["evaluation/success"]) if "evaluation/success" in row else f"{_percent(row['success'])} drawn"


def _steps(run: RunStatus) -> str:
    step, total = (NOTHING if number is None else f"{number:,}" for number in (run.step, run.total))
    return f"{step} / {total}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %" if math.isfinite(value) else NOTHING


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
