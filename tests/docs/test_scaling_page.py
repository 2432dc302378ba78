"""docs/scaling.md: its tables are those of the measurement, and its model is the arithmetic that it says."""

import json
import re
from math import ceil
from pathlib import Path

import pytest

from benchmarks.report import RESULTS

PAGE = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text()
MEASURED = json.loads((RESULTS / "scaling.json").read_text())
RUNS = {
    "memory task": {"r": 142_000, "n": 8_320, "b": 57, "W": 0.2e6, "L": 50_000},
    "images": {"r": 300, "n": 1_024, "b": 7_200, "W": 20e6, "L": 50_000},
    "small fragments": {"r": 1_000, "n": 20, "b": 100, "W": 1e6, "L": 50_000},
}
B, PER_NODE = 1.25e9, 16


def part(name: str) -> str:
    return re.search(rf"<!-- {name} -->(.*?)<!-- /{name} -->", PAGE, re.DOTALL)[1].strip()


def body(name: str) -> list[str]:
    return part(name).splitlines()[2:]


def test_the_flow_is_what_was_measured() -> None:
    assert body("flow") == [
        f"| {row['actors']} | {row['fragment_bytes']:,} | {row['fragments_per_second']:.0f} | "
        f"{row['bytes_per_second'] / 1e6:.0f} | {1e3 * row['driver_seconds_per_fragment']:.2f} | "
        f"{1e3 * row['raylet_seconds_per_fragment']:.2f} |"
        for row in MEASURED["flow"]
        if row["mode"] == "async"
    ]


def test_the_broadcasts_are_what_was_measured() -> None:
    counts = sorted({row["actors"] for row in MEASURED["broadcast"]})
    assert body("broadcast") == [
        f"| {actors} | "
        + " | ".join(f"{row['seconds']:.3f}" for row in MEASURED["broadcast"] if row["actors"] == actors)
        + " |"
        for actors in counts
    ]


def test_what_is_said_of_the_driver_and_its_memory_was_measured() -> None:
    few, many = MEASURED["one_at_a_time"]
    ms = [1e3 * row["driver_seconds_per_fragment"] for row in (few, many)]
    assert part("alone") == f"{ms[0]:.2f} ms with {few['workers']} workers, {ms[1]:.2f} ms with {many['workers']:,}"
    assert (ms[1] - ms[0]) / (many["workers"] - few["workers"]) == pytest.approx(0.6e-3, abs=0.05e-3)
    memory = MEASURED["memory"]
    low, high = memory["bytes_per_update_interval"]
    assert part("memory") == f"{memory['bytes_per_update']:.0f} bytes an update [{low:.0f}, {high:.0f}]"
    assert low < 0 < high


def test_the_model_is_the_arithmetic_that_the_page_gives() -> None:
    expected = []
    for name, run in RUNS.items():
        for A in (10, 100, 1000):
            N = ceil(A / PER_NODE)
            ceilings = [
                A * run["r"],
                run["L"],
                run["n"] / (1.5e-3 + 0.6e-6 * A),
                B / run["b"],
                B * A * run["n"] / (N * run["W"]),
            ]
            cells = [f"**{c / 1e3:,.0f}**" if c == min(ceilings) else f"{c / 1e3:,.0f}" for c in ceilings]
            expected.append(f"| {name} | {A:,} | {N} | {' | '.join(cells)} |")
    assert body("model") == expected


def test_the_runs_of_the_model_are_those_of_the_page() -> None:
    text = " ".join(PAGE.split())
    for name, run in RUNS.items():
        said = re.search(rf"\*\*{name}\*\*: (.*?)(;|\.) (- |Thousands)", text)[1]
        for symbol in ("r", "n", "b", "L"):
            assert f"{symbol} = {run[symbol]:,}" in said, (name, symbol)
        assert f"W = {run['W'] / 1e6:g} MB" in said
