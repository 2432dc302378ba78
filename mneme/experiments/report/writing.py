"""`mneme report`: read runs, compare them, write the page, its pictures and tables, and hold them against others."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mneme.distributed.config import ConfigError
from mneme.experiments.report.gate import Held, check_share, gate_table, held_against
from mneme.experiments.report.groups import Comparison, compare
from mneme.experiments.report.page import Section, write_page
from mneme.experiments.report.pictures import Pair, draw_curves, draw_horizons, draw_improvements, draw_profiles
from mneme.experiments.report.records import FILE, Record, read_records, write_records
from mneme.experiments.report.statistics import Array, Estimate, interquartile_mean, probability_of_improvement
from mneme.experiments.report.tables import (
    Table,
    as_csv,
    differences_table,
    groups_table,
    improvements_table,
    methods_table,
    modes_table,
    runs_table,
)

ROOT, PAGE = Path("runs/reports"), "report.html"
_PAIRS = 15  # of methods that are compared with each other; of more methods each with the best
_STATISTICS = (
    "Brackets are 95 % intervals of the percentile bootstrap over seeds, stratified by task (Agarwal et al. 2021). A "
    "single seed has none, and of few seeds they are too narrow. Of fewer than four scores the interquartile mean is a "
    "plain mean."
)
_GATE = (
    "Each group must reach {:g} of the interquartile mean that it had; below zero it may be lower by as large a part."
)
_OVER = "Over the tasks on which every method has runs, {} of {}."
_CURVES = (
    "Interquartile mean over seeds of {}, with its 95 % interval. A run that ended early stands at its last value."
)
_PAIRED = "How probably a run of the first scores more than one of the second on the same task, ties counted half."
_HORIZONS = "Of runs of one task that differ by its horizon, or of agents at horizons that none was trained at."
_OF_MODES = "Interquartile mean of {} of all runs of a mode, whatever else they differ in."


class Report(NamedTuple):
    """What was written, and whether what was asked to hold does."""

    page: Path
    held: list[Held]  # against which the runs were held; empty where they were not

    @property
    def passed(self) -> bool:
        """True if every group scores as well as asked."""
        return all(held.passed for held in self.held)


def write_report(
    paths: Sequence[Path], folder: Path | None = None, *, by: Sequence[str] | None = None, score: str | None = None,
    against: Sequence[Path] = (), share: float = 1.0,
) -> Report:  # fmt: skip
    """Compare runs and write what came of it.

    Args:
        paths: of runs, or of folders that hold runs, or of reports.
        folder: for the page, its pictures as PNG, its tables as CSV, and the runs' figures as JSON. Unset: one of the
            first path's name in runs/reports.
        by: settings that make a method; unset, those that differ between runs of one task.
        score: the figure of an evaluation that is compared.
        against: runs of old that these are held against.
        share: of the old score that each group must reach.

    Raises:
        ConfigError: there are no runs, a setting or the score is none of theirs, or the folder is held against.
        ValueError: the share is none.
        OSError: it cannot be written.
    """
    check_share(share)
    folder = ROOT / (paths[0].parent if paths[0].is_file() else paths[0]).resolve().name if folder is None else folder
    if folder.resolve() in [path.resolve() for path in against]:
        raise ConfigError(f"the report would replace {folder}, which runs are held against; choose another --out")
    records = read_records(paths)
    comparison = compare(records, by, score)
    held = held_against(records, read_records(against), share, by, score) if against else []
    folder.mkdir(parents=True, exist_ok=True)
    write_records(records, folder / FILE)
    tables: dict[str, Table] = {"runs": runs_table(comparison), "groups": groups_table(comparison)}
    for name, table in tables.items():
        (folder / f"{name}.csv").write_text(as_csv(table))
    sections = [*_gate(held, share), *_sections(comparison, tables["groups"], folder)]
    names = ", ".join(path.name or str(path.resolve().name) for path in paths)
    write_page(f"{names}: {_counted(records)}", _STATISTICS, sections, folder / PAGE)
    return Report(folder / PAGE, held)


def _counted(records: Sequence[Record]) -> str:
    """How many runs are compared, and how many are left out as nothing is known of their result."""
    evaluated = sum(bool(record.result) for record in records)
    left = len(records) - evaluated
    return f"{evaluated} run{'s' * (evaluated != 1)}{f', and {left} never evaluated' if left else ''}"


def _gate(held: Sequence[Held], share: float) -> Iterator[Section]:
    if held:
        verdict = "passed" if all(each.passed for each in held) else "failed"
        yield Section(f"Held against runs of old: {verdict}", _GATE.format(share), None, gate_table(held))


def _sections(comparison: Comparison, groups: Table, folder: Path) -> Iterator[Section]:
    tasks = comparison.shared_tasks(comparison.methods)
    if len(comparison.methods) > 1 and tasks:
        draw_profiles(comparison, tasks, picture := folder / "profiles.png")
        note = _OVER.format(len(tasks), len(comparison.tasks))
        yield Section("Methods over tasks", note, picture, methods_table(comparison, tasks))
    note = "Steps and seconds are medians of the runs that solved it."
    yield Section("Each task", note, None, groups)
    what = draw_curves(comparison, picture := folder / "curves.png")
    yield Section("Learning curves", _CURVES.format(what), picture)
    if found := improvements(comparison):
        draw_improvements(found, picture := folder / "improvements.png")
        yield Section("Probability of improvement", _PAIRED, picture, improvements_table(found))
    if points := by_horizon(comparison):
        draw_horizons(points, comparison.methods, picture := folder / "horizons.png")
        yield Section("Success by horizon", _HORIZONS, picture)
    if modes := modes_table(comparison):
        yield Section("Modes of backpropagation", _OF_MODES.format(comparison.score), None, modes)
    note = "Whatever is not listed is equal in all groups."
    yield Section("Settings that differ", note, None, differences_table(comparison))


def improvements(comparison: Comparison) -> Mapping[Pair, Estimate]:
    """Pairs of methods with tasks in common: each with each, or, of many, the best with each; the better one first."""
    if all(len(cell.records) == 1 for cell in comparison.cells):  # a single seed says nothing about probabilities
        return {}
    tasks = comparison.shared_tasks(comparison.methods) or comparison.tasks
    middle = {m: interquartile_mean(s).value for m in comparison.methods if (s := comparison.scores(m, tasks))}
    order = sorted(middle, key=lambda method: -middle[method])
    pairs = list(combinations(order, 2))
    if len(pairs) > _PAIRS:
        pairs = [(order[0], other) for other in order[1:]]
    return {
        (one, other): probability_of_improvement(comparison.scores(one, shared), comparison.scores(other, shared))
        for one, other in pairs
        if (shared := comparison.shared_tasks((one, other)))
    }


def by_horizon(comparison: Comparison) -> dict[Pair, list[tuple[int, Array]]]:
    """Success of each seed by horizon, for each environment and method with several horizons.

    Horizons that were never seen count where all these runs were trained at one: what learned at 16 says nothing beside
    what learned at 64.
    """
    of_pair: dict[Pair, list[Record]] = {}
    for cell in comparison.cells:
        for record in cell.records:
            of_pair.setdefault((record.environment, cell.method), []).append(record)
    found: dict[Pair, dict[int, list[float]]] = {}
    for pair, records in of_pair.items():
        alike = len({record.horizon for record in records}) == 1
        own = found.setdefault(pair, {})
        for record in records:
            points = dict(record.horizons) if alike else {}
            if record.horizon is not None and "success" in record.result:
                points[record.horizon] = record.result["success"]
            for horizon, success in points.items():
                own.setdefault(horizon, []).append(success)
    return {
        pair: [(horizon, np.array(successes)) for horizon, successes in sorted(points.items())]
        for pair, points in found.items()
        if len(points) > 1
    }
