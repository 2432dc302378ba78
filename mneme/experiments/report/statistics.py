"""Statistics of runs over seeds and tasks, as Agarwal et al. (2021) recommend, "Deep Reinforcement Learning at the Edge
of the Statistical Precipice", by scipy.

Scores of one method come as one array [seeds] a task. Intervals are of 95 %, by the percentile bootstrap over seeds,
stratified by task: each resample draws every task's seeds anew.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

RESAMPLES = 2000
_PROFILE_RESAMPLES = 500  # times as many values
_CUT = 0.25  # of the scores at each end, which the interquartile mean leaves out


class Estimate(NamedTuple):
    """A value and its interval, whose ends are NaN where a single seed says nothing about others."""

    value: float
    low: float
    high: float


def interquartile_mean(scores: Sequence[Array]) -> Estimate:
    """The mean of the middle half of all scores of all tasks; of fewer than four scores the plain mean."""
    return _estimate(_pooled_iqm, scores)


def interquartile_curve(values: Array) -> tuple[Array, Array, Array]:
    """The interquartile mean over seeds at each step, and the ends of its interval.

    Args:
        values: [seeds, steps].
    """
    from scipy.stats import bootstrap, trim_mean

    middle = trim_mean(values, _CUT, axis=0)
    if len(values) < 2:
        return middle, np.full_like(middle, np.nan), np.full_like(middle, np.nan)
    found = bootstrap(
        (values,), lambda x, axis: trim_mean(x, _CUT, axis=axis), n_resamples=_PROFILE_RESAMPLES, axis=0,
        vectorized=True, method="percentile", rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return middle, found.low, found.high


def performance_profile(scores: Sequence[Array], thresholds: Array) -> tuple[Array, Array, Array]:
    """The share of runs that score at least so much, at each threshold, and the ends of its interval."""
    estimates = [_estimate(_share_above(tau), scores, _PROFILE_RESAMPLES) for tau in thresholds]
    value, low, high = np.array(estimates).T
    return value, low, high


def probability_of_improvement(scores: Sequence[Array], others: Sequence[Array]) -> Estimate:
    """The probability that a run of one method scores more than one of another on the same task, ties counted half,
    averaged over tasks (Mann and Whitney's U).

    Args:
        scores, others: of the two methods, on the same tasks.
    """
    from scipy.stats import mannwhitneyu

    count = len(scores)

    def probability(*samples: Array, axis: int = -1) -> Any:
        pairs = zip(samples[:count], samples[count:], strict=True)
        each = [
            mannwhitneyu(one, other, axis=axis, method="asymptotic").statistic / (one.shape[axis] * other.shape[axis])
            for one, other in pairs
        ]
        return np.mean(each, axis=0)

    return _estimate(probability, [*scores, *others])


def _pooled_iqm(*samples: Array, axis: int = -1) -> Any:
    from scipy.stats import trim_mean

    return trim_mean(np.concatenate(samples, axis=axis), _CUT, axis=axis)


def _share_above(threshold: float) -> Callable[..., Any]:
    def share(*samples: Array, axis: int = -1) -> Any:
        return (np.concatenate(samples, axis=axis) >= threshold).mean(axis=axis)

    return share


def _estimate(statistic: Callable[..., Any], samples: Sequence[Array], resamples: int = RESAMPLES) -> Estimate:
    from scipy.stats import bootstrap

    value = float(statistic(*samples))
    if any(len(sample) < 2 for sample in samples):
        return Estimate(value, np.nan, np.nan)
    found = bootstrap(
        tuple(samples), statistic, n_resamples=resamples, vectorized=True, paired=False, method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return Estimate(value, float(found.low), float(found.high))
