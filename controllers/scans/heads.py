"""From a controller's output to log-probabilities and a value, inside compiled kernels, one row at a time.

The norm is that of `controllers.layer_norm`, y = n s(i) gain + shift with n = (x - mean) i. A row's own numbers are in
double precision, whatever the arrays are. Legend: H features, A actions.
"""

from typing import Any, NamedTuple

import numpy as np

from mneme.controllers.layer_norm import EPSILON
from mneme.controllers.scans.machine_code import compiled, copy, dot, sum_of, sums


class Heads(NamedTuple):
    """Parameters, or their gradients."""

    gain: Any  # [H], or empty without a norm
    shift: Any  # [H], likewise
    policy: Any  # [A, H]
    policy_bias: Any  # [A]
    value: Any  # [1, H]
    value_bias: Any  # [1]


@compiled
def normalised(x, heads, n, y):
    """Fill in n and y, [H] each; returns i, s and 1 - m. Without a norm y is x, and n is left alone."""
    if len(heads.gain) == 0:
        copy(y, x)
        return 1.0, 1.0, 0.0
    number, H = x.dtype.type, len(x)
    mean = sum_of(x) / H
    inverse = 1 / np.sqrt(_squares(x, number(mean)) / H + EPSILON)
    rest = EPSILON * inverse * inverse
    scale = np.sqrt(1 - (1 - EPSILON) * (rest * rest))
    _normalise(x, number(mean), number(inverse), n)
    _scale_and_shift(n, number(scale), heads.gain, heads.shift, y)
    return inverse, scale, rest


@compiled
def read(y, heads, log_p, p):
    """Fill in log-probabilities and probabilities, [A] each; returns the value."""
    for a in range(len(log_p)):
        log_p[a] = dot(y, heads.policy[a]) + heads.policy_bias[a]
    most, total = log_p[0], 0.0
    for a in range(1, len(log_p)):
        most = log_p[a] if log_p[a] > most else most
    for a in range(len(log_p)):
        total += np.exp(np.float64(log_p[a] - most))
    shift = most + np.log(total)
    for a in range(len(log_p)):
        logarithm = log_p[a] - shift
        log_p[a], p[a] = logarithm, np.exp(logarithm)
    return np.float64(dot(y, heads.value[0]) + heads.value_bias[0])


@sums
def _squares(x, mean):
    """The sum of the squared deviations of [H] from their mean."""
    total = x.dtype.type(0)
    for i in range(len(x)):
        off = x[i] - mean
        total += off * off
    return total


@compiled
def _normalise(x, mean, inverse, n):
    for i in range(len(x)):
        n[i] = (x[i] - mean) * inverse


@compiled
def _scale_and_shift(n, scale, gain, shift, y):
    for i in range(len(n)):
        y[i] = n[i] * scale * gain[i] + shift[i]
