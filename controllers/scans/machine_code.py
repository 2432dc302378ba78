"""Common parts of the scans that numba compiles for CPUs: how they are compiled, and functions for their loops.

A kernel is a plain loop over environments, steps and channels. Its innermost loop runs along contiguous channels and
touches few arrays, so that the compiler turns it into vector instructions: LLVM does so only if it needs to compare at
most eight pairs of arrays to be sure that they do not overlap. Python's lock is released while a kernel runs, so that
the learner's threads do not wait for each other.

Machine code is kept between processes in a folder named for the sources, numba's version and the processor, because
numba does not notice when a helper in another file has changed.
"""

import math
import os
import shutil
import sys
from collections.abc import Callable, Set
from contextlib import suppress
from functools import cache, wraps
from hashlib import sha256
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numba
import numpy as np
import torch
from llvmlite.binding import get_host_cpu_name
from numba import config, njit, types
from numba.core.caching import FunctionCache
from numba.extending import intrinsic, overload
from torch import Tensor

_OTHER_SOURCES = tuple(Path(__file__).parents[1] / name for name in ("layer_norm.py", "actions/distribution.py"))
"""Files with constants that kernels take in."""


@cache
def machine_code_folder() -> str | None:
    """The folder in which machine code is kept, or None if nothing can be written."""
    digest = sha256(f"{numba.__version__} {get_host_cpu_name()}".encode())
    for path in (*sorted(Path(__file__).parent.rglob("*.py")), *_OTHER_SOURCES):
        digest.update(path.read_bytes())
    try:
        root = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(root, "mneme", digest.hexdigest()[:16])
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # the latter from a user without a home
        return None
    return str(folder) if os.access(folder, os.W_OK) else None


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A compiled function that neither creates nor returns arrays, and so does without counting references to them.

    Counting takes two locked instructions for each row, as long as the row's arithmetic.
    """
    return _machine_code(function, _FUSING)


def sums(function: Callable[..., Any]) -> Callable[..., Any]:
    """A compiled function that may add up in any order, and that writes to no array.

    If such a loop also wrote, it would use vector instructions only where its arrays turn out not to overlap; then the
    order of its sums, and their last bits, would depend on where the arrays happen to lie.
    """
    return _machine_code(function, _FUSING | {"reassoc", "nsz"})


_FUSING = frozenset({"contract"})
"""Freedom of the compiler: a multiplication and an addition may be one instruction."""


class _Kept(FunctionCache):
    def save_overload(self, sig: Any, data: Any) -> None:
        """Do nothing if the disk is full: the next process compiles again."""
        with suppress(OSError):
            super().save_overload(sig, data)


def _machine_code(function: Callable[..., Any], freedom: Set[str]) -> Callable[..., Any]:
    """Compile when the function is first called with arguments of new types."""
    folder = machine_code_folder()
    before = config.CACHE_DIR
    config.CACHE_DIR = folder or before  # numba looks at it now
    try:
        machine_code = njit(_nrt=False, nogil=True, fastmath=set(freedom), error_model="numpy")(function)
        if folder is not None:
            machine_code._cache = _Kept(function)
        return machine_code
    finally:
        config.CACHE_DIR = before


def kernel(function: Callable[..., Any]) -> Callable[..., None]:
    """A compiled function to be called from Python, in which subnormal numbers count as 0.

    Like every `compiled` function it creates no arrays; `scratch` makes those that it needs. States that decay pass
    through subnormal numbers, on which processors spend a hundred times as long. Stored machine code that cannot be
    read is compiled again.
    """
    machine_code = compiled(function)

    def run(*arguments: Any) -> None:
        try:
            machine_code(*arguments)
        except (EOFError, UnpicklingError):  # kept by a process that was cut off, or on a disk that was full
            folder = machine_code_folder()
            if folder is None:
                raise
            shutil.rmtree(folder, ignore_errors=True)
            Path(folder).mkdir(parents=True, exist_ok=True)
            machine_code(*arguments)

    @wraps(function)
    def flushed(*arguments: Any) -> None:
        if _SMALLEST / 2 == 0:
            run(*arguments)
            return
        torch.set_flush_denormal(True)  # of this thread
        try:
            run(*arguments)
        finally:
            torch.set_flush_denormal(False)

    return flushed


def scratch(like: Tensor, *shapes: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Arrays of the type of a tensor for a kernel to work in; what they hold is not defined."""
    dtype = like.new_empty(0).numpy().dtype
    return tuple(np.empty(shape, dtype) for shape in shapes)


