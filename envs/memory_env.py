"""The base of the batched tasks: seeding, same-step autoreset, exact save and restore; and the single form.

What a lane's episode contains is a pure function of the lane's seed and the episode's index, so three integers a
lane (key, episode, step) are the whole state of an environment, save for what actions change.

Legend: B environments.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from mneme.envs.facts import TaskFacts
from mneme.envs.lane_random import Keys, fold_in, lane_keys
from mneme.envs.resumable import Resumable, State

Observation = NDArray[np.float32]
Actions = gym.spaces.Discrete[np.int64]
Transition = tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]

_KEY_DOMAIN = 0x656E7673  # keeps episodes apart from other uses of the same seeds


class MemoryVectorEnv(gym.vector.VectorEnv[Observation, np.ndarray, np.ndarray], Resumable):
    """B lanes of one task, stepped together without a Python loop over lanes.

    A subclass gives `_transition` and `_observe`, and `_begin` where episodes have contents to draw. Finished
    lanes are reset in the same step: `step` returns the next episode's first observation, and
    `info["final_obs"]`, an object array [B], holds the last one where `info["_final_obs"]` [B] is true and
    None elsewhere, as in Gymnasium's own vector environments.

    Args:
        num_envs: lanes, B.
        observation_space: of one lane.
        action_space: of one lane, counted from 0.
        facts: what is known about the task.
    """

    metadata: dict[str, Any] = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012
    horizon_argument: ClassVar[str]
    """The argument that says over how many steps has to be remembered, more or less."""

    def __init__(
        self, num_envs: int, observation_space: gym.spaces.Box, action_space: Actions, facts: TaskFacts
    ) -> None:
        self.num_envs = whole_number("num_envs", num_envs, 1)
        self.single_observation_space = observation_space
        self.single_action_space = action_space
        self.observation_space = batch_space(observation_space, num_envs)
        self.action_space = batch_space(action_space, num_envs)
        self.facts = facts
        self._actions = int(action_space.n)
        self._ready = False
        self._key_B: Keys = np.zeros(num_envs, dtype=np.uint64)
        self._episode_B = np.zeros(num_envs, dtype=np.int64)
        self._step_B = np.zeros(num_envs, dtype=np.int64)
        self._episode_key_B: Keys = np.zeros(num_envs, dtype=np.uint64)

    def _begin(self, lanes_B: NDArray[np.bool_]) -> None:
        """Draw the contents of the episodes that start in these lanes [B] from `_episode_key_B` alone."""

    def _memory(self) -> State:
        """State that actions change, as integers [B] by name: the arrays themselves, which `set_state` writes into."""
        return {}

    def _transition(self, action_B: NDArray[np.integer[Any]]) -> Transition:
        """Rewards, terminated and truncated, each a new array [B], of acting at `_step_B`."""
        raise NotImplementedError

    def _observe(self) -> Observation:
        """The observations at `_step_B`, a new array [B, ...]."""
        raise NotImplementedError

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode in every lane, or only in those of `options["reset_mask"]` (bool [B]).

        Args:
            seed: lane i plays the episodes of seed + i, or of seed[i] (modulo 2**64), from the first. Lanes
                without a seed go on to their next episode; at the first reset, they are given random seeds.
            options: only "reset_mask" is read.

        Raises:
            ValueError: seeds or a mask that do not fit the lanes.
        """
        lanes_B = self._lanes_to_reset(options)
        seed_B, seeded_B = self._lane_seeds(seed)
        if isinstance(seed, int):
            super().reset(seed=seed)
        seeded_B &= lanes_B
        self._key_B = np.where(seeded_B, lane_keys(_KEY_DOMAIN, seed_B), self._key_B)
        self._episode_B = np.where(seeded_B, 0, self._episode_B + lanes_B)
        self._ready = True
        self._enter(lanes_B)
        return self._observe(), {}

    def step(self, actions: np.ndarray) -> tuple[Observation, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Act in every lane; finished lanes start their next episode at once.

        Raises:
            ValueError: actions of another shape, type or range than the action space.
            gymnasium.error.ResetNeeded: the environment was never reset.
        """
        reward_B, terminated_B, truncated_B = self.advance(actions)
        done_B = terminated_B | truncated_B
        info: dict[str, Any] = {}
        if np.count_nonzero(done_B):  # any() takes six times as long, and steps ask for it eight times
            final_obs = np.full(self.num_envs, None)
            final_obs[done_B] = np.fromiter(self._observe()[done_B], dtype=object, count=np.count_nonzero(done_B))
            info = {"final_obs": final_obs, "final_info": {}}
            info |= {f"_{name}": done_B.copy() for name in info}
            self._episode_B += done_B
            self._enter(done_B)
        return self._observe(), reward_B, terminated_B, truncated_B, info

    def advance(self, actions: np.ndarray) -> Transition:
        """Act in every lane and reset none: rewards float64 [B], terminated and truncated bool [B]."""
        self._require_reset()
        transition = self._transition(self._checked(actions))
        self._step_B += 1
        return transition

    def observation(self) -> Observation:
        """The observations of the present step, a new array [B, ...]."""
        self._require_reset()
        return self._observe()

    def get_state(self) -> State:
        """Copies of all that the future depends on besides actions: integers [B], such as key, episode and step."""
        self._require_reset()
        state = {"key": self._key_B, "episode": self._episode_B, "step": self._step_B} | self._memory()
        return {name: array_B.copy() for name, array_B in state.items()}

    def set_state(self, state: State) -> None:
        """Continue exactly where `get_state` was called, in this or another environment of the same settings.

        Raises:
            ValueError: the state is not one of this many lanes.
        """
        for name in ("key", "episode", "step", *self._memory()):
            if name not in state or state[name].shape != (self.num_envs,):
                found = f"is of shape {state[name].shape}" if name in state else "is missing"
                raise ValueError(
                    f"{name!r} in the state of an environment with {self.num_envs} lanes {found}; "
                    f"restore a state that was saved with {self.num_envs} lanes"
                )
        self._key_B = state["key"].astype(np.uint64)
        self._episode_B = state["episode"].astype(np.int64)
        self._ready = True
        self._enter(np.ones(self.num_envs, dtype=np.bool_))
        self._step_B = state["step"].astype(np.int64)
        for name, array_B in self._memory().items():
            array_B[:] = state[name]

    def _enter(self, lanes_B: NDArray[np.bool_]) -> None:
        """Start in these lanes the episodes that `_key_B` and `_episode_B` say."""
        self._step_B[lanes_B] = 0
        self._episode_key_B[lanes_B] = fold_in(self._key_B[lanes_B], self._episode_B[lanes_B])
        self._begin(lanes_B)

    def _require_reset(self) -> None:
        if not self._ready:
            raise gym.error.ResetNeeded(f"{type(self).__name__} was never reset; call reset() first")

    def _checked(self, actions: np.ndarray) -> NDArray[np.integer[Any]]:
        action_B = np.asarray(actions)
        if action_B.shape != (self.num_envs,) or action_B.dtype.kind not in "iu":
            raise ValueError(
                f"actions have shape {action_B.shape} and type {action_B.dtype}; "
                f"pass one integer a lane, shape ({self.num_envs},)"
            )
        outside_B = (action_B < 0) | (action_B >= self._actions)
        if np.count_nonzero(outside_B):
            raise ValueError(f"an action is {action_B[outside_B][0]}; actions run from 0 to {self._actions - 1}")
        return action_B

    def _lane_seeds(self, seed: int | Sequence[int | None] | None) -> tuple[Keys, NDArray[np.bool_]]:
        """Seeds [B] modulo 2**64, and which lanes have one [B]."""
        B = self.num_envs
        if isinstance(seed, int):
            return np.uint64(seed % (1 << 64)) + np.arange(B, dtype=np.uint64), np.ones(B, dtype=np.bool_)
        seeds: list[int | None] = [None] * B if seed is None else list(seed)
        if len(seeds) != B:
            raise ValueError(f"{len(seeds)} seeds were given; pass one for each of the {B} lanes")
        if not self._ready:
            seeds = [int(self.np_random.integers(1 << 63)) if s is None else s for s in seeds]
        seed_B = np.array([0 if s is None else int(s) % (1 << 64) for s in seeds], dtype=np.uint64)
        return seed_B, np.array([s is not None for s in seeds], dtype=np.bool_)

    def _lanes_to_reset(self, options: dict[str, Any] | None) -> NDArray[np.bool_]:
        mask = (options or {}).get("reset_mask")
        if mask is None:
            return np.ones(self.num_envs, dtype=np.bool_)
        fits = isinstance(mask, np.ndarray) and mask.dtype == np.bool_ and mask.shape == (self.num_envs,)
        if not fits or not mask.any():
            raise ValueError(
                f"options['reset_mask'] is {mask!r}; it must be a boolean array of shape ({self.num_envs},) "
                f"with at least one True"
            )
        if not mask.all():
            self._require_reset()
        return mask


class SingleEnv(gym.Env[Observation, np.int64]):
    """One lane of a batched task as an ordinary environment, without autoreset.

    With seed s it plays the episodes of the vector environment's lane whose seed is s. A subclass names its
    `vector_class`, to which keyword arguments go.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012
    vector_class: ClassVar[type[MemoryVectorEnv]]

    def __init__(self, render_mode: None = None, **kwargs: Any) -> None:
        self.metadata = dict(self.metadata)  # vectorising wrappers write into it
        self.render_mode = render_mode
        self._lane = self.vector_class(1, **kwargs)
        self._over = True
        self.observation_space = self._lane.single_observation_space
        self.action_space = self._lane.single_action_space
        self.facts = self._lane.facts

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode: the first one of `seed`, or the next one without a seed."""
        super().reset(seed=seed)
        observation, info = self._lane.reset(seed=seed)
        self._over = False
        return observation[0], info

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Act once.

        Raises:
            ValueError: an action outside the action space.
            gymnasium.error.ResetNeeded: the episode is over, or none was started.
        """
        if self._over:
            raise gym.error.ResetNeeded("the episode is over, or none was started; call reset() first")
        reward, terminated, truncated = self._lane.advance(np.atleast_1d(action))
        self._over = bool(terminated[0] or truncated[0])
        return self._lane._observe()[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), {}


def whole_number(name: str, value: Any, least: int) -> int:
    """`value` as an int.

    Raises:
        TypeError: it is not a whole number.
        ValueError: it is below `least`.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} is {value!r}; it must be a whole number of at least {least}")
    if value < least:
        raise ValueError(f"{name} is {value}; it must be at least {least}")
    return int(value)


def finite_number(name: str, value: Any, least: float) -> float:
    """`value` as a float.

    Raises:
        TypeError: it is not a number.
        ValueError: it is not finite, or below `least`.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} is {value!r}; it must be a number of at least {least:g}")
    if not least <= value < math.inf:
        raise ValueError(f"{name} is {value}; it must be finite and at least {least:g}")
    return float(value)


def within(name: str, array_B: NDArray[np.int64], least: int, most: int) -> None:
    """See that what a state holds can be.

    Raises:
        ValueError: it cannot.
    """
    outside_B = (array_B < least) | (array_B > most)
    if outside_B.any():
        raise ValueError(f"{name!r} in a state is {array_B[outside_B][0]}; it must be from {least} to {most}")


def one_of(name: str, value: Any, choices: tuple[Any, ...]) -> Any:
    """`value`, if it is one of the choices.

    Raises:
        ValueError: it is none of them.
    """
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; it must be {' or '.join(map(repr, choices))}")
    return value
