"""Count the flashes: a lamp flashes or stays dark at each step; then say how often it flashed."""

import math

import gymnasium as gym
import numpy as np

from mneme.envs import MemoryVectorEnv, SingleEnv, TaskFacts
from mneme.envs.lane_random import lane_integers
from mneme.envs.memory_env import Observation, Transition, whole_number


class CountFlashes(MemoryVectorEnv):
    """Observation, float32 [2]: 1 while the lamp flashes, which it does with probability 1/2; 1 when asked.

    Action: Discrete(steps + 1), which counts when asked, at step `steps`; the right number is rewarded with 1, and the
    episode terminates. Without memory the best answer is the most likely number, steps // 2.
    """

    def __init__(self, num_envs: int, steps: int = 8) -> None:
        self._steps = whole_number("steps", steps, 1)
        super().__init__(
            num_envs,
            gym.spaces.Box(0.0, 1.0, (2,), dtype=np.float32),
            gym.spaces.Discrete(steps + 1),
            TaskFacts(
                memory_horizon=steps,
                episode_length=steps + 1,
                optimal_return=1.0,
                memoryless_return=math.comb(steps, steps // 2) / 2**steps,
                chance_return=1.0 / (steps + 1),
                success_return=1.0,
            ),
        )
        self._flash_BT = np.zeros((num_envs, steps + 2), dtype=np.int64)  # dark when asked, and at the end

    def _begin(self, lanes_B: np.ndarray) -> None:
        self._flash_BT[lanes_B, : self._steps] = lane_integers(self._episode_key_B[lanes_B], 0, 2, self._steps)

    def _transition(self, action_B: np.ndarray) -> Transition:
        asked_B = self._step_B == self._steps
        right_B = action_B == self._flash_BT.sum(axis=1)
        return 1.0 * (asked_B & right_B), asked_B, np.zeros(self.num_envs, dtype=np.bool_)

    def _observe(self) -> Observation:
        flash_B = self._flash_BT[np.arange(self.num_envs), self._step_B]
        return np.stack((flash_B, self._step_B == self._steps), axis=1).astype(np.float32)


class CountFlashesEnv(SingleEnv):
    """The same as a single environment."""

    vector_class = CountFlashes


_HERE = f"{__name__}:CountFlashes"
gym.register("mneme-examples/CountFlashes-v0", entry_point=f"{_HERE}Env", vector_entry_point=_HERE)
