"""Every class of settings, held to one rule: what Python gives is checked as what YAML gives."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest

from mneme.configuration.config import Config, load_config
from mneme.controllers import KINDS, OwnSettings, hints_of
from mneme.distributed.config import ConfigError

WRONG: dict[Any, list[Any]] = {
    bool: [1, "yes", None],
    int: [True, 1.5, "3", math.nan, math.inf, np.bool_(True)],
    float: [True, "0.1", math.nan, math.inf, -math.inf, np.float32("nan")],
    str: [1, None, ["a"]],
}


def classes(prefix: str, owner: Any) -> Iterator[tuple[str, Any]]:
    for name, hint in hints_of(owner).items():
        if dataclasses.is_dataclass(hint):
            yield f"{prefix}{name}", hint
            yield from classes(f"{prefix}{name}.", hint)


SECTIONS = list(classes("", Config)) + [("policy.controller", kind) for kind in (*KINDS.values(), OwnSettings)]
SETTINGS = [(section, owner, name) for section, owner in SECTIONS for name in hints_of(owner)]


def wrong_values(hint: Any) -> list[Any]:
    options = get_args(hint)
    if type(None) in options:
        (hint,) = (option for option in options if option is not type(None))
        return [value for value in wrong_values(hint) if value is not None]
    if get_origin(hint) is Literal:
        return ["bogus", None, True]
    if get_origin(hint) is tuple:
        return ["ab", 3, [object()]]
    if get_origin(hint) is dict:
        return [{1: 2}, "a", [1]]
    return WRONG.get(hint, [3])


def test_all_sections_are_looked_at() -> None:
    assert {"env", "spaces", "policy.controller", "learner", "service", "tracking"} <= {name for name, _ in SECTIONS}


@pytest.mark.parametrize(("section", "owner", "name"), SETTINGS, ids=[f"{o.__name__}.{n}" for _, o, n in SETTINGS])
def test_a_value_of_another_type_is_refused_in_python_and_in_the_same_words_from_yaml(
    section: str, owner: Any, name: str
) -> None:
    for value in wrong_values(hints_of(owner)[name]):
        with pytest.raises(ValueError) as refused:
            owner(**{name: value})
        sentence = str(refused.value)
        assert sentence.startswith(f"{section}.{name}")
        assert "\n" not in sentence
        with pytest.raises(ValueError, match=f"^{section}.{name}"):
            dataclasses.replace(owner(), **{name: value})


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("learner.mode=bogus", "learner.mode is 'bogus'; use 'cached', 'truncated', 'full' or 'traces'"),
        ("learner.num_epochs=true", "learner.num_epochs is True; it must be a whole number"),
        ("learner.num_epochs='3'", "learner.num_epochs is '3'; it must be a whole number"),
        ("policy.controller.chrono=1", "policy.controller.chrono is 1; it must be true or false"),
        ("env.vectorization_mode=threads", "env.vectorization_mode is 'threads'; use 'auto', 'sync' or 'async'"),
        ("curriculum.stages=[{1: 2}]", "curriculum.stages[0] is {1: 2}; it must be a mapping whose keys are text"),
        ("seed=true", "seed is True; it must be a whole number"),
        (f"seed={2**64}", f"seed is {2**64}; it must be less than {2**64}"),
    ],
)
def test_yaml_is_refused_in_the_same_words(override: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config(None, [override])
    assert str(refused.value) == sentence


def test_numpys_numbers_become_pythons() -> None:
    config = Config().changed(
        "learner", num_epochs=np.int64(2), clip_range=np.float32(0.25), normalize_rewards=np.bool_(True)
    )
    assert [
        type(v) for v in (config.learner.num_epochs, config.learner.clip_range, config.learner.normalize_rewards)
    ] == [
        int,
        float,
        bool,
    ]
    assert type(Config().changed("env", max_failures=np.int32(2)).env.max_failures) is int
    assert config.to_dict()["learner"]["num_epochs"] == 2


def test_changing_one_section_checks_it() -> None:
    with pytest.raises(ValueError, match="learner.mode is 'bogus'"):
        Config().changed("learner", mode="bogus")
