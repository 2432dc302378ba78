"""Figures of modes side by side: a table for each controller, every figure as CSV, the learning curves as a picture.

A return is normalised: 0 is the best without memory, 1 the best there is.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from mneme.experiments.suite.results import Document
from mneme.experiments.suite.table import in_columns
from mneme.learner import LearnerSettings
from mneme.reporting.curves import GREY, picture
from mneme.reporting.display import NOTHING

COLUMNS = (
    "task", "controller", "mode", "seeds", "failed", "update_time", "peak_memory", "fragment_mib", "cosine",
    "norm_ratio", "core_cosine", "core_norm_ratio", "staleness", "return_equal_steps", "return_equal_steps_low",
    "return_equal_steps_high", "return_equal_time", "success",
)  # fmt: skip
"""Of the CSV. Update time and peak memory are relative to full's; the gradient's figures are beside full's, means over
training; staleness is that of the carries of a batch after the update on it, where the mode uses stored ones."""

EQUAL_TIME = 0.7  # of the time that full takes for all steps, so that what costs more than full still has a figure
_SHARE = 0.1  # of the steps before a point, over whose returns is averaged
_MIB = 2**20
_FULL = "full"

Figures = dict[str, Any]


def figures(document: Document) -> Iterator[Figures]:
    """A row for every task, controller and mode, and one for each mode's cost alone, whose task is empty."""
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for run in document["runs"]:
        groups.setdefault((run["task"], run["controller"], run["variant"]), []).append(run)
    for (task, kind, variant), runs in groups.items():
        whole = [run for run in runs if "failure" not in run]
        row: Figures = {"task": task, "controller": kind, "mode": variant, "seeds": len(runs)}
        row |= {"failed": len(runs) - len(whole), **_cost(document, kind, variant)}
        row |= {name: _mean(run[f"fidelity_{name}"] for run in whole) for name in _FIDELITY}
        if "stored" in variant:
            row["staleness"] = _mean(run.get("staleness_by_epoch", [None])[-1] for run in whole)
        total = max((run["steps"] for run in whole), default=0)
        facts = document["tasks"][task]
        at_steps = [x for run in whole if (x := _return_at(run, total, facts)) is not None]
        row["return_equal_steps"] = _mean(at_steps)
        row["return_equal_steps_low"], row["return_equal_steps_high"] = min(at_steps, default=None), max(
            at_steps, default=None
        )  # fmt: skip
        steps = total * min(1.0, EQUAL_TIME / _time(document, kind, variant))
        row["return_equal_time"] = _mean(_return_at(run, steps, facts) for run in whole)
        row["success"] = _mean(run["success"] for run in whole)
        yield row
    for kind, costs in document.get("costs", {}).items():
        for variant in costs:
            yield {"task": "", "controller": kind, "mode": variant, **_cost(document, kind, variant)}


_FIDELITY = ("cosine", "norm_ratio", "core_cosine", "core_norm_ratio")


def _cost(document: Document, kind: str, variant: str) -> Figures:
    costs = document.get("costs", {}).get(kind, {})
    if variant not in costs:
        return {}
    own, full = costs[variant], costs[_FULL]
    return {
        "update_time": own["seconds"] / full["seconds"],
        "peak_memory": own["peak"] / full["peak"],
        "fragment_mib": own["fragment"] / _MIB,
    }


def _time(document: Document, kind: str, variant: str) -> float:
    """Time for a step, collecting included, over that of full; 1 where it was not measured."""
    costs = document.get("costs", {}).get(kind, {})
    if variant not in costs:
        return 1.0
    epochs = LearnerSettings.num_epochs  # costs are those of one
    own, full = (costs[name]["collecting"] + epochs * costs[name]["seconds"] for name in (variant, _FULL))
    return float(own / full)


