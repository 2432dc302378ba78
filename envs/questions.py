"""The base of tasks that show something, wait, and then ask questions about it."""

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from mneme.envs.facts import TaskFacts
from mneme.envs.memory_env import MemoryVectorEnv, Observation, Transition, one_of, whole_number, within
from mneme.envs.resumable import State


class QuestionsEnv(MemoryVectorEnv):
    """`shown` steps that show, `delay` blank ones, then one step for each of `questions`, at which the action answers.

    The last three features of an observation are flags: showing, waiting, asking. Dense reward: 1 / questions for each
    right answer. Sparse reward: 1 at the end if all are right. A subclass gives `_begin`, `_answer` and `_show`.

    Facts. The best return is 1. The right answer to each question must be uniform over the answers, whatever the
    observation then says: without memory, and by chance, it is found with probability 1 / answers; all together with
    answers ** -questions.

    Args:
        num_envs: lanes.
        features: of an observation, besides the flags.
        answers: how many there are to choose from, at least 2.
        shown: steps that show, at least 1.
        delay: blank steps, at least 0.
        questions: how many, at least 1.
        latest: by how many steps at most something is asked about later than in the order of showing.
        reward: "dense" or "sparse".
    """

    horizon_argument = "delay"

    def __init__(
        self,
        num_envs: int,
        *,
        features: int,
        answers: int,
        shown: int,
        delay: int,
        questions: int,
        latest: int,
        reward: str,
    ) -> None:
        self._shown, self._questions, self._width = shown, questions, features + 3
        self._first_question = shown + whole_number("delay", delay, 0)
        self._dense = one_of("reward", reward, ("dense", "sparse")) == "dense"
        guess = 1.0 / answers if self._dense else float(answers) ** -questions
        super().__init__(
            num_envs,
            gym.spaces.Box(0.0, 1.0, (self._width,), dtype=np.float32),
            gym.spaces.Discrete(answers),
            TaskFacts(
                memory_horizon=self._first_question + latest,
                episode_length=self._first_question + questions,
                optimal_return=1.0,
                memoryless_return=guess,
                chance_return=guess,
                success_return=1.0,
            ),
        )
        self._lane_B = np.arange(num_envs)
        self._right_B = np.zeros(num_envs, dtype=np.int64)  # answers so far

    def _answer(self, question_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """The right answers [B] to these questions, counted from 0."""
        raise NotImplementedError

    def _show(self, observation: Observation, shown_B: NDArray[np.bool_], asked_B: NDArray[np.bool_]) -> None:
        """Write into an observation of zeros [B, features + 3] what is shown, and asked, in these lanes."""
        raise NotImplementedError

    def _begin(self, lanes_B: NDArray[np.bool_]) -> None:
        self._right_B[lanes_B] = 0

    def _memory(self) -> State:
        return {"right": self._right_B}

    def set_state(self, state: State) -> None:
        """See `MemoryVectorEnv.set_state`."""
        super().set_state(state)
        within("right", self._right_B, 0, self._questions)

    def _question(self) -> NDArray[np.int64]:
        """The question of each lane's present step; the nearest one where none is asked."""
        return (self._step_B - self._first_question).clip(0, self._questions - 1)

    def _transition(self, action_B: np.ndarray) -> Transition:
        right_B = (self._step_B >= self._first_question) & (action_B == self._answer(self._question()))
        self._right_B += right_B
        last_B = self._step_B == self._first_question + self._questions - 1
        reward_B = right_B / self._questions if self._dense else 1.0 * (last_B & (self._right_B == self._questions))
        return reward_B, last_B, np.zeros(self.num_envs, dtype=np.bool_)

    def _observe(self) -> Observation:
        shown_B = self._step_B < self._shown
        asked_B = (self._step_B >= self._first_question) & (self._step_B < self._first_question + self._questions)
        observation = np.zeros((self.num_envs, self._width), dtype=np.float32)
        self._show(observation, shown_B, asked_B)
        observation[:, -3] = shown_B
        observation[:, -2] = ~shown_B & (self._step_B < self._first_question)
        observation[:, -1] = asked_B
        return observation
