"""A report's tables, as rows of text whose first are the headings."""

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import median

import numpy as np

from mneme.experiments.report.groups import Cell, Comparison, differences, mode_of
from mneme.experiments.report.pictures import Pair
from mneme.experiments.report.records import Record
from mneme.experiments.report.statistics import Estimate, interquartile_mean
from mneme.reporting.display import NOTHING

Table = list[tuple[str, ...]]


def in_words(estimate: Estimate) -> str:
    """A value with its interval, if it has one."""
    value = f"{estimate.value:.3f}"
    return value if math.isnan(estimate.low) else f"{value} [{estimate.low:.3f}, {estimate.high:.3f}]"


def methods_table(comparison: Comparison, tasks: Sequence[str]) -> Table:
    """Each method over the tasks that all of them have runs on."""
    rows: Table = [("method", f"interquartile mean of {comparison.score}", "runs", "solved")]
    for method in comparison.methods:
        cells = [cell for task in tasks if (cell := comparison.cell(task, method)) is not None]
        records = [record for cell in cells for record in cell.records]
        middle = interquartile_mean(comparison.scores(method, tasks))
        rows.append((method, in_words(middle), str(len(records)), _solved(records)))
    return rows


def groups_table(comparison: Comparison) -> Table:
    """Each method on each task: score, how many solved it, and what that took."""
    score = f"interquartile mean of {comparison.score}"
    rows: Table = [("task", "method", score, "each seed", "solved", "steps to solve", "seconds to solve")]
    for task in comparison.tasks:
        cells = (comparison.cell(task, method) for method in comparison.methods)
        rows += [(task, cell.method, *_figures(comparison, cell)) for cell in cells if cell is not None]
    return rows


def _figures(comparison: Comparison, cell: Cell) -> Iterator[str]:
    scores = comparison.scores_of(cell)
    solved = [record.solved for record in cell.records if record.solved is not None]
    yield in_words(interquartile_mean([scores]))
    yield ", ".join(f"{score:.2f}" for score in scores)
    yield _solved(cell.records)
    yield f"{median(steps for steps, _ in solved):,.0f}" if solved else NOTHING
    yield f"{median(seconds for _, seconds in solved):,.0f}" if solved else NOTHING


def _solved(records: Sequence[Record]) -> str:
    if not any("success" in record.result for record in records):
        return NOTHING
    return f"{sum(record.solved is not None for record in records)} of {len(records)}"


def modes_table(comparison: Comparison) -> Table | None:
    """Each mode of backpropagation against each task, over whatever else differs; None where there is one alone."""
    modes: dict[str, list[Record]] = {}
    for record in (record for cell in comparison.cells for record in cell.records):
        modes.setdefault(mode_of(record), []).append(record)
    if len(modes) < 2:
        return None
    rows: Table = [("mode", *comparison.tasks)]
    for mode, records in sorted(modes.items()):
        of_task = {task: [r.result[comparison.score] for r in records if r.task == task] for task in comparison.tasks}
        rows.append((mode, *map(_middle, of_task.values())))
    return rows


def _middle(scores: Sequence[float]) -> str:
    return f"{in_words(interquartile_mean([np.array(scores)]))}, n = {len(scores)}" if scores else NOTHING


def improvements_table(found: Mapping[Pair, Estimate]) -> Table:
    """Pairs of methods."""
    rows = [(one, other, in_words(estimate)) for (one, other), estimate in found.items()]
    return [("method", "above", "probability"), *rows]


def differences_table(comparison: Comparison) -> Table:
    """Settings that differ, group by group; groups that agree stand together."""
    rows: Table = [("setting", "value", "groups")]
    for key, values in differences(comparison).items():
        by_value: dict[str, list[str]] = {}
        for (task, method), value in values.items():
            by_value.setdefault(value, []).append(f"{method} on {task}" if len(comparison.tasks) > 1 else method)
        rows += [(key, value or NOTHING, "; ".join(groups)) for value, groups in by_value.items()]
    return rows


def runs_table(comparison: Comparison) -> Table:
    """Every run, with every figure of its last evaluation."""
    records = [(cell, record) for cell in comparison.cells for record in cell.records]
    figures = list(dict.fromkeys(key for _, record in records for key in record.result))
    rows: Table = [
        ("run", "task", "method", "seed", "steps", "seconds", "steps_to_solve", "seconds_to_solve", *figures)
    ]
    for cell, record in records:
        solved = record.solved or ("", "")
        known = (str(record.result.get(key, "")) for key in figures)
        about = (record.name, cell.task, cell.method, record.seed, record.steps, record.seconds, *solved)
        rows.append((*map(str, about), *known))
    return rows


def as_csv(table: Table) -> str:
    """A table as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(table)
    return text.getvalue()
