"""Copy memory: see a sequence of symbols, wait, then repeat it."""

import numpy as np
from numpy.typing import NDArray

from mneme.envs.lane_random import lane_integers
from mneme.envs.memory_env import Observation, SingleEnv, whole_number
from mneme.envs.questions import QuestionsEnv


class CopyMemory(QuestionsEnv):
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
        whole_number("length", length, 1)
        super().__init__(
            num_envs, features=symbols, answers=symbols, shown=length, delay=delay, questions=length, latest=0,
            reward=reward,
        )  # fmt: skip
        self._symbol_BL = np.zeros((num_envs, length), dtype=np.int64)

    def _begin(self, lanes_B: NDArray[np.bool_]) -> None:
        super()._begin(lanes_B)
        self._symbol_BL[lanes_B] = lane_integers(self._episode_key_B[lanes_B], 0, self._symbols, self._questions)

    def _answer(self, question_B: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._symbol_BL[self._lane_B, question_B]

    def _show(self, observation: Observation, shown_B: NDArray[np.bool_], asked_B: NDArray[np.bool_]) -> None:
        observation[shown_B, self._symbol_BL[shown_B, self._step_B[shown_B]]] = 1.0


class CopyMemoryEnv(SingleEnv):
    """Copy memory as a single environment; takes the keyword arguments of `CopyMemory`."""

    vector_class = CopyMemory
