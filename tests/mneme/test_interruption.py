"""Signals that ask a run to stop."""

import signal

import pytest

from mneme import interruption
from mneme.interruption import interrupted_by_sigterm, stopping_on_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_asks_for_a_stop_and_is_given_back(number: signal.Signals, notes: list[str]) -> None:
    before = signal.getsignal(number)
    with stopping_on_signals() as stop:
        assert not stop.made
        signal.raise_signal(number)
        assert stop.made
    assert len(notes) == 1
    assert signal.getsignal(number) == before


def test_a_second_wish_interrupts_and_one_that_comes_twice_at_once_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(interruption, "monotonic", lambda: now[0])
    with pytest.raises(KeyboardInterrupt), stopping_on_signals():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # as timeout(1) sends it
        now[0] += 2
        signal.raise_signal(signal.SIGINT)


def test_a_dropped_session_never_interrupts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(100, 200, 5))
    monkeypatch.setattr(interruption, "monotonic", lambda: float(next(now)))
    with stopping_on_signals() as stop:
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGTERM)  # what asked for the stop before was no key
        assert stop.made


def test_while_a_run_starts_sigterm_interrupts_and_is_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), interrupted_by_sigterm():
        with stopping_on_signals() as stop:
            signal.raise_signal(signal.SIGTERM)
            assert stop.made
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping_on_signals() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.made
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
