"""Signals that ask a run to stop."""

import logging
import math
import os
import signal
from collections.abc import Iterator
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
    request, pressed, home = StopRequest(), math.inf, os.getpid()

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if os.getpid() != home:  # a process that an environment has forked off
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
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
    try:
        before = {number: signal.signal(number, ask) for number in wished}
    except ValueError:
        yield request
        return
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
