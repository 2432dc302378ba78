"""Copy memory: see a sequence of symbols, wait, then repeat it."""

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from envs.facts import TaskFacts
from envs.lane_random import lane_integers
from envs.memory_env import MemoryVectorEnv, Observation, SingleEnv, State, Transition, one_of, whole_number


class CopyMemory(MemoryVectorEnv):
    """`length` symbols are shown, one a step; after `delay` blank steps they are asked for, one a step, in order.

    Observation, float32 [symbols + 3]: the symbol one-hot while the sequence is shown, else zeros; then one flag each
    for showing, waiting and asking. Action: Discrete(symbols), which counts while asked. Dense reward: 1 / length for
    each right symbol. Sparse reward: 1 at the end if all are right. The episode terminates after 2 length + delay
    steps; its final observation is all zeros.

    Facts. The best return is 1. A symbol is asked for length + delay steps after it was seen. All questions look
    alike and symbols are uniform and independent, so a policy without memory is right with probability 1 / symbols at
    each, as chance is: dense 1 / symbols, sparse symbols ** -length.

    The copy task of Hochreiter and Schmidhuber 1997, in the form of Arjovsky, Shah and Bengio, "Unitary evolution
    recurrent neural networks" (ICML 2016). The usual setting is 8 symbols, length 10 or 20, delay 200 or more.

    Args:
        num_envs: lanes.
        symbols: how many different ones there are, at least 2.
        length: symbols in a sequence, at least 1.
        delay: blank steps, at least 0.
        reward: "dense" or "sparse".
    """

    def __init__(self, num_envs: int, symbols: int = 4, length: int = 3, delay: int = 8, reward: str = "dense") -> None:
        self._symbols = whole_number("symbols", symbols, 2)
        self._length = whole_number("length", length, 1)
        self._first_question = length + whole_number("delay", delay, 0)
        self._dense = one_of("reward", reward, ("dense", "sparse")) == "dense"
        guess = 1.0 / symbols if self._dense else float(symbols) ** -length
        super().__init__(
            num_envs,
            gym.spaces.Box(0.0, 1.0, (symbols + 3,), dtype=np.float32),
            gym.spaces.Discrete(symbols),
            TaskFacts(
                memory_horizon=self._first_question,
                episode_length=self._first_question + length,
                optimal_return=1.0,
                memoryless_return=guess,
                chance_return=guess,
                success_return=1.0,
            ),
        )
        self._lane_B = np.arange(num_envs)
        self._symbol_BL = np.zeros((num_envs, length), dtype=np.int64)
        self._right_B = np.zeros(num_envs, dtype=np.int64)  # answers so far

    def _begin(self, lanes_B: NDArray[np.bool_]) -> None:
        self._symbol_BL[lanes_B] = lane_integers(self._episode_key_B[lanes_B], 0, self._symbols, self._length)
        self._right_B[lanes_B] = 0

    def _memory(self) -> State:
        return {"right": self._right_B}

    def _transition(self, action_B: np.ndarray) -> Transition:
        question_B = self._step_B - self._first_question
        asked_B = question_B >= 0
        right_B = asked_B & (action_B == self._symbol_BL[self._lane_B, np.maximum(question_B, 0)])
        self._right_B += right_B
        last_B = question_B == self._length - 1
        reward_B = right_B / self._length if self._dense else 1.0 * (last_B & (self._right_B == self._length))
        return reward_B, last_B, np.zeros(self.num_envs, dtype=np.bool_)

    def _observe(self) -> Observation:
        step_B = self._step_B
        shown_B = step_B < self._length
        asked_B = (step_B >= self._first_question) & (step_B < self._first_question + self._length)
        observation = np.zeros((self.num_envs, self._symbols + 3), dtype=np.float32)
        observation[shown_B, self._symbol_BL[shown_B, step_B[shown_B]]] = 1.0
        observation[:, -3] = shown_B
        observation[:, -2] = ~shown_B & (step_B < self._first_question)
        observation[:, -1] = asked_B
        return observation


class CopyMemoryEnv(SingleEnv):
    """Copy memory as a single environment; takes the keyword arguments of `CopyMemory`."""

    vector_class = CopyMemory
