"""The guard: what goes wrong in one lane cuts that lane's episode and leaves the others alone."""

import traceback
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

ACTION_MASK = "action_mask"
"""Where an environment's info says which actions are allowed."""

ARRAYS = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
"""Spaces whose values are arrays of one shape."""

_FAILURE, _RESET_FAILURE = "failure", "reset_failure"
_LARGEST = float(np.finfo(np.float32).max)
_FITTING = {"f": "fiub", "i": "iub", "u": "iub", "b": "b"}  # kinds of numbers that a kind of space may be filled with


class EnvironmentFailure(RuntimeError):
    """An environment raised, or returned what does not fit its spaces, once too often; the message says where."""


class Guard(gym.Wrapper[Any, Any, Any, Any]):
    """Keeps a single environment to its word, and a failing one from taking others down.

    A failure is an exception; an observation that does not fit its space in structure, shape or kind of number, or
    is not finite; a reward that is not a finite number; an `info` whose action mask comes, goes, changes shape or, of a
    Discrete action, allows nothing.
    A failing step returns the last good observation, reward 0, truncated, and `info["failure"]`, one sentence. A
    failing reset is tried again, where a seed was given with another one below 2**31, which all simulators accept, and
    told in `info["reset_failure"]`.

    Observations are copies in the type of the space, so an environment may reuse its arrays. Of `info`, the action
    mask alone is passed on (boolean): Gymnasium cannot join what differs from lane to lane.

    Args:
        env: the environment; its spaces of other kinds than Box, Discrete, MultiDiscrete, MultiBinary, and Dict and
            Tuple of these are not checked.
        max_failures: so many in a row, with no episode between them that ended by itself, raise.

    Raises:
        EnvironmentFailure: one sentence, and below it the traceback as text, as no chain survives a subprocess.
    """

    def __init__(self, env: gym.Env[Any, Any], max_failures: int) -> None:
        super().__init__(env)
        self.metadata = dict(env.metadata)  # vectorisers write into it
        self._max_failures = max_failures
        self._failures = 0
        self._step = 0
        self._observation: Any = None
        self._mask_shapes: dict[str, tuple[int, ...]] | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        failures: list[str] = []
        while True:
            try:
                observation, info = self.env.reset(seed=seed, options=options)
                self._observation, mask = _fitted(self.observation_space, observation), self._mask(info)
            except Exception as error:
                failures.append(self._failed(error, "in reset"))
                seed = None if seed is None else int(np.random.SeedSequence(seed).generate_state(1)[0] >> 1)
            else:
                self._step = 0
                return self._observation, mask | ({_RESET_FAILURE: "; ".join(failures)} if failures else {})

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Act once."""
        try:
            observation, reward, terminated, truncated, info = self.env.step(action)
            observation, reward = _fitted(self.observation_space, observation), _finite(reward)
            ended = bool(terminated or truncated)
            mask = {} if ended else self._mask(info)
        except Exception as error:
            sentence = self._failed(error, f"at step {self._step} of an episode")
            return self._observation, 0.0, False, True, {_FAILURE: sentence}
        self._step += 1
        self._observation = observation
        if ended:
            self._failures = 0
        return observation, reward, bool(terminated), bool(truncated), mask

    def _mask(self, info: Mapping[str, Any]) -> dict[str, Any]:
        mask = {ACTION_MASK: np.array(info[ACTION_MASK]).astype(np.bool_)} if ACTION_MASK in info else {}
        shapes = {name: array.shape for name, array in mask.items()}
        if self._mask_shapes is None:
            self._mask_shapes = shapes
        if shapes != self._mask_shapes:
            raise ValueError(f"info has {shapes or 'no action mask'}, but had {self._mask_shapes or 'none'} before")
        if mask and isinstance(self.action_space, spaces.Discrete) and not mask[ACTION_MASK].any():
            raise ValueError(f"the action mask allows none of {self.action_space.n} actions")
        return mask

    def _failed(self, error: Exception, where: str) -> str:
        """Count a failure; returns its sentence.

        Raises:
            EnvironmentFailure: it was one too many.
        """
        self._failures += 1
        name = self.spec.id if self.spec is not None else type(self.unwrapped).__name__
        sentence = f"the environment {name} failed {where}: {one_line(error)}"
        if self._failures < self._max_failures:
            return sentence
        raise EnvironmentFailure(
            f"{sentence}; as this is failure {self._failures} in a row without an episode that ended by itself, mend "
            f"the environment or raise env.max_failures\n{''.join(traceback.format_exception(error))}"
        ) from None


def failures_in(info: Mapping[str, Any]) -> dict[int, str]:
    """The lanes whose episodes a failure has just cut, and each one's sentence, from the info of a vector step.

    A failure ends an episode, so under same-step autoreset both of Gymnasium's vectorisers put the lane's info into
    `info["final_info"]`: the sentences into "failure", an object array [B], and which lanes have one into
    "_failure" [B].
    """
    final = info.get("final_info")
    if not final or _FAILURE not in final:
        return {}
    return {int(lane): final[_FAILURE][lane] for lane in np.flatnonzero(final[f"_{_FAILURE}"])}


def reset_failures_in(info: Mapping[str, Any]) -> list[str]:
    """What went wrong in resets before one succeeded, from the info of a vector reset or step: a sentence a lane."""
    if _RESET_FAILURE not in info:
        return []
    return list(info[_RESET_FAILURE][info[f"_{_RESET_FAILURE}"]])


def one_line(error: Exception) -> str:
    """The kind of an error and what it says, without line breaks."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _fitted(space: gym.Space[Any], value: Any, name: str = "the observation") -> Any:
    """A copy of `value` in the types of `space`.

    Raises:
        ValueError: it does not fit.
    """
    if isinstance(space, spaces.Dict):
        if not isinstance(value, Mapping) or value.keys() != space.spaces.keys():
            found = sorted(value) if isinstance(value, Mapping) else type(value).__name__
            raise ValueError(f"{name} is {found}, but its space has the parts {sorted(space.spaces)}")
        return {key: _fitted(child, value[key], f"{name}[{key!r}]") for key, child in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        if not isinstance(value, (tuple, list)) or len(value) != len(space.spaces):
            raise ValueError(f"{name} is {value!r}, but its space is a tuple of {len(space.spaces)}")
        return tuple(_fitted(child, value[i], f"{name}[{i}]") for i, child in enumerate(space.spaces))
    return _fitted_array(space, value, name) if isinstance(space, ARRAYS) else value


def _fitted_array(space: gym.Space[Any], value: Any, name: str) -> np.ndarray:
    array = np.asarray(value)
    assert space.dtype is not None
    if array.shape != space.shape or array.dtype.kind not in _FITTING[space.dtype.kind]:
        raise ValueError(
            f"{name} has shape {array.shape} and type {array.dtype}, but its space has {space.shape} and {space.dtype}"
        )
    with np.errstate(over="ignore"):
        fitted = array.astype(space.dtype)
    if space.dtype.kind == "f":
        with np.errstate(over="ignore"):
            finite = np.isfinite(fitted.astype(np.float32, copy=False))  # as which it travels
        if not finite.all():
            raise ValueError(f"{name} holds {array[~finite].flat[0]}, which is no finite float32")
    elif not np.array_equal(fitted, array) or not (isinstance(space, spaces.Box) or space.contains(fitted)):
        raise ValueError(f"{name} holds numbers outside its space {space}")
    return fitted


def _finite(reward: Any) -> float:
    array = np.asarray(reward)
    if array.size != 1 or array.dtype.kind not in "biuf" or not abs(array.item()) <= _LARGEST:
        raise ValueError(f"the reward is {reward!r}; it must be a finite number")
    return float(array.item())
