"""Values of the type that their name declares."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from mneme.controllers.typed import typed


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (np.int64(3), int, 3),
        (5e5, int, 500_000),
        (np.float32(0.25), float, 0.25),
        (2, float, 2.0),
        (np.array(7), int | None, 7),
        (None, int | None, None),
        (np.bool_(True), bool, True),
        (np.str_("b"), Literal["a", "b"], "b"),
        ([1, np.int32(2)], tuple[int, ...], (1, 2)),
        (np.array([1, 2]), tuple[int, ...] | None, (1, 2)),
        ({"a": np.int64(1)}, dict[str, Any], {"a": 1}),
        (Path("x"), Path, Path("x")),
        ("whatever", Any, "whatever"),
    ],
)
def test_what_loses_nothing_is_converted_to_pythons_own_type(value: Any, hint: Any, expected: Any) -> None:
    converted = typed("x", value, hint)
    assert converted == expected
    assert type(converted) is type(expected)


@pytest.mark.parametrize(
    ("value", "hint", "sentence"),
    [
        (True, int, "x is True; it must be a whole number"),
        (1.5, int, "x is 1.5; it must be a whole number"),
        (math.inf, int, "x is inf; it must be a whole number"),
        ("3", int, "x is '3'; it must be a whole number"),
        (math.nan, float, "x is nan; it must be finite"),
        (-math.inf, float | None, "x is -inf; it must be finite"),
        (np.bool_(False), float, "x is False; it must be a number"),
        (None, float, "x is None; it must be a number"),
        (1, bool, "x is 1; it must be true or false"),
        (1, str, "x is 1; it must be text"),
        ("c", Literal["a", "b"], "x is 'c'; use 'a' or 'b'"),
        (True, Literal[1, 2], "x is True; use 1 or 2"),
        ("ab", tuple[str, ...], r"x is 'ab'; it must be a list, such as \[a, b\]"),
        ([1, "b"], tuple[int, ...], r"x\[1\] is 'b'; it must be a whole number"),
        ({1: 2}, dict[str, Any], "x is {1: 2}; it must be a mapping whose keys are text"),
        ({"a": "b"}, dict[str, float], "x.a is 'b'; it must be a number"),
    ],
)
def test_what_is_of_another_type_is_refused_in_one_sentence(value: Any, hint: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        typed("x", value, hint)


def test_other_types_are_not_looked_into() -> None:
    value: Mapping[int, str] = {1: "a"}
    assert typed("x", value, dict[int, str]) is value
    assert typed("x", value, "a name that only type checkers know") is value
