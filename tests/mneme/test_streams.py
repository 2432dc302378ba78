"""Output that cannot be written costs what would have been shown, and nothing else."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import pytest
from rich.console import Console

from mneme.cli import main
from mneme.reporting.display import Display
from mneme.streams import Forgiving, kept_for_the_result

ROOT = Path(__file__).parents[2]


class Failing(io.StringIO):
    """A terminal that fails in one way."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.failure: Exception | None = error
        self.calls = 0

    def write(self, text: str) -> int:
        self.calls += 1
        if self.failure is not None:
            raise self.failure
        return super().write(text)

    def isatty(self) -> bool:
        raise self.failure or OSError


FAILURES = [
    OSError(errno.ENOSPC, "No space left on device"),
    BrokenPipeError(errno.EPIPE, "Broken pipe"),
    OSError(errno.EIO, "Input/output error"),
    ValueError("I/O operation on closed file."),
    RuntimeError("reentrant call inside <_io.BufferedWriter>"),
]


@pytest.mark.parametrize("wanted", [False, True])
def test_a_result_stands_alone_on_standard_output(wanted: bool, capfd: pytest.CaptureFixture[str]) -> None:
    with kept_for_the_result(wanted):
        print("an environment's", flush=True)
        os.write(1, b"a library's\n")
        subprocess.run([sys.executable, "-c", "print('a process\\'s')"], check=True)
    print("{}")
    others = "an environment's\na library's\na process's\n"
    assert capfd.readouterr() == (("{}\n", others) if wanted else (f"{others}{{}}\n", ""))


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("terminal", [False, True])
def test_a_display_whose_terminal_fails_goes_on(error: Exception, terminal: bool) -> None:
    with Display(Console(file=Failing(error), force_terminal=terminal)) as display:
        display.start(100, "run", "")
        display.update({"return": 1.0}, 10, 1)
        display.note("a note")


def test_a_live_view_that_cannot_be_drawn_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("only one live display may be active at once")

    monkeypatch.setattr("rich.live.Live.start", broken)
    file = io.StringIO()
    with Display(Console(file=file, force_terminal=True)) as display:
        display.start(100, "run", "")
        display.update({"return": 1.0}, 10, 1)
    assert "10/100" in file.getvalue()


@pytest.mark.parametrize("width", [0, 1, 10**11])
def test_a_width_that_no_terminal_has_is_not_believed(width: int) -> None:
    file = io.StringIO()
    with Display(Console(file=file, force_terminal=True, width=width)) as display:
        display.start(100, "run", "")
    assert "return" in file.getvalue()
    assert max(map(len, file.getvalue().splitlines())) < 1000


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_letters_that_the_terminal_lacks_are_replaced(encoding: str) -> None:
    raw = io.BytesIO()
    stream = Forgiving(io.TextIOWrapper(raw, encoding=encoding))
    print("staleness –  × 2 … 日", file=stream, flush=True)
    assert raw.getvalue().decode(encoding).startswith("staleness -  ")
    assert raw.getvalue().decode(encoding).endswith(" 2 ... ?\n")


def test_a_disk_with_room_again_is_written_again_and_a_reader_that_left_is_not() -> None:
    full, gone = Failing(FAILURES[0]), Failing(FAILURES[1])
    for behind, calls in ((full, 2), (gone, 1)):
        stream = Forgiving(behind)
        stream.write("a")
        behind.failure = None
        stream.write("b")
        assert behind.calls == calls
    assert full.getvalue() == "b"


def test_no_stream_at_all_takes_everything() -> None:
    stream: IO[str] = Forgiving(None)  # type: ignore[assignment]
    assert stream.write("text") == 4
    assert not stream.isatty()


@pytest.fixture
def run(tmp_path: Path) -> str:
    """A folder that looks like a run's."""
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    return str(tmp_path / "run")


def test_an_evaluation_whose_result_cannot_be_printed_has_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], run: str
) -> None:
    monkeypatch.setattr("mneme.evaluation.evaluate_checkpoint", lambda *_, **__: None)
    monkeypatch.setattr("mneme.reporting.meter.describe_evaluation", lambda _: "success 100 %")
    for failure, status in ((FAILURES[0], 1), (FAILURES[1], 0)):
        monkeypatch.setattr("sys.stdout", Failing(failure))
        assert main(["evaluate", run]) == status
        assert ("the result could not be printed: [Errno 28]" in capsys.readouterr().err) == bool(status)


def test_sys_exit_within_a_run_is_a_failure_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], run: str
) -> None:
    monkeypatch.setattr("mneme.evaluation.evaluate_checkpoint", lambda *_, **__: sys.exit(0))
    assert main(["evaluate", run]) == 1
    assert "called sys.exit(0)" in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_complaint_at_the_interpreters_end() -> None:
    code = (
        "from mneme.streams import forgiving_output\n"
        "with forgiving_output():\n"
        "    for _ in range(2000): print('a line of a run, – and more of it')"
    )
    reading, writing = os.pipe()
    os.close(reading)
    with Path("/dev/full").open("w") as full:
        for stdout in (writing, full, None):
            done = subprocess.run(
                [sys.executable, "-c", code],
                stdout=stdout,
                stderr=subprocess.PIPE,
                text=True,
                timeout=120,
                env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "latin-1"},
                preexec_fn=None if stdout else lambda: os.close(1),
            )
            assert (done.returncode, done.stderr) == (0, "")
    os.close(writing)
