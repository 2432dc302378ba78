"""Runs put into groups: those of one task and one method, which differ by their seeds alone.

A method is what settings make of it that differ between runs of the same task, those of the task itself left out.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mneme.distributed.config import ConfigError
from mneme.experiments.report.records import Record
from mneme.experiments.report.statistics import Array

_SCORES = ("normalized_return", "success", "return")
"""Figures of an evaluation that may be the score, the one that says most across tasks first."""
_OF_NO_METHOD = (
    "rollout.unroll_length", "rollout.carry_stride", "rollout.warm_up", "learner.num_threads", "service.",
)  # fmt: skip
"""Settings that follow from others, or from the machine."""
_OF_THE_MODE = ("learner.mode", "learner.bptt_length", "learner.carry_source", "learner.burn_in")
ALL = "all runs"


class Cell(NamedTuple):
    """The runs of one method on one task, by seed."""

    task: str
    method: str
    records: Sequence[Record]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Everything that a report compares."""

    score: str  # of an evaluation
    keys: Sequence[str]  # settings that make a method
    tasks: Sequence[str]
    methods: Sequence[str]
    cells: Sequence[Cell]

    def cell(self, task: str, method: str) -> Cell | None:
        """The runs of a method on a task, if there are any."""
        return next((cell for cell in self.cells if (cell.task, cell.method) == (task, method)), None)

    def scores(self, method: str, tasks: Sequence[str]) -> list[Array]:
        """Scores of a method [seeds] on each of these tasks, on which it has some."""
        return [self.scores_of(cell) for task in tasks if (cell := self.cell(task, method)) is not None]

    def scores_of(self, cell: Cell) -> Array:
        """Scores [seeds] of a cell's runs."""
        return np.array([record.result[self.score] for record in cell.records])

    def shared_tasks(self, methods: Sequence[str]) -> list[str]:
        """Tasks on which all of these methods have runs."""
        return [task for task in self.tasks if all(self.cell(task, method) is not None for method in methods)]


def compare(records: Sequence[Record], by: Sequence[str] | None = None, score: str | None = None) -> Comparison:
    """Put runs into groups.

    Args:
        records: the runs.
        by: settings that make a method; unset: all that differ between runs of one task.
        score: the figure of an evaluation that is compared; unset: the first of normalized_return, success and return
            that every run has.

    Raises:
        ConfigError: the score or a setting is none that all runs have.
    """
    evaluated = [record for record in records if record.result]
    if not evaluated:
        raise ConfigError("none of the runs has been evaluated; train to the end, or set train.evaluate_every")
    known = [name for name in evaluated[0].result if all(name in record.result for record in evaluated)]
    score = score or next((name for name in _SCORES if name in known), None)
    if score not in known:
        raise ConfigError(f"--score is {score}, which not every run has; all have {', '.join(known)}")
    for key in by or ():
        if not any(key in record.settings for record in evaluated):
            raise ConfigError(f"--by names {key}, which no run has; name a setting by its whole name")
    keys = _differing_within_tasks(evaluated) if by is None else list(by)
    cells: dict[tuple[str, str], list[Record]] = {}
    for record in sorted(evaluated, key=lambda record: (record.seed, record.name)):
        cells.setdefault((record.task, method_of(record, keys)), []).append(record)
    return Comparison(
        score=score,
        keys=keys,
        tasks=sorted({task for task, _ in cells}, key=_natural),
        methods=sorted({method for _, method in cells}, key=_natural),
        cells=[Cell(task, method, runs) for (task, method), runs in cells.items()],
    )


def _natural(name: str) -> list[tuple[str, int]]:
    """Numbers in a name count as numbers: 4 comes before 13."""
    return [(word, int(number or 0)) for word, number in re.findall(r"(\D*)(\d*)", name)]


def method_of(record: Record, keys: Sequence[str]) -> str:
    """A run's method in words: its mode if that is among these settings, and the values of the others."""
    words = [mode_of(record)] if any(key in _OF_THE_MODE for key in keys) else []
    for key in keys:
        value = record.settings.get(key)
        if value is not None and key not in _OF_THE_MODE:
            words.append(value if key.endswith(".kind") else f"{key.rpartition('.')[2]}={value}")
    return ", ".join(words) or ALL


def mode_of(record: Record) -> str:
    """A run's mode of backpropagation in words, with those of its settings that count in it."""
    mode, length, source, burn_in = (record.settings.get(key, "") for key in _OF_THE_MODE)
    more = [] if mode in ("full", "traces") or source == "fresh" else [f"{source} carries"]
    more += [f"burn-in {burn_in}"] if mode == "truncated" and burn_in != "0" else []
    words = f"{mode} {length}" if mode == "truncated" else mode
    return f"{words} ({', '.join(more)})" if more else words


def _differing_within_tasks(records: Sequence[Record]) -> list[str]:
    by_task: dict[str, list[Record]] = {}
    for record in records:
        by_task.setdefault(record.task, []).append(record)
    return list(dict.fromkeys(key for runs in by_task.values() for key in _differing([run.settings for run in runs])))


def _differing(settings: Sequence[Mapping[str, str]]) -> list[str]:
    """Settings that differ; what only some kinds of controllers have counts where it differs within a kind."""
    keys = dict.fromkeys(key for one in settings for key in one if not key.startswith(_OF_NO_METHOD))
    per_kind: dict[str | None, list[Mapping[str, str]]] = {}
    for one in settings:
        per_kind.setdefault(one.get("policy.controller.kind"), []).append(one)
    return [
        key
        for key in keys
        if _differs(key, settings)
        and (all(key in one for one in settings) or any(_differs(key, same) for same in per_kind.values()))
    ]


def _differs(key: str, settings: Sequence[Mapping[str, str]]) -> bool:
    return len({one.get(key) for one in settings}) > 1


def differences(comparison: Comparison) -> dict[str, dict[tuple[str, str], str]]:
    """Settings that differ between groups, and their values in each, by task and method."""
    first = {(cell.task, cell.method): cell.records[0].settings for cell in comparison.cells}
    keys = dict.fromkeys(key for settings in first.values() for key in settings)
    return {
        key: {group: settings.get(key, "") for group, settings in first.items()}
        for key in keys
        if len({settings.get(key) for settings in first.values()}) > 1
    }
