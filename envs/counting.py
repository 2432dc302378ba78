"""Counting: an environment whose every number says where it belongs, to prove pipelines with."""

import gymnasium as gym
import numpy as np

from mneme.envs.facts import TaskFacts
from mneme.envs.memory_env import MemoryVectorEnv, Observation, SingleEnv, Transition, whole_number

_MOST_EPISODES = 2**24  # float32 counts exactly up to here


class Counting(MemoryVectorEnv):
    """Observes (step, lane, episode) and rewards acting at step t with t, whatever the action.

    Observation, float32 [3]: step in the episode, number of the lane, index of the lane's episode, from 0.
    Action: Discrete(2), ignored. Episodes of lane i have `shortest + i % spread` steps, so lanes fall out of
    step with each other; even ones terminate and odd ones are truncated. Nothing is random and nothing can
    be learned. In a pipeline that is right, each reward equals the step in the observation acted on, a lane's
    number never changes, and a final observation holds the episode's length.

    Args:
        num_envs: lanes.
        shortest: steps in the shortest episodes, at least 1.
        spread: how many different lengths there are, at least 1.
        first_lane: number of the first lane.
    """

    def __init__(self, num_envs: int, shortest: int = 3, spread: int = 5, first_lane: int = 0) -> None:
        whole_number("num_envs", num_envs, 1)
        whole_number("shortest", shortest, 1)
        whole_number("spread", spread, 1)
        self._lane_B = whole_number("first_lane", first_lane, 0) + np.arange(num_envs)
        self._length_B = shortest + self._lane_B % spread
        longest = int(self._length_B.max())
        return_B = self._length_B * (self._length_B - 1) / 2
        mean_return = float(return_B.mean())
        highest = np.array([longest, first_lane + num_envs, _MOST_EPISODES], dtype=np.float32)
        super().__init__(
            num_envs,
            gym.spaces.Box(np.zeros_like(highest), highest, dtype=np.float32),
            gym.spaces.Discrete(2),
            TaskFacts(
                memory_horizon=0,
                episode_length=longest if longest == self._length_B.min() else None,
                optimal_return=mean_return,
                memoryless_return=mean_return,
                chance_return=mean_return,
                success_return=float(return_B.min()),
            ),
        )

    def _transition(self, action_B: np.ndarray) -> Transition:
        last_B = self._step_B + 1 == self._length_B
        odd_B = self._episode_B % 2 == 1
        return self._step_B.astype(np.float64), last_B & ~odd_B, last_B & odd_B

    def _observe(self) -> Observation:
        return np.stack((self._step_B, self._lane_B, self._episode_B), axis=1).astype(np.float32)


class CountingEnv(SingleEnv):
    """Counting as a single environment, one lane; takes the keyword arguments of `Counting`."""

    vector_class = Counting
