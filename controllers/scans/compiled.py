"""What the scans that numba compiles for CPUs share.

They are the plain loops over lanes, time, states and channels that the equations call for. The innermost loop runs
along contiguous channels, so that the compiler makes vectors of it, and what it touches stays in a core's near cache.
The interpreter's lock is released while they run: shards in threads do not wait for each other.

Machine code is kept between processes, in a folder named for the sources, the numba and the processor that it was made
from and for, as numba itself does not see when a helper in another file has changed.
"""

import math
import os
import sys
from collections.abc import Callable
from functools import cache, wraps
from hashlib import sha256
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from llvmlite.binding import get_host_cpu_name
from numba import config, njit, types
from numba.extending import overload
from torch import Tensor

# Sums may be taken in any order, products fused with them. Not "nnan" or "ninf": what is not finite is passed on.
_FAST = {"contract", "reassoc", "nsz", "arcp"}


@cache
def machine_code_folder() -> str | None:
    """Where machine code is kept, or none where nothing can be written."""
    digest = sha256(f"{numba.__version__} {get_host_cpu_name()}".encode())
    for path in sorted(Path(__file__).parent.glob("*compiled*.py")):
        digest.update(path.read_bytes())
    try:
        root = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(root, "mneme", digest.hexdigest()[:16])
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # the latter from a user without a home
        return None
    return str(folder) if os.access(folder, os.W_OK) else None


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as machine code, made when it is first called."""
    folder = machine_code_folder()
    before = config.CACHE_DIR
    config.CACHE_DIR = folder or before  # numba looks at it now
    try:
        return njit(nogil=True, cache=folder is not None, fastmath=_FAST, error_model="numpy")(function)
    finally:
        config.CACHE_DIR = before


def kernel(function: Callable[..., Any]) -> Callable[..., None]:
    """A compiled function to be called from outside, in which numbers too small for the exponent are 0.

    States that fade pass through such numbers, which processors take a hundred times as long for.
    """
    run = compiled(function)

    @wraps(function)
    def flushed(*arguments: Any) -> None:
        before = _SMALLEST / 2 == 0
        torch.set_flush_denormal(True)  # of this thread
        try:
            run(*arguments)
        finally:
            torch.set_flush_denormal(before)

    return flushed


def arrays(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    """The tensors' numbers, shared where they lie in order, outside autograd."""
    return tuple((tensor if tensor.is_contiguous() else tensor.contiguous()).detach().numpy() for tensor in tensors)


_SMALLEST = sys.float_info.min
_LOWEST, _HIGHEST = np.float32(-126), np.float32(127)
LOG2_E = math.log2(math.e)
_HALF, _BIAS, _MANTISSA, _LOG2_E = np.float32(0.5), np.float32(127), np.float32(2**23), np.float32(LOG2_E)
_ZERO, _ONE, _TWO = np.float32(0), np.float32(1), np.float32(2)
_S3, _S5, _S7, _S9, _S11, _S13, _S15 = (np.float32(1 / n) for n in range(3, 17, 2))
# 2^f over [-1/2, 1/2] by powers of f ln 2; what is left out is below 2e-8
_P1, _P2, _P3, _P4, _P5, _P6 = (np.float32(math.log(2) ** n / math.factorial(n)) for n in range(1, 7))


def exp2(x: Any) -> Any:
    """2^x inside compiled functions, to 2 units in the last place in float32; below 2^-126 it is 2^-126."""
    return np.exp2(x)


@overload(exp2)
def _exp2(x):
    if x != types.float32:
        return lambda x: np.exp2(x)

    def single(x):
        x = _LOWEST if x < _LOWEST else x
        x = _HIGHEST if x > _HIGHEST else x
        whole = np.floor(x + _HALF)
        f = x - whole
        power = (((((_P6 * f + _P5) * f + _P4) * f + _P3) * f + _P2) * f + _P1) * f + _ONE
        return power * np.int32((whole + _BIAS) * _MANTISSA).view(np.float32)  # 2^whole by its bits

    return single


def sigmoid(x: Any) -> Any:
    """1 / (1 + e^-x) inside compiled functions."""
    return 1 / (1 + np.exp(-x))


@overload(sigmoid)
def _sigmoid(x):
    if x != types.float32:
        return lambda x: 1 / (1 + np.exp(-x))
    return lambda x: _ONE / (_ONE + exp2(-_LOG2_E * x))


def softplus(x: Any) -> Any:
    """log(1 + e^x) inside compiled functions."""
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


@overload(softplus)
def _softplus(x):
    if x != types.float32:
        return lambda x: max(x, 0.0) + np.log1p(np.exp(-abs(x)))

    def single(x):
        y = exp2(-_LOG2_E * abs(x))
        s = y / (_TWO + y)  # log(1 + y) = 2 artanh(s), and s <= 1/3: what its series leaves out is below 2e-9
        s2 = s * s
        series = ((((((_S15 * s2 + _S13) * s2 + _S11) * s2 + _S9) * s2 + _S7) * s2 + _S5) * s2 + _S3) * s2 + _ONE
        return max(x, _ZERO) + _TWO * s * series

    return single


@compiled
def copy(to, source):
    """What is in one array into another of the same shape: quicker to compile and to run than numba's assignment."""
    flat, source_flat = to.reshape(-1), source.reshape(-1)
    for i in range(len(flat)):
        flat[i] = source_flat[i]


@compiled
def move(total, part):
    """Add one table [N, I] to another of the same shape, and leave zeros: gradients at a reset."""
    for n in range(part.shape[0]):
        for i in range(part.shape[1]):
            total[n, i] += part[n, i]
            part[n, i] = 0
