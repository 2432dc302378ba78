"""From a controller's output to log-probabilities and a value, inside compiled kernels, one row at a time.

`scans.norm_row` has the norm before them. A row's own numbers are in double precision, whatever the arrays are.
Legend: H features, A actions.
"""

from typing import Any, NamedTuple

import numpy as np

from mneme.controllers.scans.machine_code import compiled, dot


class Heads(NamedTuple):
    """Parameters, or their gradients."""

    gain: Any  # [H], or empty without a norm
    shift: Any  # [H], likewise
    policy: Any  # [A, H]
    policy_bias: Any  # [A]
    value: Any  # [1, H]
    value_bias: Any  # [1]


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
