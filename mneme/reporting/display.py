"""Progress in the terminal: a live view where one can be drawn, else one plain line per update."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter
from types import TracebackType
from typing import IO, NamedTuple, Self, cast

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from mneme.callbacks import Callback, Outcome, Progress, RunStart
from mneme.reporting.listening import Listener
from mneme.streams import Forgiving

NOTHING = "–"
_WIDTHS = range(20, 1000)  # columns that a terminal may have; what says otherwise is not believed
_USUAL_WIDTH = 80
_GAP = 2  # columns between two quantities


class Quantity(NamedTuple):
    """One value of an update's row and how people read it."""

    key: str  # in the row
    name: str
    text: Callable[[float], str]
    in_line: str | None = None  # its place in a plain line, where {} is the value; None: the live view only
    always: bool = True  # shown as a dash where it is not measured; otherwise left out


QUANTITIES = (
    Quantity("return", "return", lambda v: f"{v:.2f}" if abs(v) < 1000 else f"{v:,.0f}", "return {}"),
    Quantity("success", "success", lambda v: f"{100 * v:.1f} %", "success {}"),
    Quantity("episode_length", "length", lambda v: f"{v:,.0f}", "length {}"),
    Quantity("kl", "KL", lambda v: f"{v:.4f}", "kl {}"),
    Quantity("entropy", "entropy", lambda v: f"{v:.3f}"),
    Quantity("bptt_length", "K", lambda v: f"{v:,.0f}", "K {}"),
    Quantity("signal/gate", "gate", lambda v: f"{v:.3f}", "gate {}", always=False),
    Quantity("value_loss", "value loss", lambda v: f"{v:.4g}"),
    Quantity("steps_per_second", "steps/s", lambda v: f"{v:,.0f}", "{} steps/s"),
    Quantity("lag", "lag", lambda v: f"{v:.2g}", "lag {}"),
    Quantity("staleness", "staleness", lambda v: f"{v:.2g}", "staleness {}"),
    Quantity("fragments_dropped", "dropped", lambda v: f"{v:,.0f}"),
)


