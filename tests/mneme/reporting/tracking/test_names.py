"""Names and values: MLflow's own checks take them all, no two meet, and each can be read back."""

import pytest

from mneme.reporting.tracking.names import (
    NAME_CHARACTERS,
    PARAM_CHARACTERS,
    TAG_CHARACTERS,
    clean_name,
    clean_text,
    flatten,
    original_name,
)

ODD = [
    "speed [m/s]", "load %", "camera#1", "α(t-1)", "a,b", "x@y=z", "", " ", ".", "..", "/", "//", "/root", "a/", "a//b",
    "a/./b", "a/../b", "../b", "..b", "./b", "a\nb", "a\n", "\n", "\0", "load _x25_", "load _x5F_x25_", "_x_", "_x25",
    "\udce9", "e\N{COMBINING ACUTE ACCENT}", "🙂", "%5B", "a\\b", '"', "'", "*",
]  # fmt: skip
PLAIN = ["return", "seconds/env", "evaluation/success_low", "α", "a.b", "step 3: b-c", "mlflow.note", "_x", "x_y_z"]


@pytest.mark.parametrize("name", [*ODD, *PLAIN, "long" * 100, "é%" * 200])
def test_mlflow_takes_every_name(name: str) -> None:
    from mlflow.utils import validation

    cleaned = clean_name(name)
    validation._validate_param(cleaned, "1")
    validation._validate_tag(cleaned, "1")
    validation._validate_metric(cleaned, 1.0, 0, 0)


def test_a_name_that_mlflow_takes_stays_and_every_other_can_be_read_back() -> None:
    assert [clean_name(name) for name in PLAIN] == PLAIN
    assert [original_name(clean_name(name)) for name in ODD] == ODD
    assert clean_name("load %") == "load _x25_"


def test_no_two_names_meet() -> None:
    names = [*ODD, *PLAIN, "n" * 300, "n" * 301, "n" * NAME_CHARACTERS, *map(clean_name, ODD)]
    assert len({clean_name(name) for name in names}) == len(set(names))


def test_a_configuration_becomes_dotted_names_and_short_values() -> None:
    flat = flatten(
        {"a": {"b": {"c": 1}, "d": None}, "e": [1, 2], "f": {}, "g": "x" * (PARAM_CHARACTERS + 1), "h": {4: 5}}
    )
    assert len(flat.pop("g")) == PARAM_CHARACTERS
    assert flat == {"a.b.c": "1", "a.d": "None", "e": "[1, 2]", "f": "{}", "h": "{4: 5}"}


def test_keys_with_dots_stay_apart_from_levels() -> None:
    flat = flatten({"a.b": {"c": 1}, "a": {"b": {"c": 2}, "b.c": 3}, "d.e": 4, "a_x2E_b": {"c": 5}})
    assert flat.pop("d.e") == "4", "a dot that meets nothing stays"
    assert sorted(flat.values()) == ["1", "2", "3", "5"]


@pytest.mark.parametrize("text", ["a\nb\tc", "\udce9", "\0", "x" * 10_000, "", "None"])
def test_any_value_can_be_stored(text: str) -> None:
    cleaned = clean_text(text, TAG_CHARACTERS)
    cleaned.encode()
    assert len(cleaned) <= TAG_CHARACTERS
    assert cleaned.isprintable()
