"""Environments that draw from the generators that a whole process shares. Imports no torch, for subprocesses' sake."""

import random
import sys
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space


def drawn() -> list[float]:
    """A number from each generator; from torch's, one where torch has been imported."""
    torch = sys.modules.get("torch")
    return [np.random.random(), random.random(), 1.0 if torch is None else float(torch.rand(()))]  # noqa: NPY002


class Drawing(gym.Env[np.ndarray, np.int64]):
    """Observes numbers from every generator that it does not have to itself, and one drawn when it was made."""

    observation_space = spaces.Box(0, 1, (5,), np.float64)
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self.made = random.random()

    def observe(self) -> np.ndarray:
        return np.array([*drawn(), self.made, self.observation_space.sample()[0]])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return self.observe(), {}

    def step(self, action: np.int64) -> Any:
        return self.observe(), 0.0, False, False, {}


class DrawingVector(gym.vector.VectorEnv[Any, Any, Any]):
    """The same as a vector form of its own."""

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = Drawing.observation_space, Drawing.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.made = random.random()

    def observe(self) -> np.ndarray:
        return np.array([[*drawn(), self.made, 0.0] for _ in range(self.num_envs)])

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> Any:
        return self.observe(), {}

    def step(self, actions: Any) -> Any:
        none = np.zeros(self.num_envs, np.bool_)
        return self.observe(), np.zeros(self.num_envs), none, none, {}
