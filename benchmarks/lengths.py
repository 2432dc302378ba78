"""Measure an update over the length of its sequences, and over their number: `python -m benchmarks.lengths`.

Steps per second of the processor and peak memory, one thread, one epoch; the modes of a point take turns.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

from benchmarks.memory import MIB, MODES
from benchmarks.report import RESULTS
from mneme.controllers import CONTROLLERS
from mneme.experiments.machine import describe_machine, versions
from mneme.experiments.update_cost import update_costs
from mneme.learner import LearnerSettings
from mneme.reporting.curves import picture, plain_numbers

LENGTHS, STEPS = (64, 256, 1024, 4096, 10_000), 40_000
BATCHES, LENGTH = (4, 16, 64, 256), 256
COMPARED = ("full", "truncated 16", "cached", "full, checkpointing")

Row = dict[str, Any]


def main() -> int:
    """Measure, print, store, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=list(CONTROLLERS), default=list(CONTROLLERS))
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--name", default="lengths", help="of the files in benchmarks/results")
    arguments = parser.parse_args()
    rows: list[Row] = []
    for kind in arguments.kinds:
        points = [(length, max(4, STEPS // length)) for length in LENGTHS]
        points += [(LENGTH, lanes) for lanes in BATCHES]
        for length, lanes in dict.fromkeys(points):
            variants = {name: LearnerSettings(**MODES[name], num_epochs=1, num_threads=1) for name in COMPARED}
            costs = update_costs(
                kind, variants, length=length, lanes=lanes, hidden=arguments.hidden, rounds=arguments.rounds
            )  # fmt: skip
            for mode, cost in costs.items():
                row = {"kind": kind, "mode": mode, "length": length, "sequences": lanes}
                row |= {"steps_per_second": length * lanes / cost.seconds, "peak_mib": cost.peak / MIB}
                rows.append(row)
                print(row, file=sys.stderr)
    document = {
        "machine": describe_machine(), "versions": versions("torch", "numpy"), "hidden": arguments.hidden,
        "rounds": arguments.rounds, "rows": rows,
    }  # fmt: skip
    (RESULTS / f"{arguments.name}.json").write_text(json.dumps(document, indent=2) + "\n")
    draw(rows, RESULTS / f"{arguments.name}.png")
    return 0


def draw(rows: Sequence[Row], path: Path) -> None:
    """Steps per second above, peak memory below; over the length on the left, over the number on the right."""
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    with picture(path, 10, 6) as figure:
        panels = figure.subplots(2, 2)
        colours = dict(zip(kinds, mpl.colormaps["tab10"].colors, strict=False))
        styles = dict(zip(COMPARED, ("-", "-.", "--", ":"), strict=True))
        for column, (axis, others) in enumerate((("length", None), ("sequences", LENGTH))):
            for line, figure_of in enumerate(("steps_per_second", "peak_mib")):
                axes = panels[line, column]
                for kind in kinds:
                    for mode in COMPARED:
                        own = [row for row in rows if (row["kind"], row["mode"]) == (kind, mode) and _on(row, others)]
                        own.sort(key=lambda row: row[axis])
                        points = [row[axis] for row in own], [row[figure_of] for row in own]
                        axes.plot(*points, styles[mode], color=colours[kind], linewidth=1.1)
                axes.set(xscale="log", yscale="log", xlabel=axis if line else "")
                plain_numbers(axes.xaxis)
                plain_numbers(axes.yaxis)
                axes.set_title(figure_of.replace("_", " ").replace("mib", "MiB"))
        for kind in kinds:
            panels[0, 0].plot([], [], color=colours[kind], label=kind)
        for mode in COMPARED:
            panels[0, 0].plot([], [], styles[mode], color="black", label=mode)
        figure.legend(loc="outside right center", fontsize=8)


def _on(row: Row, length: int | None) -> bool:
    """True for a point of the curve over the number of sequences of a length, or, without one, over the length."""
    if length is not None:
        return bool(row["length"] == length and row["sequences"] in BATCHES)
    return bool(row["sequences"] == max(4, STEPS // row["length"]))


if __name__ == "__main__":
    sys.exit(main())
