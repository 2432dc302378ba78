"""From what a service loop reports to the numbers that people look at."""

import math
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np

from mneme.distributed.service import Update
from mneme.episodes import Episodes
from mneme.rollout_workers import Evaluation

Row = dict[str, float]


class Meter:
    """Turns each update into one row of metrics.

    Args:
        workers: rollout workers, whose times run side by side.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._last = perf_counter()
        self.episodes = 0
        self._refused = self._failures = 0

    def skip_pause(self) -> None:
        """Leave the time since the last row out of the next row's speed (evaluation, checkpoints)."""
        self._last = perf_counter()

    def row(self, update: Update, episodes: Sequence[Episodes]) -> Row:
        """The metrics of one update, and of the episodes that are counted with it. What was not measured, such as the
        return when there was none, is NaN."""
        now = perf_counter()
        wall, self._last = now - self._last, now
        report, condition = update.report, update.condition
        stats = [d.stats for d in update.deliveries if d.stats is not None]
        returns, lengths, successes = (
            np.concatenate([np.empty(0), *(getattr(played, name) for played in episodes)])
            for name in ("returns", "lengths", "successes")
        )
        told: dict[str, list[np.ndarray]] = {}
        for name, values in (item for s in stats for item in s.numbers.items()):
            told.setdefault(name, []).append(values)
        spent = dict(report.seconds)
        for key in ("env", "inference", "recording", "broadcast"):
            spent[key] = spent.get(key, 0.0) + sum(s.seconds[key] for s in stats) / self._workers
        spent["transport"] = max(0.0, wall - sum(spent.values()))
        self.episodes += len(returns)
        self._failures += sum(len(s.failures) for s in stats)
        self._refused += len(report.refused) + sum(d.error is not None for d in update.deliveries)
        return {
            "return": _mean(returns),
            "success": _mean(successes),
            "episode_length": _mean(lengths),
            "episodes": float(len(returns)),
            **{f"info/{name}": _mean(np.concatenate(parts)) for name, parts in told.items()},
            **report.metrics,
            "steps_per_second": report.steps / wall,
            "weights_version": float(report.version),
            "environment_failures": float(self._failures),
            "workers": float(condition.workers),
            "worker_restarts": float(condition.restarts),
            "learner_restarts": float(condition.learner_restarts),
            "fragments_refused": float(self._refused),
            "fragments_dropped": float(update.fragments.dropped_stale + update.fragments.dropped_full),
            "replay_bytes": float(update.replay_bytes),
            **{f"steps/{name}": float(count) for name, count in update.steps._asdict().items()},
            **{f"wait/{name}": seconds for name, seconds in condition.waits.items()},
            **{f"seconds/{key}": value for key, value in spent.items()},
        }


def evaluation_row(evaluation: Evaluation, prefix: str) -> Row:
    """The metrics of an evaluation, named with a prefix such as "evaluation/"."""
    row = {
        "return": evaluation.mean_return,
        "episodes": float(evaluation.episodes),
        "distinct_episodes": float(evaluation.distinct),
        "episode_length": float(evaluation.lengths.mean()),
    }
    if evaluation.return_interval is not None:
        row["return_low"], row["return_high"] = evaluation.return_interval
    if not math.isnan(evaluation.normalized_return):
        row["normalized_return"] = evaluation.normalized_return
    if evaluation.success_rate is not None and evaluation.success_interval is not None:
        row["success"] = evaluation.success_rate
        row["success_low"], row["success_high"] = evaluation.success_interval
    return {f"{prefix}{name}": value for name, value in row.items()}


def describe_evaluation(evaluation: Evaluation) -> str:
    """One line: return and success with their 95 % intervals and n, how much of what memory can gain was gained, and
    how many of the episodes differ."""
    interval = evaluation.return_interval
    text = f"return {evaluation.mean_return:.3f} "
    text += "(all equal)" if interval is None else f"[{interval[0]:.3f}, {interval[1]:.3f}]"
    if not math.isnan(evaluation.normalized_return):
        text += f", normalised {evaluation.normalized_return:.2f}"
    if evaluation.success_rate is not None and evaluation.success_interval is not None:
        low, high = evaluation.success_interval
        text += f", success {evaluation.success_rate:.1%} [{low:.1%}, {high:.1%}]"
    return f"{text} over {evaluation.episodes} episodes, {evaluation.distinct} of them distinct"


def json_evaluation(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation as JSON holds it: numbers, pairs for 95 % intervals, and null for what is not known."""
    return {
        "episodes": evaluation.episodes,
        "distinct_episodes": evaluation.distinct,
        "return": evaluation.mean_return,
        "return_interval": evaluation.return_interval,
        "normalized_return": evaluation.normalized_return if math.isfinite(evaluation.normalized_return) else None,
        "success": evaluation.success_rate,
        "success_interval": evaluation.success_interval,
        "mean_length": float(evaluation.lengths.mean()),
    }


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan
