"""A sweep's results as tables: configurations for people, the best first, and every trial as CSV."""

import csv
import io
import math
from collections.abc import Iterator, Sequence
from statistics import mean
from typing import Any

from mneme.experiments.suite.table import in_columns
from mneme.experiments.sweep.plan import shown
from mneme.experiments.sweep.results import Configuration, SweepResults
from mneme.reporting.display import NOTHING


def short_names(keys: Sequence[str]) -> list[str]:
    """Settings by the last parts of their names, as many as tell them apart."""
    parts = {key: key.split(".") for key in keys}
    for length in range(1, max(map(len, parts.values()), default=1) + 1):
        names = [".".join(parts[key][-length:]) for key in keys]
        if len(set(names)) == len(names):
            return names
    return list(keys)


def in_order(results: SweepResults) -> list[Configuration]:
    """Configurations, those of the best mean first and those without one last."""
    sign = 1 if results.document["sweep"]["goal"] == "min" else -1

    def place(found: Configuration) -> tuple[bool, float, float]:
        value = found.value(results.metric)
        return math.isnan(value), 0.0 if math.isnan(value) else sign * value, found.steps

    return sorted(results.configurations, key=place)


def as_markdown(results: SweepResults) -> str:
    """One row a configuration: its settings, the metric (mean, and each seed), median steps, mean seconds, outcomes."""
    return in_columns(list(_rows(results)))


def _rows(results: SweepResults) -> Iterator[tuple[str, ...]]:
    keys = list(results.document["sweep"]["space"])
    yield ("", *short_names(keys), results.metric, "each seed", "steps", "seconds", "outcome")
    for found in in_order(results):
        value = found.value(results.metric)
        seconds = [trial["seconds"] for trial in found.trials if "seconds" in trial]
        outcomes = [trial["outcome"] for trial in found.trials]
        yield (
            f"{found.number:03d}",
            *(shown(found.point[key]) for key in keys),
            NOTHING if math.isnan(value) else f"{value:.3f}",
            ", ".join(_value(trial.get(results.metric)) for trial in found.trials),
            f"{found.steps:,.0f}",
            f"{mean(seconds):.0f}" if seconds else NOTHING,
            ", ".join(f"{outcomes.count(word)} {word}" for word in dict.fromkeys(outcomes)),
        )


def _value(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3f}"


def as_csv(results: SweepResults) -> str:
    """One row a trial, with every setting of the space and every figure that it has."""
    trials = [_flat(trial) for trial in results.document["trials"]]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for trial in trials for key in trial)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(trials)
    return text.getvalue()


def _flat(trial: dict[str, Any]) -> dict[str, Any]:
    figures = {key: value for key, value in trial.items() if key not in ("point", "curve")}
    return {"number": figures.pop("number"), "seed": figures.pop("seed"), **trial["point"], **figures}