class Display(Callback):
    """Shows one run, and what is logged meanwhile under "mneme"; a context manager, so that the terminal is left tidy
    whatever happens.

    A terminal that fails costs what would have been shown, never the run: no method raises.

    Args:
        console: where to draw; standard output by default.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._console.file = cast(IO[str], Forgiving(self._console.file))
        if self._console.width not in _WIDTHS:
            self._console.width = _USUAL_WIDTH
        self._live: Live | None = None
        self._bar = Bar(
            BarColumn(bar_width=None, complete_style="cyan", finished_style="green"),
            TextColumn("[bold]{task.percentage:.0f} %"),
            TextColumn("{task.fields[steps]} steps"),
            TimeElapsedColumn(),
            TextColumn("eta {task.fields[eta]}"),
            console=self._console,
            expand=True,
        )
        self._title = self._about = ""
        self._total = 1
        self._first: tuple[float, int] | None = None  # time and step of the first update
        self._sentences = _Sentences(self)

    def __enter__(self) -> Self:
        self._sentences.listen()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def on_start(self, run: RunStart) -> None:
        """Begin."""
        self._sentences.listen()
        config = run.config
        about = f"{config.env.id} with {config.policy.controller.kind} in {config.learner.mode} mode"
        self.start(config.train.total_timesteps, run.folder.name, about)

    def on_update(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        """Show the update."""
        self.update(metrics, progress.steps, progress.update)

    def on_end(self, progress: Progress, outcome: Outcome) -> None:
        """Leave the last view standing."""
        self.close()

    def start(self, total_timesteps: int, title: str, about: str) -> None:
        """Begin a run of `total_timesteps` environment steps, of that name and about that."""
        self._total, self._title, self._about = total_timesteps, title, about
        if not self._console.is_terminal:
            self._write(f"{title}: {about}, {total_timesteps:,} steps")
            return
        with self._costing_only_itself():
            self._bar.add_task("", total=total_timesteps, steps=self._progress(0), eta=NOTHING)
            self._live = Live(self._view({}, NOTHING), console=self._console, refresh_per_second=4)
            self._live.start()

    def update(self, row: Mapping[str, float | int], step: int, number: int) -> None:
        """Show the latest values; what is missing, None or not a number appears as a dash.

        Args:
            row: metrics by name, those of `QUANTITIES` among them.
            step: environment steps so far.
            number: updates so far; those to come are reckoned by their steps.
        """
        row = _with_gate(row)
        texts = {q.key: _text(q, row.get(q.key)) for q in QUANTITIES if q.always or q.key in row}
        eta, update = self._eta(row, step), f"{number:,}/{max(number, math.ceil(number * self._total / step)):,}"
        if self._live:
            with self._costing_only_itself():
                self._bar.update(self._bar.task_ids[0], completed=step, steps=self._progress(step), eta=eta)
                self._live.update(self._view(texts, update))
            return
        percent = f"{min(100, 100 * step // self._total):>3} %"
        values = [q.in_line.format(texts[q.key]) for q in QUANTITIES if q.in_line and q.key in texts]
        self._write("  ".join([f"step {self._progress(step)}", percent, f"update {update}", f"eta {eta}", *values]))

    def note(self, message: str) -> None:
        """Show an event or a warning above the live view, or as a line of its own. Any thread may call it."""
        if self._console.is_terminal:
            with self._costing_only_itself():
                self._console.print(Text.assemble(("• ", "yellow"), message))
        else:
            self._write(message)

    def close(self) -> None:
        """Leave the last view standing and give the terminal back."""
        if self._live:
            with self._costing_only_itself():
                self._live.stop()
            self._live = None
        self._sentences.stop_listening()

    @contextmanager
    def _costing_only_itself(self) -> Iterator[None]:
        """Without a live view from now on, where drawing fails."""
        try:
            yield
        except Exception:
            self._live = None

    def _write(self, line: str) -> None:
        self._console.file.write(line + "\n")
        self._console.file.flush()

    def _progress(self, step: int) -> str:
        total = f"{self._total:,}"
        return f"{step:>{len(total)},}/{total}"

    def _eta(self, row: Mapping[str, float | int], step: int) -> str:
        """Time left at the speed since the first update; a resumed run's earlier steps do not count."""
        now = perf_counter()
        if self._first is None:
            self._first = (now, step)
            speed = row.get("steps_per_second") or math.nan
        else:
            started, first_step = self._first
            speed = (step - first_step) / max(now - started, 1e-9)
        if not speed > 0:
            return NOTHING
        return clock(max(0, self._total - step) / speed)

    def _view(self, texts: Mapping[str, str], update: str) -> Group:
        shown = {q.name: texts.get(q.key, NOTHING) for q in QUANTITIES if q.always or q.key in texts}
        tables = [_table(part) for part in _broken(shown, self._console.width)]
        return Group(Text(self._title, style="bold"), Text(f"{self._about}, update {update}"), self._bar, *tables)


class _Sentences(Listener):
    """Passes on what is logged."""

    def __init__(self, display: Display) -> None:
        super().__init__()
        self._display = display

    def emit(self, record: logging.LogRecord) -> None:
        """Show one."""
        self._display.note(record.getMessage())


def _broken(shown: Mapping[str, str], width: int) -> list[dict[str, str]]:
    """Names and their texts in as many parts as it takes for none to be wider than `width` columns."""
    parts: list[dict[str, str]] = [{}]
    left = width
    for name, text in shown.items():
        needed = max(len(name), len(text))
        if needed > left and parts[-1]:
            parts.append({})
            left = width
        parts[-1][name] = text
        left -= needed + _GAP
    return parts


def _table(shown: Mapping[str, str]) -> Table:
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="dim")
    for name in shown:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row(*shown.values())
    return table


def clock(duration: float) -> str:
    """Hours, minutes and seconds of a duration in seconds."""
    seconds = math.ceil(duration)
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def _with_gate(row: Mapping[str, float | int]) -> Mapping[str, float | int]:
    """The row, and where several layers say how far their gates are open, the mean of them."""
    gates = [value for name, value in row.items() if name.startswith("signal/gate_")]
    return {**row, "signal/gate": sum(gates) / len(gates)} if gates else row


def _text(quantity: Quantity, value: float | None) -> str:
    return NOTHING if value is None or not math.isfinite(value) else quantity.text(value)
