"""A slow actor is named, once."""

import pytest

from mneme.distributed.stragglers import Stragglers


def test_an_actor_that_is_far_slower_than_the_others_is_named_once(notes: list[str]) -> None:
    stragglers = Stragglers()
    stragglers.look({0: 2.0, 1: 9.0, 2: 1.0, 3: 2.5})
    (note,) = notes
    assert note.startswith(
        "the update waits for rollout actor 1: it delivered after 9.0 s, the others after 2.0 s (median)"
    )
    stragglers.look({0: 2.0, 1: 19.0, 2: 1.0})
    assert len(notes) == 1
    stragglers.look({0: 20.0, 1: 2.0, 2: 1.0})
    assert "rollout actor 0" in notes[1]


@pytest.mark.parametrize(
    "took",
    [
        {0: 1.0, 1: 4.9},  # soon enough
        {0: 2.0, 1: 6.0},  # not more than three times
        {0: 100.0},  # no others
        {},
    ],
)
def test_others_are_not(took: dict[int, float], notes: list[str]) -> None:
    Stragglers().look(took)
    assert notes == []
