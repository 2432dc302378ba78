"""Lengths into rows: which episodes go together, and which rows are full enough.

Legend: T steps of a row.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence

PADDING = 0.05
"""The share of a fragment's rows that is padding stays below this, unless more waits than may."""


def best_fit(lengths: Sequence[int], leading: Sequence[bool], length: int, waited: int) -> list[list[int]]:
    """Rows of at most `length` steps, as indices into `lengths`, by best-fit decreasing (Johnson 1973).

    Args:
        lengths: of what is packed, each at most `length`; of equal ones the first goes first.
        leading: what must open a row of its own, as what precedes its first step is not the end of an episode.
        length: T.
        waited: how many of the first have waited before. They go before the others, so that none waits for ever.
    """
    rows: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # steps left, and in which row: ascending
    for i in sorted(range(len(lengths)), key=lambda i: (not leading[i], i >= waited, -lengths[i])):
        fit = len(rooms) if leading[i] else bisect_left(rooms, (lengths[i], -1))
        if fit < len(rooms):
            room, row = rooms.pop(fit)
        else:
            room, row = length, len(rows)
            rows.append([])
        rows[row].append(i)
        if room > lengths[i]:
            insort(rooms, (room - lengths[i], row))
    return rows


def ripe(filled: Sequence[int], oldest: Sequence[int], length: int, *, least: int, most: int) -> list[int]:
    """Which rows are handed over, in the order given; the others wait to be filled better.

    Those are as many of the fullest as have less than `PADDING` of padding together. Padding counts up to the last step
    of the fullest, as the learner cuts off what no row fills; but where that is less than a row, few are not worth an
    update, and all wait until `least` steps could go. Beyond that, the oldest go as they are, until at most `most`
    steps wait.

    Args:
        filled: steps in each row.
        oldest: the rank of the oldest episode in each row.
        length: T.
    """
    order = sorted(range(len(filled)), key=lambda row: -filled[row])
    longest = filled[order[0]] if order else 0
    count, steps = 0, 0
    while count < len(order):
        more = steps + filled[order[count]]
        if (1 - PADDING) * longest * (count + 1) >= more:
            break
        count, steps = count + 1, more
    if longest <= (1 - PADDING) * length and steps < least:
        count = 0
    chosen, rest = order[:count], sorted(order[count:], key=lambda row: oldest[row])
    waiting = sum(filled[row] for row in rest)
    for row in rest:
        if waiting <= most:
            break
        chosen.append(row)
        waiting -= filled[row]
    return sorted(chosen)
