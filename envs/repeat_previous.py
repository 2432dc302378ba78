"""Repeat previous: a deck is dealt card by card; name the suit that was dealt k - 1 steps ago."""

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from mneme.envs.facts import TaskFacts
from mneme.envs.lane_random import lane_uniform
from mneme.envs.memory_env import MemoryVectorEnv, Observation, SingleEnv, Transition, whole_number

_RANKS = 13  # cards of each suit in one deck


class RepeatPrevious(MemoryVectorEnv):
    """POPGym's RepeatPrevious (Morad et al., "POPGym: benchmarking partially observable RL", ICLR 2023).

    The N = 13 * suits * decks cards are shuffled, and step t shows the suit of card t. From step k - 1 on, every
    action names a suit: +1 / (N - k) if it is that of the k-th last card shown, counting the present one as the
    first, else -1 / (N - k). Earlier actions count nothing. The episode terminates after N - 1 steps; its final
    observation shows the last card.

    Observation, float32 [suits]: the suit one-hot. Action: Discrete(suits). POPGym's levels are Easy: k = 4,
    1 deck; Medium: k = 32, 2 decks; Hard: k = 64, 3 decks; all with 4 suits.

    Facts. The best return is 1, chance is 2 / suits - 1. Actions change no card, so a policy that sees the
    present card alone can do no better than to name, at every step, the suit most likely k - 1 cards earlier. As
    cards are not put back, that is any suit but the present one, with probability R / (N - 1), where R = N / suits
    cards have it; the return is 2 R / (N - 1) - 1. With k = 1 the present suit is asked for, and nothing is lost.

    Args:
        num_envs: lanes.
        k: how far back the card is, at least 1, where 1 is the present card.
        decks: number of decks, at least 1; they must have more than k cards.
        suits: suits in a deck, at least 2.
    """

    horizon_argument = "k"

    def __init__(self, num_envs: int, k: int = 4, decks: int = 1, suits: int = 4) -> None:
        self._k = whole_number("k", k, 1)
        self._suits = whole_number("suits", suits, 2)
        self._cards = _RANKS * suits * whole_number("decks", decks, 1)
        if k >= self._cards:
            raise ValueError(f"k is {k}; it must be below {self._cards}, the number of cards, or decks must grow")
        super().__init__(
            num_envs,
            gym.spaces.Box(0.0, 1.0, (suits,), dtype=np.float32),
            gym.spaces.Discrete(suits),
            TaskFacts(
                memory_horizon=k - 1,
                episode_length=self._cards - 1,
                optimal_return=1.0,
                memoryless_return=1.0 if k == 1 else 2 * (self._cards // suits) / (self._cards - 1) - 1.0,
                chance_return=2.0 / suits - 1.0,
                success_return=1.0,
            ),
        )
        self._lane_B = np.arange(num_envs)
        self._suit_BN = np.zeros((num_envs, self._cards), dtype=np.min_scalar_type(suits))

    def _begin(self, lanes_B: NDArray[np.bool_]) -> None:
        order_BN = lane_uniform(self._episode_key_B[lanes_B], 0, self._cards).argsort(axis=1)
        self._suit_BN[lanes_B] = order_BN % self._suits

    def _transition(self, action_B: np.ndarray) -> Transition:
        past_B = self._step_B + 1 - self._k  # where negative, no card is asked for
        asked_B = past_B >= 0
        right_B = action_B == self._suit_BN[self._lane_B, past_B]
        reward_B = (1.0 * (asked_B & right_B) - (asked_B & ~right_B)) / (self._cards - self._k)
        return reward_B, self._step_B + 2 == self._cards, np.zeros(self.num_envs, dtype=np.bool_)

    def _observe(self) -> Observation:
        observation = np.zeros((self.num_envs, self._suits), dtype=np.float32)
        observation[self._lane_B, self._suit_BN[self._lane_B, self._step_B]] = 1.0
        return observation


class RepeatPreviousEnv(SingleEnv):
    """Repeat previous as a single environment; takes the keyword arguments of `RepeatPrevious`."""

    vector_class = RepeatPrevious
