"""Measure an update as it grows, in one direction after the other: `python -m benchmarks.curves`.

Over the length of its sequences, all updates of about as many steps; over their number, which is that of environments;
and over the controller's units. Steps per second of the processor, for learning and for collecting, and peak memory:
one thread, one epoch. The modes of a point take turns. Peaks are measured in a process of their own, which gives memory
back at once: that slows it down, and what another has kept would hide in its heap.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any, NamedTuple

import matplotlib as mpl
import torch

from benchmarks.memory import MIB, MODES
from benchmarks.report import RESULTS
from mneme.controllers import CONTROLLERS
from mneme.experiments.machine import describe_machine, versions
from mneme.experiments.update_cost import make_trial, update_costs
from mneme.learner import LearnerSettings
from mneme.reporting.curves import picture, plain_numbers

LENGTH, SEQUENCES, HIDDEN = 64, 64, 128
STEPS = 40_000  # of an update, over the length
COMPARED = ("full", "truncated 16", "cached", "full, checkpointing")
FIGURES = ("steps_per_second", "collected_per_second", "peak_mib")


class Point(NamedTuple):
    """The size of an update."""

    length: int = LENGTH
    sequences: int = SEQUENCES
    hidden: int = HIDDEN


CURVES = {
    "length": [Point(length, max(4, STEPS // length)) for length in (16, 64, 256, 1024, 4096, 10_000)],
    "sequences": [Point(sequences=sequences) for sequences in (16, 64, 256, 1024, 4096)],
    "hidden": [Point(hidden=hidden) for hidden in (32, 64, 128, 256, 512, 1024)],
}

Row = dict[str, Any]


def main() -> int:
    """Measure, print, store, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=list(CONTROLLERS), default=list(CONTROLLERS))
    parser.add_argument("--curves", nargs="+", choices=list(CURVES), default=list(CURVES))
    parser.add_argument("--modes", nargs="+", choices=COMPARED, default=list(COMPARED))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--name", default="curves", help="of the files in benchmarks/results")
    arguments = parser.parse_args()
    rows: list[Row] = []
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
        for kind in arguments.kinds:
            for point in dict.fromkeys(point for curve in arguments.curves for point in CURVES[curve]):
                rows += measure(kind, point, arguments.modes, arguments.rounds, apart)
                print(f"{kind}, {point}", file=sys.stderr)
    document = {
        "machine": describe_machine(), "versions": versions("torch", "numpy"), "rounds": arguments.rounds, "rows": rows,
    }  # fmt: skip
    (RESULTS / f"{arguments.name}.json").write_text(json.dumps(document, indent=1) + "\n")
    draw(rows, RESULTS / f"{arguments.name}.png")
    return 0


def measure(kind: str, point: Point, modes: Sequence[str], rounds: int, apart: Executor) -> list[Row]:
    """A row for each mode; `apart` is where peaks are measured."""
    torch.set_num_threads(1)
    trials = {mode: make_trial(kind, _settings(mode), *point) for mode in modes}
    for trial in trials.values():  # code is compiled, and Adam has its moments
        trial.update()
    seconds: dict[str, list[float]] = {mode: [] for mode in modes}
    for _ in range(rounds):
        for mode, trial in trials.items():
            clock = process_time()
            trial.update()
            seconds[mode].append(process_time() - clock)
    peaks, steps = apart.submit(_peaks, kind, point, modes).result(), point.length * point.sequences
    return [
        {"kind": kind, "mode": mode} | point._asdict() | {
            "steps_per_second": round(steps / median(seconds[mode])),
            "collected_per_second": round(steps / trial.collecting),
            "peak_mib": round(peaks[mode] / MIB, 1),
        }
        for mode, trial in trials.items()
    ]  # fmt: skip


def _settings(mode: str) -> LearnerSettings:
    return LearnerSettings(**MODES[mode], num_epochs=1, num_threads=1)


def _peaks(kind: str, point: Point, modes: Sequence[str]) -> dict[str, int]:
    """Bytes."""
    variants = {mode: _settings(mode) for mode in modes}
    costs = update_costs(kind, variants, length=point.length, lanes=point.sequences, hidden=point.hidden)
    return {mode: cost.peak for mode, cost in costs.items()}


def draw(rows: Sequence[Row], path: Path) -> None:
    """A row of pictures for each figure, a column for each curve."""
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    colours = dict(zip(kinds, (*mpl.colormaps["tab10"].colors, *mpl.colormaps["Dark2"].colors), strict=False))
    styles = dict(zip(modes, ("-", "-.", "--", ":"), strict=False))
    with picture(path, 12, 8) as figure:
        panels = figure.subplots(len(FIGURES), len(CURVES))
        for column, (axis, points) in enumerate(CURVES.items()):
            on_it = [row for row in rows if Point(row["length"], row["sequences"], row["hidden"]) in points]
            for line, name in enumerate(FIGURES):
                axes = panels[line, column]
                for kind in kinds:
                    for mode in modes:
                        own = sorted(
                            (row[axis], row[name]) for row in on_it if (row["kind"], row["mode"]) == (kind, mode)
                        )
                        axes.plot(*zip(*own, strict=True), styles[mode], color=colours[kind], linewidth=1.1)
                axes.set(xscale="log", yscale="log", xlabel=axis if line == len(FIGURES) - 1 else "")
                plain_numbers(axes.xaxis)
                plain_numbers(axes.yaxis)
                axes.set_title(name.replace("_", " ").replace("mib", "MiB"))
        for kind in kinds:
            panels[0, 0].plot([], [], color=colours[kind], label=kind)
        for mode in modes:
            panels[0, 0].plot([], [], styles[mode], color="black", label=mode)
        figure.legend(loc="outside right center", fontsize=8)


if __name__ == "__main__":
    sys.exit(main())
