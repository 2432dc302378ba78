"""Collecting with halves that take turns, beside collecting without."""

import pytest

from benchmarks.double_buffering import Case, measure


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_both_ways_take_turns_in_every_process(processes: int) -> None:
    row = measure(Case(milliseconds=0.1, busy=False, shown="numbers", processes=processes, lanes=4), 2)
    assert row.speed > 0 and row.inference > 0
    assert len(row.ratios) == 2 and min(row.ratios) > 0
