"""What is between Mamba-2's two projections, on a CPU, compiled as one: convolution, recurrence and gated norm.

The equations are those of `scans.convolution`, `ssd` and `gated_norm`. One decay a head makes the scan a
matrix product on a GPU. On a CPU the plain recurrence takes less: a chunk of L steps costs L times as much a step as
it has states. What lies between two of the three parts never leaves a core's cache, and the backward pass makes it
again from the states before each block of STEPS steps.

Axis letters: T time, B lanes, F = I + C + H projected features (z; x, B and C; dt), C convolved channels, I inner
features, N state size, H heads of size P, W steps of a window, oldest first, Q blocks of STEPS steps, X, Y states in
tiles; K taps of a weight, and in the kernels the steps of a block.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mneme.controllers.scans.compiled import (
    arrays,
    compiled,
    copy,
    dot,
    exp2,
    kernel,
    lasts,
    sigmoid,
    softplus,
    sums,
    transposed,
)
from mneme.controllers.scans.compiled_convolution import LANES, convolve_block, last_windows, since_reset, unconvolve
from mneme.controllers.scans.compiled_states import STEPS, blocks_of_states, recur, recur_back
from mneme.controllers.scans.selective import LOG2_E
from mneme.controllers.scans.tiles import tile_shape


class Mamba2Parameters(NamedTuple):
    """Of a layer, laid out as in `mamba_ssm.Mamba2`, and what its lanes start from."""

    initial_NI: Tensor
    initial_WC: Tensor
    weight_CK: Tensor
    bias_C: Tensor
    dt_bias_H: Tensor
    a_log_H: Tensor
    skip_H: Tensor
    norm_I: Tensor


def compiled_mamba2(
    zxbcdt_TBF: Tensor,
    reset_TB: Tensor,
    h_BNI: Tensor,
    window_BWC: Tensor,
    p: Mamba2Parameters,
    eps: float,
    in_place: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """All steps: what the second projection takes, [T, B, I], the last state, and the last window.

    Where `reset_TB` is true the lane takes the initial state and window before that step. Differentiable, once, in
    every tensor but the flags. With `in_place` and without autograd the last state and window take the place of the
    given ones, where both of these lie in order.
    """
    if torch.is_grad_enabled():
        out_TBI, last_BNI, last_BWC = _Mamba2.apply(reset_TB, eps, zxbcdt_TBF, h_BNI, window_BWC, *p)
        return out_TBI, last_BNI, last_BWC
    return _run(reset_TB, eps, (zxbcdt_TBF, h_BNI, window_BWC, *p), keep=False, in_place=in_place)[:3]  # type: ignore[return-value]


def _run(
    reset_TB: Tensor, eps: float, inputs: tuple[Tensor, ...], keep: bool, in_place: bool = False
) -> tuple[Tensor, ...]:
    """Outputs, last state, last window; unless not `keep` what was read, and the states before each block."""
    (T, B), h_BNI, window_BWC = reset_TB.shape, inputs[1], inputs[2]
    out_TBI = h_BNI.new_empty(T, B, h_BNI.shape[2])
    last_BNI, last_BWC = lasts(h_BNI, window_BWC, in_place=in_place)
    kept_TBI = h_BNI.new_empty(T if keep else 0, B, h_BNI.shape[2])
    tiles = tile_shape(inputs[3])
    before_QBXY = blocks_of_states(h_BNI, T if keep else 0, tiles)
    results = out_TBI, last_BNI, last_BWC, kept_TBI, before_QBXY
    _forward(*arrays(reset_TB, *inputs), eps, tiles, *arrays(*results))
    return results


class _Mamba2(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, reset_TB: Tensor, eps: float, *inputs: Tensor) -> tuple[Tensor, ...]:
        *results, y_TBI, before_QBXY = _run(reset_TB, eps, inputs, keep=True)
        ctx.eps = eps
        ctx.save_for_backward(reset_TB, y_TBI, before_QBXY, *inputs)
        return tuple(results)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *dresults: Tensor) -> tuple[Tensor | None, ...]:
        reset_TB, y_TBI, before_QBXY, *inputs = ctx.saved_tensors
        slopes = [value.new_empty(value.shape) for value in inputs[:2]]
        slopes += [value.new_zeros(value.shape) for value in inputs[2:]]
        tiles = tile_shape(inputs[3])
        zxbcdt_TBF, _, *rest = inputs
        given, results = arrays(reset_TB, zxbcdt_TBF, *rest), arrays(y_TBI, before_QBXY, *dresults, *slopes)
        _backward(*given, ctx.eps, tiles, *results)
        return None, None, *slopes


@compiled
def _features(pre, zxbcdt, start, steps, b, dt_bias, rate, x, x_KHP, wr, step, factor, decay_KHP, written_KHP):
    """A block's steps of lane b, from what was convolved, pre [K, C], of which the gates are left there.

    Fills x [K, I], which is x_KHP too, what is written with and read with, wr [K, 2 N], the lengths, step [K, H], and
    how states decay and what is written.
    """
    (_, H, P), (_, I), C = x_KHP.shape, x.shape, pre.shape[1]
    for k in range(steps):
        pre_k, raw = pre[k], zxbcdt[start + k, b, I + C :]
        for i in range(I):
            gate = sigmoid(pre_k[i])
            x[k, i] = pre_k[i] * gate
            pre_k[i] = gate
        pre_wr = pre_k[I:]
        for n in range(len(pre_wr)):
            gate = sigmoid(pre_wr[n])
            wr[k, n] = pre_wr[n] * gate
            pre_wr[n] = gate
        for head in range(H):
            step[k, head] = softplus(raw[head] + dt_bias[head])
            factor[head] = exp2(rate[head] * step[k, head])
        for head in range(H):
            for p in range(P):
                decay_KHP[k, head, p] = factor[head]
                written_KHP[k, head, p] = step[k, head] * x_KHP[k, head, p]


@compiled
def _damped_scale(square, eps):
    """What g of this mean square is multiplied by, and -2 times the slope of that by the mean square."""
    variance = square + eps
    m = square / variance
    damping = 1 - (1 - eps) * (1 - m) ** 2
    scale = math.sqrt(damping / variance)
    return scale, scale / variance * (1 - 2 * (1 - eps) * (1 - m) ** 2 / damping)


@compiled
def _gated_norm(y, zxbcdt, start, steps, b, norm, eps, kept, out):
    """A block's outputs of lane b; y is used up."""
    I, dtype = len(norm), y.dtype
    for k in range(steps):
        y_k, z, out_t = y[k], zxbcdt[start + k, b], out[start + k, b]
        if len(kept) > 0:
            copy(kept[start + k, b], y_k)
        for i in range(I):
            y_k[i] *= z[i] * sigmoid(z[i])
        scale = dtype.type(_damped_scale(dot(y_k, y_k) / I, eps)[0])
        for i in range(I):
            out_t[i] = y_k[i] * scale * norm[i]


