"""The guard: what goes wrong in one lane cuts that lane's episode and leaves the others alone."""

import inspect
import os
import traceback
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from mneme.envs.global_random import seed_process
from mneme.envs.masks import ACTION_MASK, Masks
from mneme.envs.plain import Misfit, OldInterface
from mneme.envs.told import tell_once

ARRAYS = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
"""Spaces whose values are arrays of one shape."""

LARGEST_OBSERVED = np.float64(np.sqrt(np.finfo(np.float32).max))
"""Beyond it the square of a number is no finite float32, and nor are the sums that a network makes."""

_FAILURE, _RESET_FAILURE = "mneme.failure", "mneme.reset_failure"  # in `info`, where others have keys of their own
_AROUND = (os.path.dirname(__file__), os.path.dirname(gym.__file__))
_LARGEST_REWARD = float(np.finfo(np.float32).max)
_FITTING = {"f": "fiub", "i": "iub", "u": "iub", "b": "b"}  # kinds of numbers that a kind of space may be filled with


class EnvironmentFailure(RuntimeError):
    """An environment raised, or returned what does not fit its spaces, once too often; the message says where."""


class EnvironmentMisuse(EnvironmentFailure):
    """It would fail in this way however often it were tried."""


class Guard(gym.Wrapper[Any, Any, Any, Any]):
    """Keeps a single environment to its word, and a failing one from taking others down.

    A failure is an exception, `sys.exit()` included; an observation that does not fit its space in structure, shape or
    kind of number, or is not finite, or so large that its square is not; a reward that is not a finite number; an
    action mask that comes, goes, does not fit the actions, or leaves nothing to choose.
    A failing step returns the last good observation, reward 0, truncated, and one sentence in `info`, which
    `failures_in` finds. A failing reset is tried again, where a seed was given with another one below 2**31, which all
    simulators accept, and told; `reset_failures_in` finds it. A failing `close` is told, and costs nothing.

    Observations are copies in the type of the space, so an environment may reuse its arrays. Of `info`, the action
    mask alone is passed on (boolean): Gymnasium cannot join what differs from lane to lane.

    Args:
        env: the environment; its spaces of other kinds than Box, Discrete, MultiDiscrete, MultiBinary, and Dict and
            Tuple of these are not checked.
        max_failures: so many in a row, with no episode between them that ended by itself, raise; one that shows
            another interface than Gymnasium's does at once.
        alone: it has its process to itself, so a seed is the seed of the process's generators too.
        name: of the environment, for what is said; unset: as it is registered, or that of its class.

    Raises:
        EnvironmentFailure: one sentence, and below it, where the environment's code raised, its traceback as text, as
            no chain survives a subprocess.
    """

    def __init__(self, env: gym.Env[Any, Any], max_failures: int, alone: bool = False, name: str | None = None) -> None:
        super().__init__(env)
        self.metadata = dict(env.metadata or {})  # vectorisers write into it
        self._name = name or (self.spec.id if self.spec is not None else type(self.unwrapped).__name__)
        self._masks = Masks(env, self._name)
        self._max_failures = max_failures
        self._alone = alone
        self._own_spaces = _own_spaces(self.unwrapped)
        self._failures = 0
        self._step = 0
        self._observation: Any = None
        self._masked: bool | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        failures: list[str] = []
        while True:
            if seed is not None and self._alone:
                seed_process(seed)
            try:
                for space in self._own_spaces if seed is not None else ():
                    space.seed(seed)  # many environments draw samples of them
                observation, info = self.env.reset(seed=seed, options=options)
                observation = _fitted(self.observation_space, observation)
                self._observation, mask = observation, self._mask(info, observation)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
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
            terminated, truncated = _flag("terminated", terminated), _flag("truncated", truncated)
            ended = terminated or truncated
            mask = {} if ended else self._mask(info, observation)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            sentence = self._failed(error, f"at step {self._step} of an episode")
            return self._observation, 0.0, False, True, {_FAILURE: sentence}
        self._step += 1
        self._observation = observation
        if ended:
            self._failures = 0
        return observation, reward, terminated, truncated, mask

    def close(self) -> None:
        """Let the environment go."""
        close_quietly(self.env, self._name)

    def _mask(self, info: Mapping[str, Any], observation: Any) -> dict[str, Any]:
        mask_N = self._masks.read(info)
        if self._masked is None:
            self._masked = mask_N is not None
        if self._masked != (mask_N is not None):
            raise Misfit(f"there is {'no' if self._masked else 'an'} action mask, unlike before")
        self._masks.check(mask_N, observation)
        return {} if mask_N is None else {ACTION_MASK: mask_N}

    def _failed(self, error: BaseException, where: str) -> str:
        """Count a failure; returns its sentence.

        Raises:
            EnvironmentFailure: it was one too many.
        """
        self._failures += 1
        sentence = f"the environment {self._name} failed {where}: {one_line(error)}"
        if isinstance(error, OldInterface):
            raise EnvironmentMisuse(sentence) from None
        if self._failures < self._max_failures:
            return sentence
        raise EnvironmentFailure(
            f"{sentence}; as this is failure {self._failures} in a row without an episode that ended by itself, mend "
            f"the environment or raise env.max_failures{_own_traceback(error)}"
        ) from None


