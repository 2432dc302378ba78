"""Which lengths share a row, and which rows are handed over."""

import numpy as np
import pytest

from mneme.rollout_workers.packing import PADDING, best_fit, ripe


def test_the_longest_go_first_each_into_the_fullest_row_that_takes_it() -> None:
    assert best_fit([3, 7, 5, 2, 3], [False] * 5, 10, 0) == [[1, 0], [2, 4, 3]]


def test_what_has_waited_goes_before_what_is_longer() -> None:
    assert best_fit([1, 9, 8], [False] * 3, 10, 1) == [[0, 1], [2]]


def test_what_has_to_open_a_row_opens_one() -> None:
    rows = best_fit([2, 6, 3, 4], [True, False, True, False], 10, 0)
    assert rows == [[2, 1], [0, 3]]


@pytest.mark.parametrize("seed", range(5))
def test_every_length_is_in_one_row_and_no_row_is_too_long(seed: int) -> None:
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 101, 60).tolist()
    leading = (random.random(60) < 0.2).tolist()
    rows = best_fit(lengths, leading, 100, 20)
    assert sorted(i for row in rows for i in row) == list(range(60))
    assert all(sum(lengths[i] for i in row) <= 100 for row in rows)
    assert all(not leading[i] for row in rows for i in row[1:])


@pytest.mark.parametrize("seed", range(5))
def test_rows_are_handed_over_as_long_as_their_padding_is_small(seed: int) -> None:
    filled = np.random.default_rng(seed).integers(50, 101, 40).tolist()
    filled[7] = 100
    chosen = ripe(filled, [0] * 40, 100, least=0, most=10**9)
    steps = [filled[row] for row in chosen]
    assert sum(steps) > (1 - PADDING) * 100 * len(steps)
    rest = [filled[row] for row in range(40) if row not in chosen]
    assert sum(steps) + max(rest) <= (1 - PADDING) * 100 * (len(steps) + 1)  # and as many as can


def test_rows_that_nothing_fills_are_measured_by_the_fullest_once_they_are_many() -> None:
    assert ripe([70] * 3, [0] * 3, 100, least=280, most=1000) == []
    assert ripe([70] * 4, [0] * 4, 100, least=280, most=1000) == [0, 1, 2, 3]


def test_the_oldest_go_as_they_are_where_too_much_waits() -> None:
    assert ripe([99, 60, 60, 60], [0, 7, 5, 6], 100, least=0, most=120) == [0, 2]
    assert ripe([99, 60, 60, 60], [0, 7, 5, 6], 100, least=0, most=119) == [0, 2, 3]


def test_of_nothing_nothing_is_handed_over() -> None:
    assert best_fit([], [], 10, 0) == []
    assert ripe([], [], 10, least=5, most=0) == []
