"""Curves of an update's cost over its size."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.curves import Point, draw, measure


def test_a_point_has_a_row_for_each_mode_and_is_drawn(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as apart:
        rows = measure("gru", Point(length=4, sequences=8, hidden=8), ["full", "cached"], 1, apart)
    assert [(row["mode"], row["length"], row["sequences"], row["hidden"]) for row in rows] == [
        ("full", 4, 8, 8), ("cached", 4, 8, 8),
    ]  # fmt: skip
    assert all(row["steps_per_second"] > 0 and row["collected_per_second"] > 0 for row in rows)
    draw(
        [row | {"length": 64, "sequences": 64, "hidden": 32, "peak_mib": 1.0} for row in rows], tmp_path / "curves.png"
    )
    assert (tmp_path / "curves.png").stat().st_size > 10_000
