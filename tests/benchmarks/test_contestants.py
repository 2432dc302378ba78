"""Every contestant is a program that is there, has a name of its own, and is explained."""

from importlib.util import find_spec
from pathlib import Path

from benchmarks.contestants import CONTESTANTS

DOCUMENT = Path(__file__).parents[2] / "docs" / "benchmarks.md"


def test_contestants_are_there_and_told_apart() -> None:
    assert len({contestant.key for contestant in CONTESTANTS}) == len(CONTESTANTS)
    assert all(find_spec(contestant.module) for contestant in CONTESTANTS)


def test_contestants_are_explained() -> None:
    text = DOCUMENT.read_text()
    assert [contestant.key for contestant in CONTESTANTS if f"`{contestant.key}`" not in text] == []
