"""Older forms of `reset` and `step`: adapted where nothing is lost, and else named."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from mneme.envs.plain import Misfit, Plain


class Older(gym.Env[Any, Any]):
    """`reset` and `step` return what is given."""

    observation_space: gym.Space[Any] = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, reset: Any = None, step: Any = None) -> None:
        self.given = reset, step

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return self.given[0]

    def step(self, action: Any) -> Any:
        return self.given[1]


class OnlySeed(Older):
    def reset(self, seed=None):  # type: ignore[override, no-untyped-def]
        return seed, {}


class OwnSeed(Older):
    """As in Gym 0.21."""

    def seed(self, seed=None):  # type: ignore[no-untyped-def]
        self.seeded = seed

    def reset(self):  # type: ignore[override, no-untyped-def]
        return (self.seeded, self.np_random.integers(1000)), {}


class Passing(gym.Wrapper[Any, Any, Any, Any]):
    """Passes everything on, as many wrappers do."""

    def reset(self, **kwargs):  # type: ignore[override, no-untyped-def]
        return self.env.reset(**kwargs)


X = np.zeros(2, np.float32)


def test_a_reset_is_called_with_what_it_takes() -> None:
    for wrap in (lambda env: env, Passing):
        assert Plain(wrap(OnlySeed())).reset(seed=3, options={})[0] == 3
        seeded = Plain(wrap(OwnSeed()))
        first, again = seeded.reset(seed=3)[0], seeded.reset(seed=3)[0]
        assert first == again
        assert first[0] == 3
        assert seeded.reset()[0] != first


def test_an_info_of_none_is_empty() -> None:
    env = Plain(Older((X, None), (X, 1.0, False, False, None)))
    assert env.reset()[1] == env.step(0)[4] == {}


@pytest.mark.parametrize(
    ("result", "space"),
    [
        (X, None),
        ([0.0, 0.0], None),
        ((0.0, 0.0), None),
        (1, spaces.Discrete(2)),
        ((1, 0), spaces.Tuple((spaces.Discrete(2), spaces.Discrete(2)))),
        ({"a": 0, "b": 1}, spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Discrete(2)})),
    ],
)
def test_a_reset_that_returns_the_observation_alone_is_named(result: Any, space: gym.Space[Any] | None) -> None:
    env = Older(result)
    env.observation_space = space or env.observation_space
    with pytest.raises(Misfit, match=r"^reset\(\) returned the observation alone; it must return the observation and"):
        Plain(env).reset()


def test_an_info_that_is_no_dictionary_is_named() -> None:
    with pytest.raises(Misfit, match=r"^the info that reset\(\) returned is a list; it must be a dictionary"):
        Plain(Older((X, []))).reset()
    with pytest.raises(Misfit, match=r"^the info that step\(\) returned is a str; it must be a dictionary"):
        Plain(Older(None, (X, 1.0, False, False, "won"))).step(0)


@pytest.mark.parametrize(
    ("result", "found"),
    [((X, 1.0, False, {}), r"4 values, as Gym's did before 0\.26"), ((X, 1.0), "2 values"), (None, "a NoneType")],
)
def test_a_step_that_does_not_return_five_values_is_named(result: Any, found: str) -> None:
    with pytest.raises(Misfit, match=rf"^step\(\) returned {found}; it must return five: observation, reward, term"):
        Plain(Older(None, result)).step(0)
