"""A run's folder is one process's, on this host and on others that share its files, and says how its run fares."""

import errno
import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from mneme.distributed.config import ConfigError
from mneme.storage import holding
from mneme.storage.holding import STALE, Holding, held, read_state


def of_another_host(folder: Path, *, seconds_ago: float, **changes: Any) -> None:
    """Leave the state that a process on another host has written."""
    then = time.time() - seconds_ago
    state = {"state": "training", "host": "elsewhere", "boot": "b", "pid": 7, "began": then, "seen": then} | changes
    (folder / "state.json").write_text(json.dumps(state))


@pytest.fixture
def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", unsupported)


def test_the_state_follows_the_run(tmp_path: Path) -> None:
    with Holding(tmp_path) as mine:
        during = read_state(tmp_path)
        assert during is not None
        assert (during.state, during.pid, during.elsewhere) == ("training", os.getpid(), False)
        assert held(tmp_path)
        mine.outcome = "complete"
    after = read_state(tmp_path)
    assert after is not None
    assert (after.state, after.reason) == ("complete", None)
    assert not held(tmp_path)


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [(OSError("a\nb"), "failed", "a b"), (KeyboardInterrupt(), "stopped", None), (OSError(), "failed", "OSError")],
)  # fmt: skip
def test_a_run_that_ends_otherwise_says_how(tmp_path: Path, error: BaseException, state: str, reason: str) -> None:
    with pytest.raises(type(error)), Holding(tmp_path):
        raise error
    after = read_state(tmp_path)
    assert after is not None
    assert (after.state, after.reason) == (state, reason)


def test_the_state_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "RENEWAL", 0.001)
    with Holding(tmp_path):
        first = read_state(tmp_path)
        assert first is not None
        while (state := read_state(tmp_path)) is None or state.seen == first.seen:
            pass
        assert state.began == first.began


def test_another_host_that_still_trains_is_refused_by_name(tmp_path: Path) -> None:
    of_another_host(tmp_path, seconds_ago=20)
    assert held(tmp_path)
    with pytest.raises(ConfigError, match=r"process 7 on elsewhere is training in .* 20 s ago; .*try again in 100 s"):
        Holding(tmp_path)


@pytest.mark.parametrize(
    "left",
    [{"seconds_ago": STALE + 1}, {"seconds_ago": 1, "state": "failed"}, {"seconds_ago": 1, "host": "this"}],
    ids=["gone", "ended", "restarted"],
)
def test_what_a_host_has_left_behind_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: dict[str, Any]
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "this")
    of_another_host(tmp_path, **left)
    assert not held(tmp_path)
    Holding(tmp_path).close()


def test_a_process_of_this_host_that_was_killed_holds_nobody_up(tmp_path: Path) -> None:
    with Holding(tmp_path):
        state = (tmp_path / "state.json").read_text()
    (tmp_path / "state.json").write_text(state)
    assert not held(tmp_path)
    Holding(tmp_path).close()


@pytest.mark.usefixtures("without_locks")
def test_without_locks_a_living_process_of_this_host_is_refused(tmp_path: Path) -> None:
    with Holding(tmp_path):
        state = json.loads((tmp_path / "state.json").read_text())
        (tmp_path / "state.json").write_text(json.dumps(state | {"pid": os.getppid()}))
        assert held(tmp_path)
        with pytest.raises(ConfigError, match=f"process {os.getppid()} on .* wait for it or stop it there$"):
            Holding(tmp_path)
        (tmp_path / "state.json").write_text(json.dumps(state | {"pid": 2**22 + 1}))
        assert not held(tmp_path)
        Holding(tmp_path).close()


def test_who_looks_does_not_keep_others_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look takes the lock for a moment, in which a run may want to begin."""
    (tmp_path / ".lock").touch()
    looking = (tmp_path / ".lock").open()
    fcntl.flock(looking, fcntl.LOCK_SH)
    monkeypatch.setattr("time.sleep", lambda seconds: looking.close() if seconds else None)
    Holding(tmp_path).close()
    assert looking.closed


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"state": 1}', json.dumps({"state": "training", "host": "a\x1bb", "boot": "", "pid": 1,
    "began": 0, "seen": 0})],
)  # fmt: skip
def test_a_state_that_is_none_is_passed_over(tmp_path: Path, text: str) -> None:
    (tmp_path / "state.json").write_text(text)
    assert read_state(tmp_path) is None
    Holding(tmp_path).close()


def test_a_full_disk_costs_the_state_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notes: list[str]) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("mneme.storage.files.opened", full)
    with Holding(tmp_path):
        pass
    assert len(notes) == 1
    assert "others cannot see it" in notes[0]
