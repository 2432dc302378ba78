"""A parent that starts a training process again when that is killed, or loses Ray: `mneme train ... --retries N`.

It is a program of its own, which imports Python's own modules alone, so that the memory that runs out is not its own.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

LOST = 75  # the status with which a process asks to be started again; to sysexits.h, too, it says: try again
_PAUSES = (1, 5, 15, 60)  # seconds before the first try, the second, ...
_TICK = 0.1
_PR_SET_PDEATHSIG = 1  # of Linux's <sys/prctl.h>


def become_supervisor(folder: Path, retries: int, words: Sequence[str]) -> NoReturn:
    """Replace this process by the parent of one that trains.

    Args:
        folder: the run's.
        retries: times in a row that it is started again without a new checkpoint.
        words: the command line. Its process is told by --retries 0 to train itself.
    """
    program = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1]  # -m mneme, or a script's path
    end = words.index("--") if "--" in words else len(words)
    command = [sys.executable, *program, *words[:end], "--retries", "0", *words[end:]]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-P", __file__, str(folder), str(retries), *command])


def supervise(folder: Path, retries: int, command: Sequence[str]) -> int:
    """Run a command until it ends by itself, or on a signal that was sent here; its exit status."""
    asked: list[int] = []
    child: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if child is not None:
            child.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, pass_on)
    failures, newest = 0, _newest_checkpoint(folder)
    bind = _dying_with_this_process()
    while True:
        try:
            child = subprocess.Popen(command, preexec_fn=bind)
        except OSError as error:
            status, how = LOST, f"could not be started ({error.strerror})"
        else:
            if asked:  # before there was anybody to tell
                child.send_signal(asked[-1])
            status = child.wait()
            how = f"was killed ({_name(-status)})" if status < 0 else "lost Ray or its learner"
        if asked or (status >= 0 and status != LOST):
            break
        before, newest = newest, _newest_checkpoint(folder)
        failures = failures + 1 if newest == before else 1
        if failures > retries:
            _say(f"the process that trains {how}, {failures} times in a row without a new checkpoint; see what it says")
            break
        pause, where = _PAUSES[min(failures, len(_PAUSES)) - 1], newest or "the beginning"
        _say(f"the process that trains {how}; going on from {where} in {pause} s (try {failures} of {retries})")
        child, until = None, time.monotonic() + pause
        while not asked and time.monotonic() < until:
            time.sleep(_TICK)
        if asked:
            return 128 + asked[-1]
    return status if status >= 0 else 128 - status


def _dying_with_this_process() -> Callable[[], None] | None:
    """What a child calls on its way to have SIGTERM, and so to stop with a checkpoint, once this process is gone."""
    if sys.platform != "linux":
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def bind() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it was gone before
            os._exit(128 + signal.SIGTERM)

    return bind


def _newest_checkpoint(folder: Path) -> str | None:
    return max((path.name for path in folder.glob("checkpoints/step-*")), default=None)


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _say(sentence: str) -> None:
    print(f"mneme: {sentence}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(supervise(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
