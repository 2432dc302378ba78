"""A run's folder in the hands of one process, and what the folder tells others of it: state.json.

Processes that share locks are kept apart by one. Hosts that share files but no locks go by the state: whoever trains
renews it, and a state that was renewed a short while ago belongs to somebody who still trains. Their clocks are taken
to agree within seconds.
"""

import fcntl
import json
import logging
import os
import socket
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import IO, Literal, Self, get_args

from mneme.distributed.config import ConfigError
from mneme.storage.files import opened, read_text
from mneme.storage.files import replace as replace_file
from mneme.storage.paths import UNSUPPORTED, explained, shown

_log = logging.getLogger(__name__)

State = Literal["training", "complete", "stopped", "failed"]

LOCK, STATE = ".lock", "state.json"
RENEWAL = 15.0  # seconds
STALE = 120.0  # seconds without a renewal after which a process on another host is taken to be gone
_READERS = (0.0, 0.05, 0.2)  # seconds after which to try again, as `held` takes the lock for a moment
_MOST_PID, _MOST_TIME = 1 << 31, 1e11  # the latter is in the year 5138
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, kw_only=True)
class Held:
    """What state.json holds: the process that trains in a run's folder or was the last one to, and how it fared."""

    state: State
    host: str
    boot: str  # of the host's system, since its last start; empty where the system does not say
    pid: int
    began: float  # seconds since 1970
    seen: float  # seconds since 1970, when this was last renewed
    reason: str | None = None  # why it failed

    @property
    def elsewhere(self) -> bool:
        """True if it was written by another host, or rather not by this system since its last start."""
        return self.boot != _boot() or (not self.boot and self.host != socket.gethostname())

    def alive(self, now: float) -> bool:
        """True if the process may still train, as far as one can tell without locks."""
        if self.state != "training":
            return False
        if self.elsewhere:
            return self.host != socket.gethostname() and now - self.seen < STALE
        return self.pid != os.getpid() and _runs(self.pid)


def read_state(folder: Path) -> Held | None:
    """The state of the run in a folder; None if there is none that can be read."""
    try:
        state = Held(**json.loads(read_text(folder / STATE)))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    texts = (state.state, state.host, state.boot, state.reason or "")
    plain = all(isinstance(text, str) and text.isprintable() for text in texts)
    plain = plain and type(state.pid) is int and 0 < state.pid < _MOST_PID
    plain = plain and all(type(t) in (int, float) and 0 <= t < _MOST_TIME for t in (state.began, state.seen))
    return state if plain and state.state in get_args(State) else None


def held(folder: Path) -> bool:
    """True if some process trains in a folder now."""
    state = read_state(folder)
    if state is not None and state.elsewhere and state.alive(time.time()):
        return True
    try:
        with os.fdopen(opened(folder / LOCK, os.O_RDONLY)) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        return error.errno in UNSUPPORTED and state is not None and state.alive(time.time())
    return False


class Holding:
    """A folder held for this process until `close`, or until the process ends; `with` it also keeps the state there.

    Args:
        folder: a run's.

    Raises:
        ConfigError: another process holds it.
        OSError: it cannot be written, and what helps.
    """

    outcome: State = "failed"
    """What the state will say in the end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with explained(folder):
            self._lock: IO[str] = os.fdopen(opened(folder / LOCK, os.O_RDWR | os.O_CREAT), "r+")
        try:
            locked = self._take()
            self._refuse_another(locked)
        except BaseException:
            self._lock.close()
            raise
        now = time.time()
        self._held = Held(
            state="training", host=socket.gethostname(), boot=_boot(), pid=os.getpid(), began=now, seen=now
        )
        self._done, self._unwritten = Event(), False
        self._thread = Thread(target=self._renew, name="mneme-state", daemon=True)

    def _take(self) -> bool:
        """Lock the folder; false, with a warning, where its file system has no locks."""
        for pause in _READERS:
            time.sleep(pause)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except OSError as error:
                if error.errno in UNSUPPORTED:
                    _log.warning(
                        f"the file system of {self._folder} has no locks ({error.strerror}): state.json alone keeps "
                        f"other processes away, so see to it that no two begin there within seconds"
                    )
                    return False
        raise ConfigError(f"another process is training in {shown(self._folder)}; wait for it or stop it")

    def _refuse_another(self, locked: bool) -> None:
        state, now = read_state(self._folder), time.time()
        if state is None or not state.alive(now) or (locked and not state.elsewhere):
            return
        wait = f", or, if that host is gone, try again in {state.seen + STALE - now:.0f} s" if state.elsewhere else ""
        raise ConfigError(
            f"process {state.pid} on {state.host} is training in {shown(self._folder)}, as it said "
            f"{max(0, now - state.seen):.0f} s ago; wait for it or stop it there{wait}"
        )

    def __enter__(self) -> Self:
        self._write()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        outcome = "stopped" if isinstance(error, KeyboardInterrupt) else "failed" if error else self.outcome
        reason = (_printable(str(error)) or type(error).__name__) if error and outcome == "failed" else None
        self._held = replace(self._held, state=outcome, reason=reason)
        self._write()
        self.close()

    def close(self) -> None:
        """Let go of the folder."""
        self._lock.close()

    def _renew(self) -> None:
        while not self._done.wait(RENEWAL):
            self._write()

    def _write(self) -> None:
        """Write the state whole or not at all; a disk that is full costs what others see of the run, not the run."""
        self._held = replace(self._held, seen=time.time())
        try:
            replace_file(self._folder / STATE, json.dumps(asdict(self._held), indent=2) + "\n")
        except OSError as error:
            if not self._unwritten:
                _log.warning(
                    f"{self._folder / STATE} cannot be written ({error}): training goes on, and others cannot see it"
                )
            self._unwritten = True


def _printable(text: str) -> str:
    return "".join(letter for letter in " ".join(text.split()) if letter.isprintable())


def _boot() -> str:
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True