def arrays(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    """The tensors as numpy arrays without autograd, sharing memory where the tensors are contiguous."""
    return tuple((x.detach() if x.requires_grad else x).contiguous().numpy() for x in tensors)


def in_arrays(tensors: Any) -> Any:
    """A named tuple of tensors as one of arrays."""
    return type(tensors)(*arrays(*tensors))


LOG2_E = math.log2(math.e)
_SMALLEST = sys.float_info.min
_LOWEST, _HIGHEST = np.float32(-126), np.float32(127)
_LOG2_E, _EXPONENT = np.float32(LOG2_E), np.int32(23)  # where the exponent's bits begin
_ROUNDING = np.float32(1.5 * 2**23 + 127)  # the last bits of x + this are the exponent of 2^(x rounded)
_ZERO, _ONE, _TWO = np.float32(0), np.float32(1), np.float32(2)
_S3, _S5, _S7, _S9, _S11, _S13, _S15 = (np.float32(1 / n) for n in range(3, 17, 2))
# (2^f - 1) / f over [-1/2, 1/2] by powers of f; the relative error of 2^f is below 1e-7
_P0, _P1, _P2, _P3, _P4 = map(np.float32, (0.69314698, 0.24022242, 0.05550734, 0.00967152, 0.00132647))


def exp2(x: Any) -> Any:
    """2^x inside compiled functions, to 2 units in the last place in float32; below 2^-126 it is 2^-126."""
    return np.exp2(x)


@overload(exp2, jit_options={"forceinline": True})
def _exp2(x):
    if x == types.float64:
        return lambda x: np.exp2(x)
    if x != types.float32:
        return None

    def single(x):
        x = _LOWEST if x < _LOWEST else x
        x = _HIGHEST if x > _HIGHEST else x
        rounded = np.float32(x + _ROUNDING)
        f = x - (rounded - _ROUNDING)
        power = ((((_P4 * f + _P3) * f + _P2) * f + _P1) * f + _P0) * f + _ONE
        return power * np.int32(rounded.view(np.int32) << _EXPONENT).view(np.float32)

    return single


def sigmoid(x: Any) -> Any:
    """1 / (1 + e^-x) inside compiled functions."""
    return 1 / (1 + np.exp(-x))


@overload(sigmoid, jit_options={"forceinline": True})
def _sigmoid(x):
    if x != types.float32:
        return lambda x: 1 / (1 + np.exp(-x))
    return lambda x: _ONE / (_ONE + exp2(-_LOG2_E * x))


def softplus(x: Any) -> Any:
    """log(1 + e^x) inside compiled functions."""
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


@overload(softplus, jit_options={"forceinline": True})
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


@intrinsic
def fma(typingctx, x, y, z):
    """x y + z inside compiled functions, rounded once.

    A sum of two products is written with it: left to the compiler, either of the two may go without its rounding, and
    which one differs between the process that compiles a function and those that find it compiled.
    """

    def generate(context, builder, signature, arguments):
        return builder.fma(*arguments)

    return x(x, x, x), generate


@sums
def dot(x, y):
    """The sum of the products of two [I]."""
    total = x.dtype.type(0)
    for i in range(len(x)):
        total += x[i] * y[i]
    return total


@sums
def sum_of(x):
    """The sum of [I]."""
    total = x.dtype.type(0)
    for i in range(len(x)):
        total += x[i]
    return total


@compiled
def copy(to, source):
    """Copy an array into another of the same shape; faster to compile and to run than numba's assignment."""
    if to.ndim == 1:
        for i in range(len(to)):
            to[i] = source[i]
    else:
        flat, source_flat = to.reshape(-1), source.reshape(-1)
        for i in range(len(flat)):
            flat[i] = source_flat[i]


@compiled
def add(to, source):
    """Add one array to another, [I] each."""
    for i in range(len(to)):
        to[i] += source[i]


@compiled
def scale(to, factor, source):
    """Fill in a number times an array, [I] each."""
    for i in range(len(to)):
        to[i] = factor * source[i]


@compiled
def times(to, factor):
    """Multiply one array by another, [I] each."""
    for i in range(len(to)):
        to[i] *= factor[i]


@compiled
def add_product(to, x, y):
    """Add the products of two arrays to another, [I] each."""
    for i in range(len(to)):
        to[i] += x[i] * y[i]
