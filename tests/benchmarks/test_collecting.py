"""How fast controllers collect, beside another version."""

import pytest

from benchmarks.collecting import HERE, KINDS, Version, measure
from mneme.controllers import CONTROLLERS


def test_every_kind_is_measured() -> None:
    assert sorted(KINDS) == sorted(CONTROLLERS)


def test_two_versions_take_turns_and_are_held_against_each_other() -> None:
    (row,) = measure(["mlp"], [3], 2, [HERE, HERE])
    assert row.speed > 0 and row.before is not None and row.before > 0 and len(row.ratios) == 2


def test_a_version_that_fails_is_told() -> None:
    version = Version(HERE)
    with pytest.raises(RuntimeError, match="the process that collects with nothing ended"):
        version.seconds("nothing", 3)
    version.close()
