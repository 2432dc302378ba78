"""Action masks of single environments: where they may stand, and what they must leave."""

import logging
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from mneme.envs.guard import Guard

BOARD = spaces.Box(0, 1, (2,), np.float32)
PAIR = spaces.MultiDiscrete([2, 3])


class Masked(gym.Env[Any, Any]):
    """Says what is allowed in info, in the observation or by sb3-contrib's method; at step 2, what is given."""

    def __init__(self, where: str, actions: gym.Space[Any], second: Any, first: Any = None) -> None:
        self.where, self.action_space, self.second = where, actions, second
        self.first = np.ones(np.size(second), np.int8) if first is None else first
        mask = spaces.Box(0, 1, (np.size(second),), np.int8)
        self.observation_space = spaces.Dict({"board": BOARD, "action_mask": mask}) if where == "observation" else BOARD

    def mask(self) -> Any:
        return self.second if self.t == 2 else self.first

    def result(self) -> tuple[Any, dict[str, Any]]:
        board = np.zeros(2, np.float32)
        if self.where == "observation":
            return {"board": board, "action_mask": self.mask()}, {}
        return board, {"action_mask": self.mask()} if self.where == "info" else {}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.t = 0
        return self.result()

    def step(self, action: Any) -> Any:
        self.t += 1
        observation, info = self.result()
        return observation, 1.0, self.t == 4, False, info


class ByMethod(Masked):
    def action_masks(self) -> Any:
        return self.mask()


def made(where: str, actions: gym.Space[Any], second: Any, **given: Any) -> Guard:
    kind = ByMethod if where == "method" else Masked
    return Guard(kind(where, actions, second, **given), max_failures=3)


@pytest.mark.parametrize("where", ["info", "observation", "method"])
@pytest.mark.parametrize(
    ("actions", "mask", "count"),
    [
        (spaces.Discrete(3), [0, 0, 0], 3),
        (PAIR, [0, 0, 1, 1, 1], 2),
        (PAIR, [1, 0, 0, 0, 0], 3),
        (spaces.Dict({"a": spaces.Box(0, 1, (2,), np.float32), "b": spaces.Tuple((spaces.Discrete(2),))}), [0, 0], 2),
    ],
)
def test_an_empty_mask_costs_the_episode(where: str, actions: gym.Space[Any], mask: list[int], count: int) -> None:
    env = made(where, actions, np.array(mask, np.int8))
    env.reset()
    assert not env.step(0)[3]
    *_, truncated, info = env.step(0)
    assert truncated
    assert info["mneme.failure"].endswith(f": the action mask allows none of {count} actions")


def test_masks_by_method_are_passed_on_and_those_in_info_come_first() -> None:
    env = made("method", spaces.Discrete(3), [True, False, True])
    assert env.reset()[1]["action_mask"].tolist() == [True] * 3
    env.step(0)
    assert env.step(0)[4]["action_mask"].tolist() == [True, False, True]
    both = ByMethod("info", spaces.Discrete(2), [1, 1], first=[0, 1])
    both.action_masks = lambda: [1, 0]  # type: ignore[method-assign]
    assert Guard(both, 1).reset()[1]["action_mask"].tolist() == [False, True]


def test_masks_of_several_choices_may_be_a_list_of_arrays() -> None:
    env = made("method", PAIR, [1] * 5, first=[np.array([1, 0]), np.array([0, 1, 1])])
    assert env.reset()[1]["action_mask"].tolist() == [True, False, False, True, True]


def test_a_mask_that_does_not_fit_the_actions_is_named() -> None:
    with pytest.raises(RuntimeError, match=r"action_masks\(\) holds 2 values of type .* for each of 3 actions"):
        made("method", spaces.Discrete(3), [1, 1]).reset()


@pytest.mark.parametrize(
    ("where", "actions", "method", "told"),
    [
        ("info", BOARD, None, r"info\['action_mask'\] of Named is not used as an action mask, as the action space Box"),
        ("", BOARD, lambda: [1, 1], r"action_masks\(\) of Named is not used .* has no categories"),
        (
            "",
            PAIR,
            lambda agent: [1] * 5,
            r"the attribute action_masks of Named is not used .* not a method without arguments",
        ),
        ("", PAIR, "low", r"the attribute action_masks of Named is not used .* not a method without arguments"),
    ],
)
def test_a_mask_that_cannot_be_used_is_named_and_left_out(
    caplog: pytest.LogCaptureFixture, where: str, actions: gym.Space[Any], method: Any, told: str
) -> None:
    from mneme.envs.told import tell_once

    tell_once.cache_clear()
    environment = type("Named", (Masked,), {} if method is None else {"action_masks": staticmethod(method)})
    if method == "low":
        environment.action_masks = "low"  # type: ignore[attr-defined]
    with caplog.at_level(logging.WARNING, logger="mneme"):
        env = Guard(environment(where, actions, [1, 1]), 1)
        assert env.reset()[1] == {}
        env.step(actions.sample())
    with pytest.raises(AssertionError, match=f"^{told}"):
        raise AssertionError("".join(record.getMessage() for record in caplog.records))