def _return_at(run: Mapping[str, Any], steps: float, facts: Mapping[str, Any]) -> float | None:
    """Normalised return in training, a mean over the last tenth of these steps."""
    before = [(s, x) for s, x in run["curve"] if s <= steps] or run["curve"][:1]
    if not before:
        return None
    recent = [x for s, x in before if s > (1 - _SHARE) * steps] or [before[-1][1]]
    low = facts["memoryless_return"]
    return (mean(recent) - low) / (facts["optimal_return"] - low)


def _mean(values: Iterator[float | None] | Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def as_markdown(document: Document) -> str:
    """A table for each controller: a row a mode, means over the tasks of a horizon and over seeds."""
    rows = list(figures(document))
    horizons = sorted({row["task"].partition("@")[2] for row in rows if row["task"]}, key=int)
    kinds = dict.fromkeys(row["controller"] for row in rows)
    return "\n".join(
        _of_controller(kind, [row for row in rows if row["controller"] == kind], horizons) for kind in kinds
    )


def _of_controller(kind: str, rows: Sequence[Figures], horizons: Sequence[str]) -> str:
    headings = ["time", "memory", "fragment, MiB", "cosine", "of the core", "staleness"]
    for what in ("return", "return, equal time"):
        headings += [f"{what}, {horizon} steps" for horizon in horizons]
    table = [[kind, *headings]]
    for mode in dict.fromkeys(row["mode"] for row in rows):
        own = [row for row in rows if row["mode"] == mode]
        trained = [row for row in own if row["task"]]
        cells = [mode, *(_cell(own, name) for name in ("update_time", "peak_memory"))]
        cells.append(_cell(own, "fragment_mib", 0))
        cells += [_cell(trained, name) for name in ("cosine", "core_cosine", "staleness")]
        for name in ("return_equal_steps", "return_equal_time"):
            cells += [_cell([r for r in trained if r["task"].endswith(f"@{horizon}")], name) for horizon in horizons]
        table.append(cells)
    return in_columns(table)


def _cell(rows: Sequence[Figures], name: str, digits: int = 2) -> str:
    value = _mean([row.get(name) for row in rows])
    return NOTHING if value is None else f"{value:.{digits}f}"


def draw(document: Document, path: Path) -> None:
    """Write the learning curves, a panel for each controller and task: means over seeds, a line a mode."""
    import matplotlib as mpl

    runs = [run for run in document["runs"] if "failure" not in run]
    tasks, kinds, modes = (list(dict.fromkeys(run[key] for run in runs)) for key in ("task", "controller", "variant"))
    with picture(path, 3.2 * len(tasks), 2.4 * len(kinds) + 0.8, dpi=110) as figure:
        panels = figure.subplots(len(kinds), len(tasks), squeeze=False, sharex=True, sharey=True)
        families = list(dict.fromkeys(mode.partition(",")[0] for mode in modes))
        shades = dict(zip(families, mpl.colormaps["viridis"](np.linspace(0, 0.9, len(families))), strict=True))
        for (row, kind), (column, task) in ((i, j) for i in enumerate(kinds) for j in enumerate(tasks)):
            axes, facts = panels[row, column], document["tasks"][task]
            low = facts["memoryless_return"]
            for mode in modes:
                curves = [r["curve"] for r in runs if (r["task"], r["controller"], r["variant"]) == (task, kind, mode)]
                if not (curves := [curve for curve in curves if curve]):
                    continue
                steps = np.array([s for s, _ in min(curves, key=len)])
                returns = np.mean([np.interp(steps, *np.transpose(curve)) for curve in curves], axis=0)
                style = ":" if "burn-in" in mode else "--" if "stored" in mode else "-"
                scaled = (returns - low) / (facts["optimal_return"] - low)
                axes.plot(steps, scaled, style, color=shades[mode.partition(",")[0]], linewidth=1.2, label=mode)
            axes.axhline(0, color=GREY, linewidth=0.8)
            axes.set_title(f"{kind}, {task}", fontsize=8)
            axes.tick_params(labelsize=7)
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=max(1, int(figure.get_figwidth() // 2.6)), fontsize=7
        )
        figure.supylabel("return; 0 without memory, 1 the best", fontsize=8)
