"""The suite's results as a table: k of n seeds, failures left in."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import mean, median
from typing import Any

from mneme.reporting.display import NOTHING

HEADINGS = (
    "task", "controller", "parameters", "solved", "steps to solve", "seconds", "success, each seed", "return",
    "without memory", "carry reset",
)  # fmt: skip


def table_rows(document: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """One row a task and controller, as `HEADINGS` says, in the order in which they were first run.

    Steps are the median over the seeds that solved the task; seconds, return, and success with the carry reset are
    means over all that did not fail. The return without memory is the best that there is.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for run in document["runs"]:
        groups.setdefault((run["task"], run["controller"]), []).append(run)
    order = list(document["tasks"])
    for task, controller in sorted(groups, key=lambda group: order.index(group[0])):
        runs = sorted(groups[task, controller], key=lambda run: run["seed"])
        whole = [run for run in runs if "failure" not in run]
        steps = [run["steps"] for run in runs if run["solved"]]
        bound = document["tasks"][task]["memoryless_return"]
        yield (
            task,
            controller,
            f"{whole[0]['parameters']:,}" if whole else NOTHING,
            f"{len(steps)} of {len(runs)}",
            f"{median(steps):,.0f}" if steps else NOTHING,
            f"{mean(run['seconds'] for run in whole):.0f}" if whole else NOTHING,
            ", ".join("failed" if "failure" in run else f"{run['success']:.1%}" for run in runs),
            f"{mean(run['mean_return'] for run in whole):.2f}" if whole else NOTHING,
            NOTHING if bound is None else f"{bound:.2f}",
            f"{mean(run['success_with_carry_reset'] for run in whole):.1%}" if whole else NOTHING,
        )


def as_markdown(document: Mapping[str, Any]) -> str:
    """The table in columns of one width, to be read as it is and on a page of documentation."""
    return in_columns((HEADINGS, *table_rows(document)))


def in_columns(table: Sequence[Sequence[str]]) -> str:
    """A Markdown table in columns of one width; its first row are the headings."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in table]
    lines.insert(1, ["-" * width for width in widths])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
