"""Which checkpoints of a run are kept, in its folder as in its mirror: the newest, the best, and some for ever."""

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from mneme.rollout_workers import Evaluation


class Best(NamedTuple):
    """The best evaluation of a run so far."""

    step: int
    score: list[float]  # success, then return

    @classmethod
    def of(cls, step: int, evaluation: "Evaluation", before: "Best | None") -> "Best | None":
        """The better of an evaluation after so many steps and the best one before it."""
        return cls._better(step, [evaluation.success_rate or 0.0, evaluation.mean_return], before)

    @classmethod
    def among(cls, rows: Iterable[Mapping[str, float]]) -> "Best | None":
        """The best evaluation among a run's rows of metrics, the first of several that are alike."""
        best: Best | None = None
        for row in rows:
            if "evaluation/return" in row:
                score = [row.get("evaluation/success", 0.0), row["evaluation/return"]]
                best = cls._better(int(row["step"]), score, best)
        return best

    @classmethod
    def _better(cls, step: int, score: list[float], before: "Best | None") -> "Best | None":
        if not math.isfinite(score[1]) or (before is not None and score <= before.score):
            return before
        return cls(step, score)

    @staticmethod
    def fits(recorded: Any) -> bool:
        """True if a run can have recorded this in a checkpoint."""
        if not isinstance(recorded, dict) or recorded.keys() != set(Best._fields):
            return False
        step, score = recorded["step"], recorded["score"]
        plain = isinstance(score, list) and len(score) == 2 and all(type(value) is float for value in score)
        return type(step) is int and step >= 0 and plain and all(map(math.isfinite, score))


def superseded(steps: Iterable[int], keep: int, keep_every: int | None, best: int | None) -> set[int]:
    """Which of these checkpoints are none of those to be kept.

    Args:
        steps: of all checkpoints there are.
        keep: so many of the newest.
        keep_every: the first one at or after each multiple of so many steps.
        best: this one.
    """
    ordered = sorted(steps)
    kept = {best, *ordered[-keep:]}
    if keep_every is not None:
        first = {step // keep_every: step for step in reversed(ordered)}
        kept |= {step for multiple, step in first.items() if multiple}
    return set(ordered) - kept
