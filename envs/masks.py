"""Which actions an environment allows: where it says so, and whether it leaves anything to choose.

Legend: B environments, N categories of all the Discrete and MultiDiscrete parts of an action space, in order.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from mneme.envs.plain import Misfit
from mneme.envs.told import tell_once

ACTION_MASK = "action_mask"
"""The key of an action mask in an environment's `info` or in its Dict observation."""

_METHOD = "action_masks"  # as sb3-contrib's MaskablePPO asks for them


class Masks:
    """Reads the masks of one environment.

    An environment says which actions are allowed as a part of its Dict observation, in its `info`, or with
    sb3-contrib's method `action_masks()`; the first of these that it has counts.

    Args:
        env: a single environment, or a vector environment, which gives masks [B, N].
        name: of the environment, for what is said.
    """

    def __init__(self, env: Any, name: str) -> None:
        vector = isinstance(env, gym.vector.VectorEnv)
        self._name = name
        self._lanes: int | None = env.num_envs if vector else None
        self._action_space = env.single_action_space if vector else env.action_space
        self._counts = list(category_counts(self._action_space))
        observed = env.single_observation_space if vector else env.observation_space
        self._in_observation = isinstance(observed, spaces.Dict) and ACTION_MASK in observed.spaces
        self._method: Callable[[], Any] | None = None
        method = _attribute(env, _METHOD)
        if method is None or self._in_observation:
            return
        if not self._counts:
            self._say(f"{_METHOD}()", f"the action space {self._action_space} has no categories")
        elif not callable(method) or not _accepts_nothing(method):
            self._say(f"the attribute {_METHOD}", "it is not a method without arguments")
        else:
            self._method = method

    def read(self, info: Mapping[str, Any]) -> np.ndarray | None:
        """The mask, bool [N] or [B, N], that goes along with the observation; None where the environment gives none, or
        gives it in the observation.

        Raises:
            Misfit: a mask that does not hold one number for each category.
        """
        if ACTION_MASK in info:
            if self._counts:
                return self._fitted(info[ACTION_MASK], f"info[{ACTION_MASK!r}]")
            self._say(f"info[{ACTION_MASK!r}]", f"the action space {self._action_space} has no categories")
        return None if self._method is None else self._fitted(self._method(), f"{_METHOD}()")

    def check(self, mask_N: np.ndarray | None, observation: Any) -> None:
        """Refuse a mask, from `read` or in the observation, that leaves a part of the action nothing to choose.

        Raises:
            Misfit: one sentence.
        """
        if empty := self.empty(mask_N, observation):
            raise Misfit(empty[0])

    def empty(self, mask_BN: np.ndarray | None, observation: Any) -> dict[int, str]:
        """The lanes (0 for a single environment) whose mask leaves a part of the action nothing to choose, and a
        sentence for each."""
        if self._in_observation:
            parts = [np.reshape(part, (self._lanes or 1, -1)) for part in _arrays(observation[ACTION_MASK])]
            mask_BN = np.concatenate(parts, axis=1).astype(np.bool_)
        if mask_BN is None or mask_BN.size != (self._lanes or 1) * sum(self._counts):
            return {}
        found: dict[int, str] = {}
        start, mask_BN = 0, np.atleast_2d(mask_BN)
        for count in self._counts:
            for lane in np.flatnonzero(~mask_BN[:, start : start + count].any(axis=1)):
                found.setdefault(int(lane), f"the action mask allows none of {count} actions")
            start += count
        return found

    def _fitted(self, mask: Any, origin: str) -> np.ndarray:
        if self._lanes is None:
            return self._fitted_lane(mask, origin)
        if len(mask) != self._lanes:
            raise Misfit(f"{origin} holds {len(mask)} masks for {self._lanes} lanes; it must hold one for each")
        return np.stack([self._fitted_lane(lane, origin) for lane in mask])

    def _fitted_lane(self, mask: Any, origin: str) -> np.ndarray:
        mask_N = flat_mask(mask)
        if mask_N.shape != (sum(self._counts),) or mask_N.dtype.kind not in "biuf":
            raise Misfit(
                f"{origin} holds {mask_N.size} values of type {mask_N.dtype}; it must hold one number or boolean for "
                f"each of {sum(self._counts)} actions"
            )
        return mask_N.astype(np.bool_)

    def _say(self, what: str, why: str) -> None:
        tell_once(f"{what} of {self._name} is not used as an action mask, as {why}")


def flat_mask(mask: Any) -> np.ndarray:
    """A mask [N] of one environment, which may be given part by part."""
    parts = [np.ravel(part) for part in mask] if isinstance(mask, (list, tuple)) else [np.ravel(mask)]
    return np.concatenate(parts) if parts else np.empty(0)


def category_counts(space: gym.Space[Any]) -> Iterator[int]:
    """The number of categories of each Discrete and MultiDiscrete part of an action space."""
    if isinstance(space, spaces.Discrete):
        yield int(space.n)
    elif isinstance(space, spaces.MultiDiscrete):
        yield from (int(n) for n in space.nvec.ravel())
    elif isinstance(space, spaces.Dict):
        for child in space.spaces.values():
            yield from category_counts(child)
    elif isinstance(space, spaces.Tuple):
        for child in space.spaces:
            yield from category_counts(child)


def _attribute(env: Any, name: str) -> Any:
    """An attribute of an environment or of what it wraps, the outermost; None where there is none."""
    while not hasattr(env, name) and isinstance(env, (gym.Wrapper, gym.vector.VectorWrapper)):
        env = env.env
    return getattr(env, name, None)


def _accepts_nothing(function: Callable[..., Any]) -> bool:
    """True if a function can be called without arguments."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        return True
    return all(p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)


def _arrays(value: Any) -> Iterator[Any]:
    """The arrays inside nested mappings and tuples, in order."""
    if isinstance(value, Mapping):
        for child in value.values():
            yield from _arrays(child)
    elif isinstance(value, tuple):
        for child in value:
            yield from _arrays(child)
    else:
        yield value
