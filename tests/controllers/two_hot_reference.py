"""Bins and the two-hot encoding, as they were published, on Python's floats."""

import math
from collections.abc import Sequence


def symexp(x: float) -> float:
    return math.copysign(math.exp(abs(x)) - 1, x)


def plain_bins(count: int) -> list[float]:
    """Evenly spaced from -20 to 20, under symexp."""
    return [symexp(-20 + 40 * i / (count - 1)) for i in range(count)]


def plain_two_hot(target: float, bins: Sequence[float]) -> list[float]:
    """The published encoding, bin by bin."""
    target = min(max(target, bins[0]), bins[-1])
    encoding = [0.0] * len(bins)
    k = max(sum(b < target for b in bins) - 1, 0)
    encoding[k] = (bins[k + 1] - target) / (bins[k + 1] - bins[k])
    encoding[k + 1] = (target - bins[k]) / (bins[k + 1] - bins[k])
    return encoding
