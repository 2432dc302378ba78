"""Signals that ask a run to stop."""

import logging
import math
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from types import FrameType

_log = logging.getLogger(__name__)

_SAME_WISH = 0.5  # seconds; timeout(1) sends its signal twice at once, to the process and to its group


@dataclass
class StopRequest:
    """A request to stop the run; `made` is true once somebody has asked."""

    made: bool = False


@contextmanager
def stopping_on_signals() -> Iterator[StopRequest]:
    """Ctrl-C and SIGTERM ask for a stop after the update at hand; a second one interrupts at once.

    So does SIGHUP, a terminal that was closed, once or often, unless nohup has it ignored. Outside the main thread
    signals belong to somebody else, and no request is ever made.
    """
    request, pressed = StopRequest(), math.inf

    def ask(number: int) -> None:
        nonlocal pressed
        if number != signal.SIGHUP:
            if monotonic() - pressed > _SAME_WISH:
                raise KeyboardInterrupt
            pressed = min(pressed, monotonic())
        if not request.made:
            request.made = True
            _log.info("stopping after the update at hand; once more to stop at once, without a checkpoint")

    wished = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        wished.append(signal.SIGHUP)
    with _handled(wished, ask):
        yield request


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """SIGTERM interrupts at once, as Ctrl-C does, while a run starts and ends; in the main thread."""

    def interrupt(number: int) -> None:
        raise KeyboardInterrupt

    with _handled([signal.SIGTERM], interrupt):
        yield


@contextmanager
def _handled(numbers: Sequence[int], handle: Callable[[int], None]) -> Iterator[None]:
    """Handle signals in this process alone; outside of the main thread nothing is handled."""
    home = os.getpid()

    def handler(number: int, frame: FrameType | None) -> None:
        if os.getpid() == home:
            handle(number)
            return
        signal.signal(number, signal.SIG_DFL)  # a process that an environment has forked off
        os.kill(os.getpid(), number)

    try:
        before = {number: signal.signal(number, handler) for number in numbers}
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        for number, known in before.items():
            signal.signal(number, known)
