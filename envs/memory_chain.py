"""Memory chain: see a few bits, wait, then be asked for one of them (bsuite's memory_len and memory_size)."""

from types import MappingProxyType

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from mneme.envs.facts import TaskFacts
from mneme.envs.lane_random import lane_integers
from mneme.envs.memory_env import MemoryVectorEnv, Observation, SingleEnv, Transition, whole_number

_SWEEP = (*range(1, 11), 12, 14, 17, 20, 25, *range(30, 101, 10))

BSUITE = MappingProxyType(
    {f"memory_len/{i}": {"length": length, "bits": 1} for i, length in enumerate(_SWEEP)}
    | {f"memory_size/{i}": {"length": 2, "bits": bits} for i, bits in enumerate(_SWEEP[:17])}
)
"""Keyword arguments of `MemoryChain` by the ids of bsuite's experiments: lengths to 100, and up to 40 bits."""


class MemoryChain(MemoryVectorEnv):
    """The memory task of bsuite (Osband et al., "Behaviour suite for reinforcement learning", ICLR 2020).

    An episode has length + 1 steps; the clock stands at 0 at the first two of them, and then counts to
    length - 1. While it is 0 the bits are shown, each -1 or 1; while it is length - 1, the number of the bit that
    is asked for. The last action alone is rewarded: 1 for naming that bit, else -1. Then the episode terminates.

    Observation, float32 [bits + 2]: 1 - clock / length; the number of the bit that is asked for, from 0, else 0;
    the bits, else zeros. Action: Discrete(2): 0 names -1, 1 names 1.

    Facts. The best return is 1, and chance is 0. The bits are last seen length - 1 steps before the answer. At
    length 1 they are still there to see; otherwise a policy without memory gets 0, whatever it does, as what it sees
    at the answer does not depend on the bit.

    Args:
        num_envs: lanes.
        length: bsuite's memory length, at least 1.
        bits: number of bits, at least 1.
    """

    horizon_argument = "length"

    def __init__(self, num_envs: int, length: int = 10, bits: int = 1) -> None:
        self._length = whole_number("length", length, 1)
        self._bits = whole_number("bits", bits, 1)
        bound = np.array([1, max(bits - 1, 1)] + [1] * bits, dtype=np.float32)
        super().__init__(
            num_envs,
            gym.spaces.Box(np.where(np.arange(bits + 2) < 2, np.float32(0), -bound), bound, dtype=np.float32),
            gym.spaces.Discrete(2),
            TaskFacts(
                memory_horizon=length - 1,
                episode_length=length + 1,
                optimal_return=1.0,
                memoryless_return=1.0 if length == 1 else 0.0,
                chance_return=0.0,
                success_return=1.0,
            ),
        )
        self._lane_B = np.arange(num_envs)
        self._bit_BN = np.zeros((num_envs, bits), dtype=np.int8)
        self._query_B = np.zeros(num_envs, dtype=np.int64)

    def _begin(self, lanes_B: NDArray[np.bool_]) -> None:
        key_B = self._episode_key_B[lanes_B]
        self._bit_BN[lanes_B] = lane_integers(key_B, 0, 2, self._bits)
        self._query_B[lanes_B] = lane_integers(key_B, 1, self._bits, 1)[:, 0]

    def _transition(self, action_B: np.ndarray) -> Transition:
        last_B = self._step_B == self._length
        right_B = action_B == self._bit_BN[self._lane_B, self._query_B]
        reward_B = 1.0 * (last_B & right_B) - (last_B & ~right_B)
        return reward_B, last_B, np.zeros(self.num_envs, dtype=np.bool_)

    def _observe(self) -> Observation:
        clock_B = np.maximum(self._step_B - 1, 0)
        observation = np.zeros((self.num_envs, self._bits + 2), dtype=np.float32)
        observation[:, 0] = 1.0 - clock_B / self._length
        observation[:, 1] = np.where(clock_B == self._length - 1, self._query_B, 0)
        shown_B = clock_B == 0
        observation[shown_B, 2:] = 2 * self._bit_BN[shown_B] - 1
        return observation


class MemoryChainEnv(SingleEnv):
    """Memory chain as a single environment; takes the keyword arguments of `MemoryChain`."""

    vector_class = MemoryChain