@kernel
def _forward(
    reset, zxbcdt, h0, window, initial, initial_window, weight, bias, dt_bias, a_log, skip, norm, eps, tiles,
    out, h, last_window, kept, before,
):  # fmt: skip
    T, B, _ = zxbcdt.shape
    (N, I), C, H, dtype = initial.shape, len(bias), len(a_log), zxbcdt.dtype
    pre, x, wr = np.empty((LANES, STEPS, C), dtype), np.empty((STEPS, I), dtype), np.empty((STEPS, 2 * N), dtype)
    y, decay, written = np.empty((STEPS, I), dtype), np.empty((STEPS, I), dtype), np.empty((STEPS, I), dtype)
    step, factor, heads = np.empty((STEPS, H), dtype), np.empty(H, dtype), (STEPS, H, I // H)
    x_KHP, decay_KHP, written_KHP = x.reshape(heads), decay.reshape(heads), written.reshape(heads)
    taps, skips, rate = transposed(weight), np.repeat(skip, I // H), -np.exp(a_log) * dtype.type(LOG2_E)
    since = since_reset(reset, len(initial_window))
    for group in range(0, B, LANES):
        lanes = min(LANES, B - group)
        for start in range(0, T, STEPS):
            steps = min(STEPS, T - start)
            convolve_block(zxbcdt, I, window, initial_window, taps, bias, start, steps, group, lanes, since, pre)
            for lane in range(lanes):
                b = group + lane
                _features(
                    pre[lane], zxbcdt, start, steps, b, dt_bias, rate, x, x_KHP, wr, step, factor, decay_KHP,
                    written_KHP,
                )  # fmt: skip
                for k in range(steps):
                    for i in range(I):
                        y[k, i] = skips[i] * x[k, i]
                entered = h[b] if start > 0 else h0[b]
                keep = before[start // STEPS, b] if len(before) > 0 else initial[:0]
                recur(initial, reset[start:, b], steps, None, decay, written, wr, entered, y, keep, h[b], tiles)
                _gated_norm(y, zxbcdt, start, steps, b, norm, eps, kept, out)
    last_windows(zxbcdt, I, window, initial_window, since[T - 1], last_window)


@sums
def _of_scale(dout, norm, gated):
    slope = gated.dtype.type(0)
    for i in range(len(gated)):
        slope += dout[i] * norm[i] * gated[i]
    return slope


@compiled
def _back_through_norm(kept, zxbcdt, start, steps, b, norm, eps, dout, written, dy, dzxbcdt, dnorm, shared):
    """A block's slopes of lane b of what was read, dy [K, I], and of z; and dy . written, [K]."""
    I, one, dtype = len(norm), norm.dtype.type(1), norm.dtype
    for k in range(steps):
        y, z, dout_k = kept[start + k, b], zxbcdt[start + k, b], dout[start + k, b]
        gated, dz = dy[k], dzxbcdt[start + k, b, :I]
        for i in range(I):
            dz[i] = sigmoid(z[i])
            gated[i] = y[i] * z[i] * dz[i]
        exact, falling = _damped_scale(dot(gated, gated) / I, eps)
        scale, shrink = dtype.type(exact), dtype.type(_of_scale(dout_k, norm, gated) * falling / I)
        for i in range(I):
            dnorm[i] += dout_k[i] * gated[i] * scale
            slope = dout_k[i] * norm[i] * scale - gated[i] * shrink
            gate = dz[i]
            silu = z[i] * gate
            gated[i] = slope * silu
            dz[i] = slope * y[i] * (gate + silu * (one - gate))
        shared[k] = dot(gated, written[k])


@sums
def _of_head(k, head, dlogs, dwritten, dy, x):
    """The slopes of a head's log decay, step and skip at row k, summed over its channels of [K, H, P]."""
    zero = x.dtype.type(0)
    dlog, dstep, dskip = zero, zero, zero
    for p in range(x.shape[2]):
        dlog += dlogs[k, head, p]
        dstep += dwritten[k, head, p] * x[k, head, p]
        dskip += dy[k, head, p] * x[k, head, p]
    return dlog, dstep, dskip


@compiled
def _back_to_convolved(
    pre, x, x_KHP, wr, step, zxbcdt, start, steps, b, dt_bias, a, skip, dy_KHP, dwritten_KHP, dlogs_KHP, dwr,
    dzxbcdt, ddt_bias, da_log, dskip, dx, dx_HP, dpre,
):  # fmt: skip
    """A block's slopes of lane b of the convolved, dpre [K, C], and of dt; `pre` [K, C] has their gates.

    Scratch dx [I] is dx_HP too.
    """
    (_, H, P), (_, I), C, one = x_KHP.shape, x.shape, pre.shape[1], x.dtype.type(1)
    for k in range(steps):
        raw, draw = zxbcdt[start + k, b, I + C :], dzxbcdt[start + k, b, I + C :]
        gate, gate_wr, dpre_wr = pre[k], pre[k, I:], dpre[k, I:]
        for head in range(H):
            dlog, dstep, dskipped = _of_head(k, head, dlogs_KHP, dwritten_KHP, dy_KHP, x_KHP)
            for p in range(P):
                dx_HP[head, p] = dy_KHP[k, head, p] * skip[head] + dwritten_KHP[k, head, p] * step[k, head]
            draw[head] = (dlog * a[head] + dstep) * sigmoid(raw[head] + dt_bias[head])
            ddt_bias[head] += draw[head]
            da_log[head] += dlog * step[k, head] * a[head]
            dskip[head] += dskipped
        for i in range(I):
            dpre[k, i] = dx[i] * (gate[i] + x[k, i] * (one - gate[i]))
        for n in range(len(gate_wr)):
            dpre_wr[n] = dwr[k, n] * (gate_wr[n] + wr[k, n] * (one - gate_wr[n]))


@kernel
def _backward(
    reset, zxbcdt, window, initial, initial_window, weight, bias, dt_bias, a_log, skip, norm, eps, tiles,
    kept, before, dout, dlast, dlast_window,
    dzxbcdt, dh, dwindow, dinitial, dinitial_window, dweight, dbias, ddt_bias, da_log, dskip, dnorm,
):  # fmt: skip
    T, B, _ = zxbcdt.shape
    (N, I), C, H, W, dtype = initial.shape, len(bias), len(a_log), len(initial_window), zxbcdt.dtype
    taps, a, since = transposed(weight), -np.exp(a_log), since_reset(reset, W)
    dtaps, rate = np.zeros_like(taps), a * dtype.type(LOG2_E)
    pre, ahead = np.empty((LANES, STEPS, C), dtype), np.empty((LANES, W, C), dtype)
    x, wr, step, factor = (
        np.empty((STEPS, I), dtype), np.empty((STEPS, 2 * N), dtype), np.empty((STEPS, H), dtype), np.empty(H, dtype)
    )  # fmt: skip
    decay, written, dy = np.empty((STEPS, I), dtype), np.empty((STEPS, I), dtype), np.empty((STEPS, I), dtype)
    dwritten, dlogs, shared = np.empty((STEPS, I), dtype), np.empty((STEPS, I), dtype), np.empty(STEPS, dtype)
    dwr, dx, dpre = np.empty((STEPS, 2 * N), dtype), np.empty(I, dtype), np.empty((STEPS + W, C), dtype)
    heads = STEPS, H, I // H  # the same again by heads
    x_KHP, decay_KHP, written_KHP = x.reshape(heads), decay.reshape(heads), written.reshape(heads)
    dy_KHP, dwritten_KHP, dlogs_KHP = dy.reshape(heads), dwritten.reshape(heads), dlogs.reshape(heads)
    dx_HP = dx.reshape(heads[1:])
    left = np.empty((STEPS, tiles.rows, tiles.width), dtype)
    parts = np.empty((STEPS, 2 * N, tiles.folded), dtype)
    copy(dh, dlast)
    for group in range(0, B, LANES):
        lanes = min(LANES, B - group)
        ahead[:] = 0
        for block in range(len(before) - 1, -1, -1):
            start = block * STEPS
            steps = min(STEPS, T - start)
            convolve_block(zxbcdt, I, window, initial_window, taps, bias, start, steps, group, lanes, since, pre)
            for lane in range(lanes):
                b, pre_b = group + lane, pre[lane]
                _features(
                    pre_b, zxbcdt, start, steps, b, dt_bias, rate, x, x_KHP, wr, step, factor, decay_KHP,
                    written_KHP,
                )  # fmt: skip
                _back_through_norm(kept, zxbcdt, start, steps, b, norm, eps, dout, written, dy, dzxbcdt, dnorm, shared)
                recur_back(
                    initial, reset[start:, b], steps, None, decay, written, wr, before[block, b], dy, shared, None,
                    left, parts, dh[b], dinitial, dlogs, None, dwritten, dwr, tiles,
                )  # fmt: skip
                _back_to_convolved(
                    pre_b, x, x_KHP, wr, step, zxbcdt, start, steps, b, dt_bias, a, skip, dy_KHP, dwritten_KHP,
                    dlogs_KHP, dwr, dzxbcdt, ddt_bias, da_log, dskip, dx, dx_HP, dpre,
                )  # fmt: skip
                unconvolve(
                    zxbcdt, I, window, initial_window, taps, since, start, steps, b, dlast_window, dpre, ahead[lane],
                    dzxbcdt, dwindow, dinitial_window, dtaps, dbias,
                )  # fmt: skip
    for k in range(len(taps)):
        for c in range(C):
            dweight[c, k] = dtaps[k, c]
