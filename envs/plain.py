"""The innermost wrapper: what older interfaces do otherwise is adapted where nothing is lost, and else named."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

Creator = Callable[..., Any]


class Misfit(ValueError):
    """An environment returned what breaks Gymnasium's interface or its own spaces, though its code raised nothing."""


class OldInterface(Misfit):
    """Whatever it does next, it speaks another interface than Gymnasium's."""


class Plain(gym.Wrapper[Any, Any, Any, Any]):
    """An environment whose `reset` and `step` have Gymnasium's form.

    A `reset` without `options` or `seed` is called without them; the seed then goes to Gymnasium's own `np_random` and
    to a method `seed`, as Gym had it before 0.26. An `info` of None is empty. A `reset` that returns the observation
    alone and a `step` that returns four values are refused: whether an episode ended or was cut cannot be told.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self._accepted = [name for name in ("seed", "options") if all(accepts(r, name) for r in _resets(env))]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode.

        Raises:
            OldInterface: the result is not an observation and an info.
        """
        given: dict[str, Any] = {"seed": seed, "options": options}
        if "seed" not in self._accepted and seed is not None:
            gym.Env.reset(self.unwrapped, seed=seed)
            older = inspect.getattr_static(self.unwrapped, "seed", None)
            if inspect.isfunction(older) and accepts(older, "seed"):
                self.unwrapped.seed(seed)  # type: ignore[attr-defined]
        result: Any = self.env.reset(**{name: given[name] for name in self._accepted})
        pair = isinstance(result, (tuple, list)) and len(result) == 2
        if not pair or not (_is_info(result[1]) or self._has_its_shape(result[0])):
            raise OldInterface(
                "reset() returned the observation alone; it must return the observation and an info dictionary"
            )
        return result[0], _info(result[1], "reset()")

    def _has_its_shape(self, observation: Any) -> bool:
        """True if this may be a whole observation rather than a part of one."""
        space = self.observation_space
        if isinstance(space, (spaces.Tuple, spaces.Dict)):
            return isinstance(observation, (tuple, list) if isinstance(space, spaces.Tuple) else Mapping)
        return space.shape is None or np.shape(observation) == space.shape

    def step(self, action: Any) -> Any:
        """Act once.

        Raises:
            OldInterface: the result is not of five values, of which the last is an info.
        """
        result: Any = self.env.step(action)
        if not isinstance(result, (tuple, list)) or len(result) != 5:
            found = f"{len(result)} values" if isinstance(result, (tuple, list)) else f"a {type(result).__name__}"
            older = ", as Gym's did before 0.26" if found == "4 values" else ""
            raise OldInterface(
                f"step() returned {found}{older}; it must return five: observation, reward, terminated, truncated, info"
            )
        return (*result[:4], _info(result[4], "step()"))


def made_plain(creator: Creator, **kwargs: Any) -> Any:
    """The environment that the creator makes, wrapped in `Plain` if it is one of Gymnasium's."""
    env = creator(**kwargs)
    if isinstance(env, gym.vector.VectorEnv):
        raise ValueError("a vector environment was made, of its own size; let what makes it take num_envs")
    return Plain(env) if isinstance(env, gym.Env) else env


def accepts(function: Creator, name: str) -> bool:
    """True if a function or class accepts a parameter of this name."""
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # not written in Python
        return True
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _resets(env: Any) -> Iterator[Creator]:
    """The `reset` of the environment and of those that it wraps."""
    yield env.reset
    while isinstance(env, gym.Wrapper):
        env = env.env
        yield env.reset


def _is_info(value: Any) -> bool:
    return value is None or isinstance(value, Mapping)


def _info(value: Any, origin: str) -> dict[str, Any]:
    if not _is_info(value):
        raise OldInterface(f"the info that {origin} returned is a {type(value).__name__}; it must be a dictionary")
    return {} if value is None else dict(value)
