"""Stages of a benchmark, each with its own share of the time, worked on by processes that may fail or hang.

A stage is a list of items. Workers, processes of their own, are handed one item after another and answer with results,
one line each, as they find them. A worker that dies or takes too long costs the item it was at, less what it had told;
another takes its place. What a stage has no time for is named. Needs nothing but the standard library.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Lock, Thread, Timer
from time import monotonic
from typing import Any

Result = dict[str, Any]
Tell = Callable[[Result], None]

_MARK = "GPU-BENCHMARK "
_DONE = {"done": True}
_FAILURE = 2000  # characters of what a worker said last


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The work of one stage."""

    items: Sequence[str]  # the most important first
    at_once: int  # workers
    item_seconds: float  # that an item may take
    starting_seconds: float = 30.0  # that a worker's first item may take longer, as it has everything to import


@dataclass
class Outcome:
    """What came of one stage."""

    seconds: float = 0.0
    results: dict[str, list[Result]] = field(default_factory=dict)  # of each item that was begun, as they came
    failures: dict[str, str] = field(default_factory=dict)  # item -> what was said last
    left: list[str] = field(default_factory=list)  # items that there was no time for
    skipped: str = ""  # why nothing was tried


def run_stage(
    plan: Plan, command: Sequence[str], deadline: float, outcome: Outcome, heard: Callable[[], object]
) -> None:
    """Work on a stage until it is through, or `monotonic()` has come to the deadline.

    Args:
        plan: what to do.
        command: starts a worker, which calls `serve`.
        deadline: of the stage.
        outcome: is filled in.
        heard: is called whenever something was filled in, by one thread at a time.
    """
    began, lock = monotonic(), Lock()
    outcome.left = list(plan.items)

    def next_item() -> str | None:
        with lock:
            if monotonic() >= deadline or not outcome.left:
                return None
            outcome.results[item := outcome.left.pop(0)] = []
            return item

    def note(item: str, result: Result | None, failure: str | None) -> None:
        with lock:
            if result is not None:
                outcome.results[item].append(result)
            if failure is not None:
                outcome.failures[item] = failure
            outcome.seconds = monotonic() - began
            heard()

    def work() -> None:
        """One worker after another, each for as many items as it survives."""
        worker: _Worker | None = None
        while (item := next_item()) is not None:
            limit = plan.item_seconds
            if worker is None or worker.gone:
                worker, limit = _Worker(command), limit + plan.starting_seconds
            for result in worker.answers(item, min(limit, deadline - monotonic())):
                note(item, result, None)
            note(item, None, worker.failure)
        if worker is not None:
            worker.end()

    slots = [Thread(target=work, daemon=True) for _ in range(min(plan.at_once, len(plan.items)))]
    for slot in slots:
        slot.start()
    for slot in slots:
        slot.join()
    outcome.seconds = monotonic() - began


class _Worker:
    """A process that answers until it fails."""

    def __init__(self, command: Sequence[str]) -> None:
        self.failure: str | None = None
        self._said = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - as long as the process
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True, errors="replace"
        )

    def answers(self, item: str, seconds: float) -> Iterator[Result]:
        """Results of an item as they come."""
        assert self._process.stdin is not None and self._process.stdout is not None
        late = Timer(seconds, self._process.kill)
        late.start()
        try:
            with suppress(BrokenPipeError):  # where it had died before
                self._process.stdin.write(item + "\n")
                self._process.stdin.flush()
            for line in self._process.stdout:
                if not line.startswith(_MARK):
                    continue
                if (answer := json.loads(line.removeprefix(_MARK))) == _DONE:
                    return
                yield answer
        finally:
            in_time = late.is_alive()
            late.cancel()
        self._process.wait()
        self.failure = self._last_words() if in_time else f"no end after {seconds:.0f} s"

    @property
    def gone(self) -> bool:
        """True once the process has ended."""
        return self._process.poll() is not None

    def _last_words(self) -> str:
        self._said.seek(0)
        return self._said.read().strip()[-_FAILURE:] or f"the process ended with status {self._process.returncode}"

    def end(self) -> None:
        """End it: it has nothing to put in order."""
        self._process.kill()
        self._process.communicate()


def serve(work: Callable[[str, Tell], None], items: Iterable[str] = sys.stdin) -> None:
    """A worker: work on one item after another, as they are asked for. An exception ends it."""
    for line in items:
        work(line.strip(), _tell)
        _tell(_DONE)


def _tell(result: Result) -> None:
    print(_MARK + json.dumps(result), flush=True)
