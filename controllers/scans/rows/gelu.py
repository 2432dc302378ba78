"""GELU (Hendrycks & Gimpel 2016) inside compiled kernels: x times the share of a normal distribution that lies below x.

In float32 that share is Abramowitz & Stegun's 7.1.26, as in PyTorch's vector instructions, with an error below 1e-7;
the smaller of the two tails is taken, so that nothing cancels.
"""

import math
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from mneme.controllers.scans.machine_code import LOG2_E, compiled, exp2

_SLOPE, _HALF_LOG2_E = np.float32(0.3275911 * math.sqrt(0.5)), np.float32(0.5 * LOG2_E)
_A1, _A2, _A3, _A4, _A5 = (
    np.float32(0.5 * a) for a in (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
)
_ZERO, _ONE = np.float32(0), np.float32(1)
_ROOT = math.sqrt(0.5)


def gelu(x: Any) -> Any:
    """x (1 + erf(x / sqrt(2))) / 2 inside compiled functions."""
    return 0.5 * x * math.erfc(-_ROOT * x)


@overload(gelu, jit_options={"forceinline": True})
def _gelu(x):
    if x != types.float32:
        return lambda x: 0.5 * x * math.erfc(-_ROOT * x)

    def single(x):
        t = _ONE / (_ONE + _SLOPE * abs(x))
        tail = ((((_A5 * t + _A4) * t + _A3) * t + _A2) * t + _A1) * t * exp2(-_HALF_LOG2_E * (x * x))
        return x * (_ONE - tail if x > _ZERO else tail)

    return single


@compiled
def gelu_each(x):
    """Replace each number of [I] by its GELU."""
    for i in range(len(x)):
        x[i] = gelu(x[i])
