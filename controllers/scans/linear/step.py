"""One step of many lanes through a residual block with a linear recurrence, compiled by numba for acting.

A kernel has the whole block, and lanes go through it some at a time. `scans.linear.numba` has the scans.

Axis letters: B lanes, D input features, H hidden, N states, 2N their real parts, then imaginary ones.
"""

from typing import Any, NamedTuple

from torch import Tensor, nn

from mneme.controllers.layer_norm import LayerNorm
from mneme.controllers.scans.layer_step import LANES, LayerStep
from mneme.controllers.scans.linear.numba import gated_step, imaginary_part, real_part
from mneme.controllers.scans.machine_code import add, add_product, arrays, compiled, copy, kernel, scratch
from mneme.controllers.scans.norm_row import normalised
from mneme.controllers.scans.products import multiply, padded, panels
from mneme.controllers.scans.rows.block import Block, enter, halves, leave


class _Gated(NamedTuple):
    block: Block
    gates: Any  # panels of [H, 2H], of 1 - z, then n
    bias: Any  # [2H], each gate as wide as its panels
    initial: Any  # [H]
    gain: Any  # [H] of the norm of the state
    shift: Any  # [H] likewise


class _Constant(NamedTuple):
    block: Block
    drive: Any  # panels of [H, 2N]
    factor: Any  # [2, N]
    read: Any  # panels of [2N, H]
    skip: Any  # [H]
    initial: Any  # [N, 2]


def gated_block_step(block: Block, gates: nn.Linear, norm: LayerNorm, initial_H: Tensor) -> LayerStep:
    """The step of a block whose mixer is the norm of h' = n + k (h - n), with k = sigmoid(s) and s, n = gates(u).

    It carries `h` [B, H].
    """
    weights = _Gated(block, *halves(gates), *arrays(initial_H, norm.weight, norm.bias))
    H = len(initial_H)
    width = padded(H, weights.gain.dtype)
    room = scratch(initial_H, (LANES, width), (LANES, H), (LANES, 2 * width), (H,))
    return LayerStep(_gated, weights, ("h",), initial_H, H, room)


def constant_block_step(
    block: Block, drive_2NH: Tensor, a_2N: Tensor, read_H2N: Tensor, skip_H: Tensor, initial_N2: Tensor
) -> LayerStep:
    """The step of a block whose mixer is read h' + skip u, with h' = a h + drive u in complex numbers.

    It carries `h` [B, N, 2], real and imaginary parts.
    """
    drive, factor, read, skip, initial = arrays(drive_2NH, a_2N, read_H2N, skip_H, initial_N2)
    weights = _Constant(block, panels(drive.T, (0, 1)), factor, panels(read.T), skip, initial)
    H, N = len(skip), len(initial)
    width, driven = padded(H, skip.dtype), padded(N, skip.dtype)
    shared = (LANES, width), (LANES, H), (LANES, 2 * max(width, driven))
    room = scratch(initial_N2, *shared, (LANES, 2 * N), (2 * N,), (H,))
    return LayerStep(_constant, weights, ("h",), initial_N2, H, room)


@kernel
def _gated(x, reset, w, h, y, room):
    for start in range(0, len(x), LANES):
        stop = min(start + LANES, len(x))
        _gated_lanes(x[start:stop], reset[start:stop], w, h[start:stop], y[start:stop], room)


@compiled
def _gated_lanes(x, reset, w, h, y, room):
    (B, H), (stream, u, wide, before) = h.shape, room
    half = len(w.bias) // 2
    enter(x, w.block.entrance, stream, before, u)
    multiply(u[:B], 0, H, w.gates, 0, len(w.gates), wide, 0, False)
    for b in range(B):
        add(wide[b], w.bias)
        copy(before, w.initial if reset[b] else h[b])
        gated_step(wide[b, :H], wide[b, half : half + H], before, h[b])
        normalised(h[b], w.gain, w.shift, before, u[b])
    leave(stream, u[:B], w.block, wide, y)


@kernel
def _constant(x, reset, w, h, y, room):
    for start in range(0, len(x), LANES):
        stop = min(start + LANES, len(x))
        _constant_lanes(x[start:stop], reset[start:stop], w, h[start:stop], y[start:stop], room)


@compiled
def _constant_lanes(x, reset, w, h, y, room):
    (B, N, _), H, (a, a_i) = h.shape, len(w.skip), (w.factor[0], w.factor[1])
    stream, u, wide, states, before, n = room
    half = len(w.drive) // 2 * w.drive.shape[2]
    enter(x, w.block.entrance, stream, n, u)
    multiply(u[:B], 0, H, w.drive, 0, len(w.drive), wide, 0, False)
    for b in range(B):
        _apart(w.initial if reset[b] else h[b], before)
        real, imag, after = before[:N], before[N:], states[b]
        real_part(a, a_i, real, imag, wide[b, :N], after[:N])
        imaginary_part(a, a_i, real, imag, wide[b, half : half + N], after[N:])
        _together(after, h[b])
    multiply(states[:B], 0, 2 * N, w.read, 0, len(w.read), wide, 0, False)
    for b in range(B):
        add_product(wide[b, :H], w.skip, u[b])
        copy(u[b], wide[b, :H])
    leave(stream, u[:B], w.block, wide, y)


@compiled
def _apart(pairs, to):
    """[N, 2] to [2N]."""
    N = len(pairs)
    for i in range(N):
        to[i], to[N + i] = pairs[i, 0], pairs[i, 1]


@compiled
def _together(parts, to):
    """[2N] to [N, 2]."""
    N = len(to)
    for i in range(N):
        to[i, 0], to[i, 1] = parts[i], parts[N + i]
