"""The replay's bounds: reached, never exceeded."""

import random
from typing import Any

import pytest

from mneme.distributed.replay import Held, Replay


def refs(fragments: list[Held[Any]]) -> list[Any]:
    return [fragment.ref for fragment in fragments]


def test_oldest_first_and_each_once() -> None:
    replay: Replay[str] = Replay(max_bytes=100, max_lag=0)
    for name in "abc":
        replay.add(name, 10, steps=1, version=0)
    assert replay.sample(4, version=0) == []
    assert refs(replay.sample(2, version=0)) == ["a", "b"]
    assert refs(replay.sample(1, version=0)) == ["c"]
    assert len(replay) == 0
    assert replay.nbytes == 0


def test_the_byte_bound_is_reached_and_never_exceeded() -> None:
    replay: Replay[int] = Replay(max_bytes=1000, max_lag=10)
    sizes, rng, highest = {}, random.Random(0), 0
    for i in range(500):
        sizes[i] = rng.choice([100, 150, 250])
        replay.add(i, sizes[i], steps=2, version=0)
        assert replay.nbytes <= 1000
        highest = max(highest, replay.nbytes)
        assert replay.room == (1000 - replay.nbytes) // max(sizes.values())
    assert highest == 1000
    kept = refs(replay.sample(len(replay), version=0))
    assert kept == list(range(500 - len(kept), 500))  # the newest, in order
    assert replay.fragments == (500, 0, 500 - len(kept), len(kept), 0)
    assert replay.steps == (1000, 0, 1000 - 2 * len(kept), 2 * len(kept), 0)


def test_a_fragment_larger_than_the_bound_is_not_taken() -> None:
    replay: Replay[str] = Replay(max_bytes=10, max_lag=0)
    replay.add("small", 10, steps=1, version=0)
    replay.add("large", 11, steps=1, version=0)
    assert refs(replay.sample(1, version=0)) == ["small"]
    assert replay.fragments.dropped_full == 1


@pytest.mark.parametrize("max_lag", [0, 1, 3])
def test_the_lag_bound_is_reached_and_never_exceeded(max_lag: int) -> None:
    replay: Replay[int] = Replay(max_bytes=10**6, max_lag=max_lag)
    lags = set()
    for version in range(50):
        for _ in range(3):
            replay.add(version, 1, 1, version)
        if version % 2:  # a learner that keeps up with half of what arrives
            lags |= {version - collected for collected in refs(replay.sample(3, version))}
    assert max(lags) == max_lag
    assert replay.fragments.dropped_stale > 0
