"""Telling an actor that works from one that waits for nothing."""

import time

import pytest
import ray

from mneme.distributed import doubts
from mneme.distributed.doubts import Doubts

pytestmark = pytest.mark.ray


@ray.remote(num_cpus=0)
class Worker:
    def ready(self) -> bool:
        return True

    def work(self, seconds: float) -> None:
        time.sleep(seconds)


def test_who_works_is_not_idle_and_who_does_nothing_is(cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doubts, "_APART", 0.2)
    busy, idle, asked = Worker.remote(), Worker.remote(), Doubts()
    ray.get([busy.ready.remote(), idle.ready.remote()])
    work = busy.work.remote(30)
    deadline = time.monotonic() + 60
    while not asked.idle(1, idle):
        assert not asked.idle(0, busy)
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not ray.wait([work], timeout=0)[0], "so slow a machine cannot tell"
    asked.forget(1)
    assert not asked.idle(1, idle), "begins anew"
