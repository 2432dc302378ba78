"""The gate of a regression test: whether runs score as well as those of old."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from mneme.experiments.report.groups import compare
from mneme.experiments.report.records import Record
from mneme.experiments.report.statistics import Estimate, interquartile_mean
from mneme.experiments.report.tables import Table, in_words


class Held(NamedTuple):
    """One group of old, and the same group now."""

    task: str
    method: str
    old: Estimate
    new: Estimate | None  # None: it is missing
    least: float  # that it may be

    @property
    def passed(self) -> bool:
        """True if it is there and no worse than allowed."""
        return self.new is not None and self.new.value >= self.least

    def line(self) -> str:
        """It in words."""
        new = "missing" if self.new is None else in_words(self.new)
        verdict = "passed" if self.passed else "failed"
        return f"{verdict}: {self.method} on {self.task} was {in_words(self.old)}, is {new}, may be {self.least:.3f}"


def held_against(
    new: Sequence[Record],
    old: Sequence[Record],
    share: float,
    by: Sequence[str] | None,
    score: str | None,
) -> list[Held]:
    """Each group of the old runs beside the new runs of the same task and method.

    A group passes if its interquartile mean is at least `share` of what it was; below zero, where a share would be
    more, it may be lower by as large a part.

    Args:
        new, old: runs.
        share: of the old score.
        by: settings that make a method; None: those that differ between the old runs of one task.
        score: the figure that is compared.

    Raises:
        ConfigError: they have no score in common.
    """
    before = compare(old, by, score)
    now = compare(new, before.keys, before.score)
    found = []
    for cell in before.cells:
        middle = interquartile_mean([before.scores_of(cell)])
        same = now.cell(cell.task, cell.method)
        least = middle.value - (1 - share) * abs(middle.value)
        found.append(Held(cell.task, cell.method, middle, same and interquartile_mean([now.scores_of(same)]), least))
    return found


def gate_table(found: Sequence[Held]) -> Table:
    """What was, what is, and what may be."""
    rows: Table = [("task", "method", "was", "is", "at least", "")]
    for held in found:
        new = "missing" if held.new is None else in_words(held.new)
        verdict = "passed" if held.passed else "failed"
        rows.append((held.task, held.method, in_words(held.old), new, f"{held.least:.3f}", verdict))
    return rows


def check_share(share: float) -> None:
    """Refuse what is no share.

    Raises:
        ValueError: it is none.
    """
    if not (math.isfinite(share) and 0 < share <= 1):
        raise ValueError(f"--fail-below is {share:g}; give a share of the old score, above 0 and at most 1, as 0.95")