def failures_in(info: Mapping[str, Any]) -> dict[int, str]:
    """The lanes whose episodes a failure has just cut, and each one's sentence, from the info of a vector step.

    A failure of a single environment ends its episode, so under same-step autoreset both of Gymnasium's vectorisers put
    the lane's info into `info["final_info"]`; `failure_info` stands in `info` itself.
    """
    final = info.get("final_info")
    return _told(info, _FAILURE) | (_told(final, _FAILURE) if isinstance(final, Mapping) else {})


def reset_failures_in(info: Mapping[str, Any]) -> list[str]:
    """One sentence for each lane whose reset failed before it succeeded, from the info of a vector reset or step."""
    return list(_told(info, _RESET_FAILURE).values())


def failure_info(sentences: Mapping[int, str], num_envs: int) -> dict[str, np.ndarray]:
    """The info in which `failures_in` finds these sentences, laid out as Gymnasium's vectorisers do: an object array
    [num_envs], and a boolean array that is true at the lanes with a sentence."""
    return _telling(_FAILURE, sentences, num_envs)


def reset_failure_info(sentences: Mapping[int, str], num_envs: int) -> dict[str, np.ndarray]:
    """The info in which `reset_failures_in` finds these sentences, laid out as in `failure_info`."""
    return _telling(_RESET_FAILURE, sentences, num_envs)


def _told(info: Mapping[str, Any], name: str) -> dict[int, str]:
    return {int(lane): info[name][lane] for lane in np.flatnonzero(info[f"_{name}"])} if name in info else {}


def _telling(name: str, sentences: Mapping[int, str], num_envs: int) -> dict[str, np.ndarray]:
    told = np.array([sentences.get(lane) for lane in range(num_envs)], dtype=object)
    return {name: told, f"_{name}": np.isin(np.arange(num_envs), list(sentences))}


def one_line(error: BaseException) -> str:
    """The kind of an error and what it says, or where it says nothing the line that raised it; without line breaks."""
    told = str(error)
    if isinstance(error, Misfit):
        return " ".join(told.split())
    if not told.strip() and (frames := traceback.extract_tb(error.__traceback__)):
        told = f"{frames[-1].line} ({frames[-1].filename}, line {frames[-1].lineno})"
    return " ".join(f"{type(error).__name__}: {told}".split())


def _own_traceback(error: BaseException) -> str:
    """The traceback of what an environment's code raised, in lines of their own, without what lies around that code."""
    if isinstance(error, Misfit):
        return ""
    told = traceback.TracebackException.from_exception(error)
    own = [frame for frame in told.stack if not frame.filename.startswith(_AROUND)]
    told.stack = traceback.StackSummary.from_list(own or told.stack)
    return f"\n{''.join(told.format()).rstrip()}"


def close_quietly(env: Any, name: str) -> None:
    """Close an environment, single or vector; that it fails is told and costs nothing."""
    try:
        env.close()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        tell_once(f"the environment {name} failed to close: {one_line(error)}; what it held may still be in use")


def _own_spaces(env: Any) -> list[gym.Space[Any]]:
    """The environment's spaces; those that its class holds for all of them are copied, as they draw random samples."""
    for name in ("observation_space", "action_space"):
        if name not in vars(env) and isinstance(shared := inspect.getattr_static(env, name, None), gym.Space):
            setattr(env, name, deepcopy(shared))
    return [env.observation_space, env.action_space]


def _fitted(space: gym.Space[Any], value: Any, name: str = "the observation") -> Any:
    """A copy of `value` in the types of `space`.

    Raises:
        Misfit: it does not fit.
    """
    if isinstance(space, spaces.Dict):
        if not isinstance(value, Mapping) or value.keys() != space.spaces.keys():
            found = sorted(value) if isinstance(value, Mapping) else type(value).__name__
            raise Misfit(f"{name} is {found}, but its space has the parts {sorted(space.spaces)}")
        return {key: _fitted(child, value[key], f"{name}[{key!r}]") for key, child in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        if not isinstance(value, (tuple, list)) or len(value) != len(space.spaces):
            raise Misfit(f"{name} is {value!r}, but its space is a tuple of {len(space.spaces)}")
        return tuple(_fitted(child, value[i], f"{name}[{i}]") for i, child in enumerate(space.spaces))
    return _fitted_array(space, value, name) if isinstance(space, ARRAYS) else value


def _fitted_array(space: gym.Space[Any], value: Any, name: str) -> np.ndarray:
    array = np.asarray(value)
    assert space.dtype is not None
    if isinstance(space, spaces.Discrete) and array.size == 1:
        array = array.reshape(())
    if array.shape != space.shape or array.dtype.kind not in _FITTING[space.dtype.kind]:
        raise Misfit(
            f"{name} has shape {array.shape} and type {array.dtype}, but its space has {space.shape} and {space.dtype}"
        )
    with np.errstate(over="ignore"):
        fitted = array.astype(space.dtype)
    if space.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            usable = np.abs(fitted) <= LARGEST_OBSERVED
        if not usable.all():
            raise Misfit(
                f"{name} holds {array[~usable].flat[0]:.6g}; what is observed must be finite and at most "
                f"{LARGEST_OBSERVED:.1e}, or its square overflows: show another number for what is not known, and "
                f"scale what is large"
            )
    elif not np.array_equal(fitted, array) or not (isinstance(space, spaces.Box) or space.contains(fitted)):
        wrong = array[(fitted != array) | _outside(space, fitted)].flat[0]
        raise Misfit(f"{name} holds {wrong}, outside its space {space}")
    return fitted


def _outside(space: gym.Space[Any], array: np.ndarray) -> np.ndarray:
    """True where a number of the array is not of the space, which bounds each by itself; nowhere in a Box."""
    low: Any = 0
    if isinstance(space, spaces.Discrete):
        low, count = space.start, space.n
    elif isinstance(space, spaces.MultiDiscrete):
        low, count = space.start, space.nvec
    elif isinstance(space, spaces.MultiBinary):
        count = 2
    else:
        return np.zeros(array.shape, np.bool_)
    return np.asarray((array < low) | (array - low >= count))


def _flag(name: str, value: Any) -> bool:
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biuf":
        raise Misfit(f"{name} is {value!r}; it must be true or false")
    return bool(array.item())


def _finite(reward: Any) -> float:
    array = np.asarray(reward)
    if array.size != 1 or array.dtype.kind not in "biuf" or not abs(array.item()) <= _LARGEST_REWARD:
        raise Misfit(f"the reward is {reward!r}; it must be a finite number")
    return float(array.item())
