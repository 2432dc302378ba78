"""Small environments that tests of several packages share; importing this registers them."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from mneme.envs.counting import CountingEnv


class Everything(gym.Env[dict[str, Any], dict[str, Any]]):
    """Every kind of space at once, nested. It counts: each part says the step, and the reward is the step.

    Episodes last `length` steps and end by turns in termination and truncation. An action outside the action space, or
    one that `masked` forbids, is an error.
    """

    def __init__(self, length: int = 5, masked: bool = False) -> None:
        self.observation_space = spaces.Dict(
            {
                "image": spaces.Box(0, 255, (6, 5, 3), np.uint8),
                "numbers": spaces.Box(-np.inf, np.inf, (2, 2), np.float64),
                "nested": spaces.Tuple(
                    (spaces.Discrete(50, start=2), spaces.MultiDiscrete([3, 4]), spaces.MultiBinary(3))
                ),
            }
        )
        self.action_space = spaces.Dict(
            {
                "choice": spaces.Discrete(4, start=1),
                "force": spaces.Box(np.float32([-2.0, 0.0]), np.float32([2.0, 10.0])),
                "more": spaces.Tuple((spaces.MultiDiscrete([[2, 3], [4, 2]]), spaces.MultiBinary([2, 2]))),
            }
        )
        self._length, self._masked = length, masked
        self._step = 0
        self._episode = -1

    def _observe(self) -> dict[str, Any]:
        step = self._step
        return {
            "image": np.full((6, 5, 3), step, np.uint8),
            "numbers": np.array([[step, self._episode], [0.5, -step]], np.float64),
            "nested": (
                np.int64(2 + step),
                np.array([step % 3, step % 4]),
                np.array([step & 1, step >> 1 & 1, 1], np.int8),
            ),
        }

    def allowed(self) -> np.ndarray:
        """Choice: all but `step % 4`; of the four categories of `more`, only their last."""
        choice = np.arange(4) != self._step % 4
        return np.concatenate([choice, *(np.arange(n) == n - 1 for n in (2, 3, 4, 2))]).astype(np.int8)

    def _info(self) -> dict[str, Any]:
        return {"action_mask": self.allowed(), "left_alone": {"text": "x"}} if self._masked else {}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self._step, self._episode = 0, self._episode + 1
        return self._observe(), self._info()

    def step(self, action: dict[str, Any]) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        if not self.action_space.contains(action):
            raise ValueError(f"{action} lies outside the action space")
        if self._masked:
            assert action["choice"] - 1 != self._step % 4
            assert action["more"][0].tolist() == [[1, 2], [3, 1]]
        reward, self._step = float(self._step), self._step + 1
        over, odd = self._step == self._length, bool(self._episode % 2)
        return self._observe(), reward, over and not odd, over and odd, self._info()


class Counted(CountingEnv):
    """Counting, of one space for all lanes."""

    def __init__(self, lane: int) -> None:
        super().__init__(first_lane=lane)
        self.observation_space = spaces.Box(0, 100, (3,), np.float32)
        self.lane = lane


class Recall(gym.Env[Any, Any]):
    """Two steps: see a bit, then say it. The space of the answer is `kind`: one environment per kind of action."""

    def __init__(self, kind: str = "discrete") -> None:
        self.observation_space = spaces.Discrete(3)
        self.action_space = {
            "discrete": spaces.Discrete(2),
            "multi_discrete": spaces.MultiDiscrete([2, 3]),
            "multi_binary": spaces.MultiBinary(2),
            "box": spaces.Box(-3.0, 3.0, (1,), np.float32),
            "tuple": spaces.Tuple((spaces.Discrete(2), spaces.Box(-1.0, 1.0, (2,), np.float32))),
        }[kind]
        self._bit = self._step = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._bit, self._step = int(self.np_random.integers(2)), 0
        return np.int64(self._bit), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._step += 1
        answer = action[0] if isinstance(action, tuple) else np.ravel(action)[0]
        right = (answer > 0) == bool(self._bit)
        return np.int64(2), float(right and self._step == 2), self._step == 2, False, {}


gym.register("mneme-tests/Everything-v0", Everything)
gym.register("mneme-tests/Recall-v0", Recall)
