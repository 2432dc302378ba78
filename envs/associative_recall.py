"""Associative recall: see pairs of key and value, wait, then give the value for each key."""

import numpy as np
from numpy.typing import NDArray

from mneme.envs.lane_random import lane_integers, lane_uniform
from mneme.envs.memory_env import Observation, SingleEnv, whole_number
from mneme.envs.questions import QuestionsEnv


class AssociativeRecall(QuestionsEnv):
    """`pairs` of key and value are shown, one a step; after `delay` blank steps each key asks for its value.

    Keys of an episode are all different, and are asked for once each, in a random order of their own. Values are
    drawn with repetition. Every episode pairs anew.

    Observation, float32 [keys + values + 3]: the key one-hot while shown or asked for, the value one-hot while shown;
    then one flag each for showing, waiting and asking. Action: Discrete(values), which counts while asked. Dense
    reward: 1 / pairs for each right value. Sparse reward: 1 at the end if all are right. The episode terminates after
    2 pairs + delay steps; its final observation is all zeros.

    Facts. The best return is 1. The first pair may be asked for last, 2 pairs + delay - 1 steps later. Values are
    uniform and independent of keys, so a policy without memory is right with probability 1 / values at each question,
    as chance is: dense 1 / values, sparse values ** -pairs.

    The associative recall of Graves, Wayne and Danihelka, "Neural Turing machines" (2014), with keys and values as in
    Ba et al., "Using fast weights to attend to the recent past" (NeurIPS 2016) and, for several queries, Arora et
    al., "Zoology" (ICLR 2024).

    Args:
        num_envs: lanes.
        keys: how many different ones there are, at least `pairs`.
        values: how many different ones there are, at least 2.
        pairs: pairs in an episode, at least 1.
        delay: blank steps, at least 0.
        reward: "dense" or "sparse".
    """

    def __init__(
        self, num_envs: int, keys: int = 4, values: int = 4, pairs: int = 2, delay: int = 4, reward: str = "dense"
    ) -> None:
        whole_number("pairs", pairs, 1)
        self._keys = whole_number("keys", keys, 1)
        if keys < pairs:
            raise ValueError(f"keys is {keys}; it must be at least pairs, {pairs}, so that no key stands twice")
        self._values = whole_number("values", values, 2)
        super().__init__(
            num_envs, features=keys + values, answers=values, shown=pairs, delay=delay, questions=pairs,
            latest=pairs - 1, reward=reward,
        )  # fmt: skip
        self._key_BP, self._value_BP, self._order_BP = np.zeros((3, num_envs, pairs), dtype=np.int64)

    def _begin(self, lanes_B: NDArray[np.bool_]) -> None:
        super()._begin(lanes_B)
        key_B, pairs = self._episode_key_B[lanes_B], self._questions
        self._key_BP[lanes_B] = lane_uniform(key_B, 0, self._keys).argsort(axis=1)[:, :pairs]
        self._value_BP[lanes_B] = lane_integers(key_B, 1, self._values, pairs)
        self._order_BP[lanes_B] = lane_uniform(key_B, 2, pairs).argsort(axis=1)

    def _answer(self, question_B: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._value_BP[self._lane_B, self._order_BP[self._lane_B, question_B]]

    def _show(self, observation: Observation, shown_B: NDArray[np.bool_], asked_B: NDArray[np.bool_]) -> None:
        asked_pair_B = self._order_BP[self._lane_B, self._question()]
        pair_B = np.where(shown_B, self._step_B.clip(max=self._questions - 1), asked_pair_B)
        keyed_B = shown_B | asked_B
        observation[keyed_B, self._key_BP[keyed_B, pair_B[keyed_B]]] = 1.0
        observation[shown_B, self._keys + self._value_BP[shown_B, pair_B[shown_B]]] = 1.0


class AssociativeRecallEnv(SingleEnv):
    """Associative recall as a single environment; takes the keyword arguments of `AssociativeRecall`."""

    vector_class = AssociativeRecall
