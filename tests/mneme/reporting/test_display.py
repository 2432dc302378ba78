"""The terminal view: plain lines on a pipe, a live view on a terminal."""

import io
import math
import threading

import pytest
from rich.console import Console

from mneme.reporting.display import NOTHING, QUANTITIES, Display

ROW: dict[str, float] = {
    "return": 0.312,
    "success": 0.3123,
    "episode_length": 65.0,
    "kl": 0.00421,
    "entropy": 1.234,
    "value_loss": 0.0567,
    "steps_per_second": 44_120.4,
    "lag": 0.0,
    "bptt_length": 65.0,
    "staleness": math.nan,
    "fragments_dropped": 7.0,
}


def console_of(terminal: bool, width: int = 80) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, force_terminal=terminal, width=width, color_system=None), file


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the display sees, as its only item."""
    now = [100.0]
    monkeypatch.setattr("mneme.reporting.display.perf_counter", lambda: now[0])
    return now


def test_a_pipe_gets_one_plain_line_per_update(clock: list[float]) -> None:
    console, file = console_of(terminal=False, width=20)
    with Display(console) as display:
        display.start(500_000, "delayed cue", "a task with gru")
        display.update(ROW, 24_960, 1)
        clock[0] += 10
        display.note("a worker was replaced")
        display.update(ROW | {"staleness": 0.25, "lag": 1.5}, 124_960, 5)
    assert file.getvalue().splitlines() == [
        "delayed cue: a task with gru, 500,000 steps",
        "step  24,960/500,000    4 %  update 1/21  eta 0:00:11  return 0.31  success 31.2 %  length 65  kl 0.0042  "
        "K 65  44,120 steps/s  lag 0  staleness –",
        "a worker was replaced",
        "step 124,960/500,000   24 %  update 5/21  eta 0:00:38  return 0.31  success 31.2 %  length 65  kl 0.0042  "
        "K 65  44,120 steps/s  lag 1.5  staleness 0.25",
    ]


def test_the_estimate_leaves_out_steps_from_before_a_resume(clock: list[float]) -> None:
    console, file = console_of(terminal=False)
    display = Display(console)
    display.start(1000, "resumed", "")
    display.update({}, 900, 9)
    clock[0] += 10
    display.update({}, 910, 10)
    first, second = file.getvalue().splitlines()[1:]
    assert f"eta {NOTHING}" in first
    assert "eta 0:01:30" in second


def test_steps_beyond_the_total_are_a_hundred_percent() -> None:
    console, file = console_of(terminal=False)
    display = Display(console)
    display.start(1000, "run", "")
    display.update({"steps_per_second": 10.0}, 1024, 4)
    assert "step 1,024/1,000  100 %  update 4/4  eta 0:00:00" in file.getvalue()


@pytest.mark.parametrize(
    ("signals", "gate"),
    [
        ({}, ""),
        ({"signal/gate": 0.0421}, "  gate 0.042"),
        ({"signal/gate_0": 0.1, "signal/gate_1": 0.2}, "  gate 0.150"),
    ],
)
def test_a_gate_is_shown_where_there_is_one(signals: dict[str, float], gate: str) -> None:
    console, file = console_of(terminal=False)
    display = Display(console)
    display.start(1000, "run", "")
    display.update(ROW | signals, 10, 1)
    assert f"K 65{gate}  44,120 steps/s" in file.getvalue()
    console, file = console_of(terminal=True)
    with Display(console) as display:
        display.start(1000, "run", "a task with pseudo_mamba")
        display.update(ROW | signals, 10, 1)
    assert (gate.strip().partition(" ")[2] in file.getvalue()) and (" gate " in file.getvalue()) == bool(gate)
    assert "a task with pseudo_mamba" in file.getvalue()
    assert "update 1/100" in file.getvalue()


@pytest.mark.parametrize("row", [{}, {q.key: math.nan for q in QUANTITIES}, {"return": None}])
def test_what_is_missing_is_a_dash(row: dict[str, float]) -> None:
    console, file = console_of(terminal=False)
    display = Display(console)
    display.start(1000, "run", "")
    display.update(row, 10, 1)
    line = file.getvalue().splitlines()[-1]
    assert line.count(NOTHING) == 1 + sum(q.in_line is not None for q in QUANTITIES if q.always or q.key in row)
    assert "nan" not in line
    assert "None" not in line


def test_a_terminal_gets_a_live_view() -> None:
    console, file = console_of(terminal=True)
    with Display(console) as display:
        display.start(500_000, "delayed cue", "a task with gru")
        display.update(ROW, 250_000, 10)
        display.note("the [server] cannot be reached")
    text = file.getvalue()
    lines = text.splitlines()
    final = "\n".join(lines[-7:])
    assert "• the [server] cannot be reached" in text, "notes are not read as markup"
    for quantity in (quantity for quantity in QUANTITIES if quantity.always):
        assert quantity.name in final, "every column has its name within 80 characters"
    for value in ("0.31", "31.2 %", "0.0042", "1.234", "0.0567", "44,120", "7", NOTHING):
        assert value in final
    assert "50 %" in final
    assert "250,000/500,000" in final
    assert "\x1b[?25h" in text, "the cursor is given back"


@pytest.mark.parametrize("width", [60, 72, 80, 100])
def test_the_live_view_is_whole_however_narrow_the_terminal(width: int) -> None:
    console, file = console_of(terminal=True, width=width)
    with Display(console) as display:
        display.start(50_000_000, "delayed_cue-mamba2-20260301-101500-seed0-4711", "")
        display.update(ROW | {"return": -1_234_567.0}, 25_000_000, 1_500)
    text = file.getvalue()
    final = text[text.rindex("delayed_cue") :]
    for name in (quantity.name for quantity in QUANTITIES if quantity.always):
        assert name in final
    for value in ("-1,234,567", "31.2 %", "0.0042", "1.234", "0.0567", "44,120", "7", NOTHING):
        assert value in final
    assert "…" not in final


def test_an_error_gives_the_terminal_back() -> None:
    console, file = console_of(terminal=True)
    with pytest.raises(RuntimeError), Display(console) as display:
        display.start(10, "run", "")
        raise RuntimeError
    assert "\x1b[?25h" in file.getvalue()
    display.close()


def test_notes_may_come_before_the_start_and_from_other_threads() -> None:
    console, file = console_of(terminal=True)
    with Display(console) as display:
        display.note("first")
        display.start(10, "run", "")
        thread = threading.Thread(target=display.note, args=("from a thread",))
        thread.start()
        thread.join()
    display.note("last")
    assert all(message in file.getvalue() for message in ("• first", "• from a thread", "• last"))
