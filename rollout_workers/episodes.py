"""The episodes that end while fragments are collected.

Legend: B environments, E episodes.
"""

from typing import NamedTuple

import numpy as np

_ROUNDING = 1e-6  # what a sum of rewards such as 1 / 7 may fall short of the return it stands for


class EpisodeStats(NamedTuple):
    """The episodes that ended while one fragment was collected, E of them, and where the time went."""

    lanes: np.ndarray  # [E] int64, which lane, counted within the worker
    returns: np.ndarray  # [E] float64
    lengths: np.ndarray  # [E] int64
    successes: np.ndarray  # [E] bool; empty where nothing says what success is
    starts: np.ndarray  # [E] int64, the lane's step at which each began
    oldest: int  # the lane's step at which the oldest of the episodes under way began
    step: int  # steps of each lane so far
    failures: tuple[str, ...]  # one sentence for each episode that an environment's failure cut short; not among the E
    seconds: dict[str, float]  # "env", "inference" and, for the rest, "recording", wall clock
    numbers: dict[str, np.ndarray]  # float64 [E] or fewer a name: what the environment said of those that it counts


class EpisodeCounter:
    """Adds up the return and the length of each lane's present episode.

    Args:
        num_envs: B.
    """

    def __init__(self, num_envs: int) -> None:
        self.step = 0  # of each lane so far
        self.return_B = np.zeros(num_envs)
        self.step_B = np.zeros(num_envs, dtype=np.int64)
        self._ended: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []

    def count(self, reward_B: np.ndarray, done_B: np.ndarray, reset_B: np.ndarray) -> None:
        """One step of all lanes: those of `done_B` end an episode, those of `reset_B`, done or not, start one."""
        self.step += 1
        self.return_B += reward_B
        self.step_B += 1
        if np.count_nonzero(reset_B):
            lanes = np.flatnonzero(done_B)
            length = self.step_B[lanes]
            self._ended.append((lanes, self.return_B[lanes], length, self.step - length))
            self.return_B[reset_B] = 0.0
            self.step_B[reset_B] = 0

    def stats(self, success_return: float | None, failures: tuple[str, ...], seconds: dict[str, float]) -> EpisodeStats:
        """The episodes that ended since this was last asked; they succeed when they reach `success_return`."""
        none = np.empty(0, np.int64)
        columns = zip((none, np.empty(0), none, none), *self._ended, strict=True)
        lanes, returns, lengths, starts = (np.concatenate(column) for column in columns)
        self._ended = []
        successes = np.empty(0, np.bool_) if success_return is None else returns >= success_return - _ROUNDING
        oldest = self.step - int(self.step_B.max())
        return EpisodeStats(lanes, returns, lengths, successes, starts, oldest, self.step, failures, seconds, {})
