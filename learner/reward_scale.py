"""Rewards on one scale, whatever the task pays: divided by the running standard deviation of the discounted return.

Engstrom et al. 2020, "Implementation matters in deep policy gradients". Only the scale changes, never the sign. It is
that of gymnasium.wrappers.NormalizeReward, but for an episode's last step, where the wrapper forgets what came before.

Legend: B sequences, T steps.
"""

from collections.abc import Callable

import numpy as np
from torch import Tensor

from mneme.learner.batch import SequenceBatch

_EPSILON = 1e-8


class RewardScale:
    """The variance of g_t = gamma g_{t-1} + r_t over all valid steps seen so far, with g = 0 before each episode.

    Args:
        gamma: discount per step.
        packed: whether sequences are episodes packed end to end. None goes on with another one then, and g = 0 before
            each, be it a part of an episode that was too long for one.
    """

    def __init__(self, gamma: float, packed: bool = False) -> None:
        self._gamma, self._packed = gamma, packed
        self._count, self._mean, self._squares = 0, 0.0, 0.0  # squares: sum of squared deviations from the mean
        self._running = np.zeros(0)  # [lanes] g after the last step seen of each lane
        self._expected = np.zeros(0, dtype=np.int64)  # [lanes] step at which that lane goes on

    @property
    def divisor(self) -> float:
        """The number by which rewards are divided; 1 before any was seen."""
        return float(np.sqrt(self._squares / self._count + _EPSILON)) if self._count else 1.0

    def scaled(self, batch: SequenceBatch, gathered: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
        """The batch's rewards [B, T] after its own were taken into account.

        Args:
            batch: perhaps one learner's part of a batch.
            gathered: the rows of the whole batch from those of this part.
        """
        self._absorb(self._returns(batch, gathered))
        return batch.rewards / self.divisor

    def _returns(self, batch: SequenceBatch, gathered: Callable[[Tensor], Tensor]) -> np.ndarray:
        """g at every valid step, float64; a lane whose fragment before is missing starts again from 0."""
        lane, first, rewards, valid, ends = (
            gathered(x).cpu().numpy()
            for x in (batch.lane, batch.first_step, batch.rewards, batch.valid, batch.terminated | batch.truncated)
        )
        goes_on = valid & ~ends
        if self._packed:
            return self._discounted(rewards, goes_on, np.zeros(len(rewards)))[0][valid]
        missing = max(0, int(lane.max()) + 1 - len(self._running))
        self._running = np.append(self._running, np.zeros(missing))
        self._expected = np.append(self._expected, np.zeros(missing, dtype=np.int64))
        g_BT = np.empty(rewards.shape)
        for start in np.unique(first):  # in turn: in asynchronous service a batch may hold two fragments of a lane
            n = first == start
            g_B = np.where(self._expected[lane[n]] == start, self._running[lane[n]], 0.0)
            g_BT[n], self._running[lane[n]] = self._discounted(rewards[n], goes_on[n], g_B)
            self._expected[lane[n]] = start + rewards.shape[1]
        return g_BT[valid]

    def _discounted(self, rewards: np.ndarray, goes_on: np.ndarray, g_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """g at every step, [B, T], and after the last one, [B], from what it is before the first."""
        g_BT = np.empty(rewards.shape)
        for t in range(rewards.shape[1]):
            g_BT[:, t] = self._gamma * g_B + rewards[:, t]
            g_B = np.where(goes_on[:, t], g_BT[:, t], 0.0)
        return g_BT, g_B

    def _absorb(self, values: np.ndarray) -> None:
        """Add to the running moments (Chan, Golub and LeVeque 1979)."""
        count = self._count + len(values)
        shift = values.mean() - self._mean
        self._squares += ((values - values.mean()) ** 2).sum() + shift**2 * self._count * len(values) / count
        self._mean += shift * len(values) / count
        self._count = count

    def state(self) -> dict[str, np.ndarray]:
        """Everything the next scale depends on."""
        moments = np.array([self._count, self._mean, self._squares], dtype=np.float64)
        return {"moments": moments, "running": self._running.copy(), "expected": self._expected.copy()}

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        """Continue where `state()` was taken."""
        count, self._mean, self._squares = (float(x) for x in state["moments"])
        if count < 0 or count % 1 or self._squares < 0:
            raise ValueError(f"the moments of rewards are {state['moments'].tolist()}, which no rewards have")
        if len(state["running"]) != len(state["expected"]):
            raise ValueError("the running returns are of another number of lanes than the steps that they belong to")
        self._count = int(count)
        self._running, self._expected = state["running"].copy(), state["expected"].copy()
