"""Delayed cue: see one of a few symbols, then nothing, then be asked which it was."""

import math

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from mneme.envs.facts import TaskFacts
from mneme.envs.lane_random import NORMAL_BOUND, lane_integers, lane_normal, lane_uniform
from mneme.envs.memory_env import (
    MemoryVectorEnv,
    Observation,
    SingleEnv,
    Transition,
    finite_number,
    whole_number,
)

_DELAY, _DISTRACTORS = 1 << 40, 1 << 41  # counters beyond all steps: 0 draws the cue, the others a step's noise


class DelayedCue(MemoryVectorEnv):
    """The cue is shown at step 0 and asked for at step `horizon`; that answer alone is rewarded.

    Observation, float32 [cues + 1]: the cue one-hot at step 0, zeros later, save for distractors and noise; in
    the last channel, 1 at the query. Action: Discrete(cues). Reward: 1 for naming the cue at the query, else 0.
    The episode terminates with the query; its final observation is all zeros. Cues are uniform, so that no policy
    without memory beats 1 / cues.

    Nothing between cue and query depends on the cue: backpropagation through windows no longer than the delay
    never connects the two, and its gradient of the answer with respect to writing the cue is exactly 0.

    This is the latch problem (Bengio, Simard and Frasconi 1994; Hochreiter and Schmidhuber 1997) in the form
    of reinforcement learning, and a relative of bsuite's memory_len (Osband et al. 2020).

    Args:
        num_envs: lanes.
        cues: number of symbols, at least 2.
        horizon: most steps from cue to query, at least 1.
        shortest_horizon: fewest; each episode draws its own number, all equally likely. None: always `horizon`.
        distractors: probability, at each step between cue and query, that a random symbol is shown as if it were
            the cue.
        noise: standard deviation of Gaussian noise on the cue channels at the steps between cue and query.
    """

    horizon_argument = "horizon"

    def __init__(
        self,
        num_envs: int,
        cues: int = 4,
        horizon: int = 64,
        shortest_horizon: int | None = None,
        distractors: float = 0.0,
        noise: float = 0.0,
    ) -> None:
        self._cues = whole_number("cues", cues, 2)
        self._horizon = whole_number("horizon", horizon, 1)
        self._shortest = horizon if shortest_horizon is None else whole_number("shortest_horizon", shortest_horizon, 1)
        if self._shortest > horizon:
            raise ValueError(f"shortest_horizon is {shortest_horizon}; it must be at most horizon, {horizon}")
        self._distractors = finite_number("distractors", distractors, 0.0)
        if distractors > 1.0:
            raise ValueError(f"distractors is {distractors}; as a probability it must be at most 1")
        self._noise = finite_number("noise", noise, 0.0)
        bound = np.append(np.full(cues, math.ceil(NORMAL_BOUND) * self._noise), 0.0).astype(np.float32)
        shown = np.append(np.full(cues, float(self._distractors > 0)), 1.0).astype(np.float32)
        super().__init__(
            num_envs,
            gym.spaces.Box(-bound, np.maximum(bound + shown, 1.0), dtype=np.float32),
            gym.spaces.Discrete(cues),
            TaskFacts(
                memory_horizon=self._horizon,
                episode_length=self._horizon + 1 if self._shortest == self._horizon else None,
                optimal_return=1.0,
                memoryless_return=1.0 / cues,
                chance_return=1.0 / cues,
                success_return=1.0,
            ),
        )
        self._cue_B = np.zeros(num_envs, dtype=np.int64)
        self._query_step_B = np.full(num_envs, self._horizon)

    def _begin(self, lanes_B: NDArray[np.bool_]) -> None:
        key_B = self._episode_key_B[lanes_B]
        self._cue_B[lanes_B] = lane_integers(key_B, 0, self._cues, 1)[:, 0]
        if self._shortest < self._horizon:
            longer_B = lane_integers(key_B, _DELAY, self._horizon - self._shortest + 1, 1)[:, 0]
            self._query_step_B[lanes_B] = self._shortest + longer_B

    def _transition(self, action_B: np.ndarray) -> Transition:
        query_B = self._step_B == self._query_step_B
        reward_B = (query_B & (action_B == self._cue_B)).astype(np.float64)
        return reward_B, query_B, np.zeros(self.num_envs, dtype=np.bool_)

    def _observe(self) -> Observation:
        step_B = self._step_B
        observation = np.zeros((self.num_envs, self._cues + 1), dtype=np.float32)
        observation[:, -1] = step_B == self._query_step_B
        first_B = step_B == 0
        if np.count_nonzero(first_B):
            observation[first_B, self._cue_B[first_B]] = 1.0
        if self._distractors or self._noise:
            lanes = np.flatnonzero((step_B > 0) & (step_B < self._query_step_B))
            self._disturb(observation, lanes)
        return observation

    def _disturb(self, observation: Observation, lanes: NDArray[np.intp]) -> None:
        """Add what must not be mistaken for the cue to the observations of these lanes."""
        key_B, step_B = self._episode_key_B[lanes], self._step_B[lanes]
        if self._distractors:
            chance_B, symbol_B = lane_uniform(key_B, _DISTRACTORS + step_B, 2).T
            shown_B = chance_B < self._distractors
            observation[lanes[shown_B], (symbol_B[shown_B] * self._cues).astype(np.int64)] = 1.0
        if self._noise:
            observation[lanes, :-1] += self._noise * lane_normal(key_B, step_B, self._cues)


class DelayedCueEnv(SingleEnv):
    """Delayed cue as a single environment; takes the keyword arguments of `DelayedCue`."""

    vector_class = DelayedCue
