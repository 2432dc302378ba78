"""What each fragment brings along of its past: the steps just before it, whatever lies between two fragments."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mneme.rollout_workers import Collector, Fragment

T = 7


def fragments_of(collector: Collector, count: int) -> list[Fragment]:
    made = [collector.collect()[0] for _ in range(count)]
    for fragment in made:
        fragment.validate()
    return made


@pytest.mark.parametrize("warm_up", [1, 3, 7, 10, 14, 20])
def test_the_past_is_what_the_fragments_before_hold(counting_collector: Callable[..., Collector], warm_up: int) -> None:
    fragments = fragments_of(counting_collector(length=T, warm_up=warm_up, kind="lstm"), 5)
    observed = np.concatenate([f.observations["observation"][:, :T] for f in fragments], 1)
    resets = np.concatenate([f.resets[:, :T] for f in fragments], 1)
    carries = {name: np.concatenate([f.carries[name] for f in fragments], 1) for name in fragments[0].carries}
    for k, fragment in enumerate(fragments):
        past = fragment.past
        assert past is not None
        assert fragment.warm_up == warm_up
        start = k * T - warm_up
        real = slice(max(0, -start), None)
        np.testing.assert_array_equal(past.observations["observation"][:, real], observed[:, max(0, start) : k * T])
        np.testing.assert_array_equal(past.resets[:, real], resets[:, max(0, start) : k * T])
        assert past.resets[:, : max(0, -start)].all()
        if start >= 0:
            for name, carry in past.carries.items():
                np.testing.assert_array_equal(carry, carries[name][:, start])


def test_the_past_changes_nothing_else(counting_collector: Callable[..., Collector]) -> None:
    plain, longer = (fragments_of(counting_collector(warm_up=p), 3) for p in (0, 30))
    for a, b in zip(plain, longer, strict=True):
        columns = b._columns()
        for name, array in a._columns().items():
            np.testing.assert_array_equal(array, columns[name])
        assert a.past is None


@pytest.mark.parametrize("warm_up", [3, 20])
def test_a_resumed_collector_remembers_the_past(counting_collector: Callable[..., Collector], warm_up: int) -> None:
    straight = counting_collector(length=T, warm_up=warm_up)
    fragments_of(straight, 2)
    state = straight.state()
    assert state is not None
    expected = fragments_of(straight, 4)
    resumed = counting_collector(length=T, warm_up=warm_up)
    resumed.set_state(state)
    for a, b in zip(expected, fragments_of(resumed, 4), strict=True):
        assert a.to_arrow().equals(b.to_arrow())


def test_what_is_held_does_not_grow(counting_collector: Callable[..., Collector]) -> None:
    collector = counting_collector(length=T, warm_up=10)

    def held() -> dict[str, Any]:
        state = collector.state()
        assert state is not None
        return {name: array.shape for name, array in state.items()}

    before = held()
    assert (before["past.observation.observation"], before["past.carry.h"]) == ((6, 10, 3), (6, 2, 16))
    fragments_of(collector, 6)
    assert held() == before
    for array in collector._history._observations.values():  # type: ignore[union-attr]
        assert array.base is None  # no view that keeps a whole fragment alive
