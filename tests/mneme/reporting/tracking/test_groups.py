"""Metrics in MLflow's sections: every one has its place, and no two meet."""

import re
from pathlib import Path

from mneme.reporting.tracking.groups import stored_name

PAGE = (Path(__file__).parents[4] / "docs" / "metrics.md").read_text()
SECTIONS = ["agent", "evaluation", "learning", "memory", "service", "speed", "task"]


def keys() -> list[str]:
    """Every key that docs/metrics.md explains, but for MLflow's own."""
    rows = re.findall(r"^\| (`[^|]*`) \|", PAGE, re.MULTILINE)
    found = [key for row in rows for key in re.findall(r"`([^`]+)`", row)]
    return [key for key in found if not key.startswith("system/")]


def test_every_metric_of_a_run_has_a_section_and_a_name_of_its_own() -> None:
    names = {key: stored_name(key) for key in keys()}
    assert {name.partition("/")[0] for name in names.values()} == set(SECTIONS)
    assert all(name.count("/") == 1 for name in names.values()), "MLflow would make a section of each folder"
    assert len(set(names.values())) == len(names)


def test_what_a_run_is_for_comes_first() -> None:
    names = sorted(stored_name(key) for key in keys())
    assert names[:2] == ["agent/return", "agent/success"]
    assert {name.partition("/")[0] for name in names[2:6]} == {"evaluation"}


def test_other_names_stay_and_are_cleaned() -> None:
    assert stored_name("mine") == "mine"
    assert stored_name("load %") == "load _x25_"
    assert stored_name("seconds/a,b") == "speed/seconds.a_x2C_b"
