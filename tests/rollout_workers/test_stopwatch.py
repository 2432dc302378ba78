"""Time is counted once, and to the innermost part."""

import pytest

from mneme.rollout_workers import stopwatch
from mneme.rollout_workers.stopwatch import Stopwatch


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    time = [100.0]
    monkeypatch.setattr(stopwatch, "perf_counter", lambda: time[0])
    return time


def test_an_inner_part_is_not_counted_twice(now: list[float]) -> None:
    watch = Stopwatch("all", "inner", "never")
    with watch("all"):
        now[0] += 1
        with watch("inner"):
            now[0] += 10
        now[0] += 2
        with pytest.raises(KeyError), watch("inner"):
            now[0] += 20
            raise KeyError
        now[0] += 4
    now[0] += 1000
    assert watch.seconds == {"all": 7.0, "inner": 30.0, "never": 0.0}


def test_what_another_measured_is_added() -> None:
    watch = Stopwatch("a", "b")
    watch.add({"a": 2.0}, share=0.5)
    watch.add({"a": 1.0, "b": 3.0})
    assert watch.seconds == {"a": 2.0, "b": 3.0}


def test_what_another_measured_meanwhile_is_not_counted_twice(now: list[float]) -> None:
    watch = Stopwatch("all", "a", "b")
    with watch("all"):
        now[0] += 10
        watch.add({"a": 4.0, "b": 6.0}, share=0.5)
        now[0] += 1
    assert watch.seconds == {"all": 6.0, "a": 2.0, "b": 3.0}
