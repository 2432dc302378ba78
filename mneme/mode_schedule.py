"""The schedule of modes that goes by returns: the next mode of backpropagation once the return has stopped rising."""

import math
from statistics import fmean, variance
from typing import Any

from mneme.learner import LearnerSettings


class ModeSchedule:
    """Watches returns, and says when the next mode begins.

    The mean of the newest `mode_patience` returns since the mode began is held against that of as many before them. It
    has stopped rising where it is no more than the standard error of their difference above.
    """

    def __init__(self, settings: LearnerSettings) -> None:
        self._schedule, self._patience, self._modes = settings.mode_schedule, settings.mode_patience, settings.modes
        self._stage = 0
        self._returns: list[float] = []

    @property
    def mode(self) -> str:
        """The present mode."""
        return self._modes[self._stage]

    def trained(self, value: float) -> bool:
        """Count the mean return of an update's episodes; whether the next mode begins. NaN says nothing."""
        return self._schedule == "plateau" and self._counted(value)

    def evaluated(self, value: float) -> bool:
        """Count an evaluation's mean return; whether the next mode begins."""
        return self._schedule == "evaluation_plateau" and self._counted(value)

    def _counted(self, value: float) -> bool:
        n, last = self._patience, self._stage == len(self._modes) - 1
        if last or not math.isfinite(value):
            return False
        self._returns = [*self._returns, value][-2 * n :]
        if len(self._returns) < 2 * n or self._rises(self._returns[:n], self._returns[n:]):
            return False
        self._stage += 1
        self._returns = []
        return True

    @staticmethod
    def _rises(before: list[float], now: list[float]) -> bool:
        n = len(now)
        error = math.sqrt((variance(before) + variance(now)) / n) if n > 1 else 0.0
        return fmean(now) - fmean(before) > error

    def forget(self) -> None:
        """Begin to watch anew, as from here on returns mean something else."""
        self._returns = []

    def state(self) -> dict[str, Any]:
        """The state that a resumed run needs, as JSON."""
        return {"stage": self._stage, "returns": list(self._returns)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue where `state()` was taken."""
        self._stage, self._returns = state["stage"], list(state["returns"])

    def fits(self, state: Any) -> bool:
        """True if `state()` can have given this."""
        if not isinstance(state, dict) or state.keys() != self.state().keys():
            return False
        stage, returns = state["stage"], state["returns"]
        plain = isinstance(returns, list) and all(type(value) is float and math.isfinite(value) for value in returns)
        return type(stage) is int and 0 <= stage < len(self._modes) and plain and len(returns) <= 2 * self._patience
