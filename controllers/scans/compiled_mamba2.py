"""What is between Mamba-2's two projections, on a CPU, compiled as one: convolution, recurrence and gated norm.

The equations are those of `controllers.scans.convolution`, `ssd` and `gated_norm`. One decay a head makes the scan a
matrix product on a GPU. On a CPU the plain recurrence takes less: a chunk of L steps costs L times as much a step as
it has states. What lies between two of the three parts never leaves a core's cache, and the backward pass makes it
again from the states before each block of STEPS steps.

Axis letters: T time, B lanes, F = I + C + H projected features (z; x, B and C; dt), C convolved channels, I inner
features, N state size, H heads, K taps, W = K - 1 steps of a window, oldest first.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from controllers.scans.compiled import (
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
from controllers.scans.compiled_convolution import LANES, convolve, last_windows, since_reset, unconvolve
from controllers.scans.compiled_states import STEPS, forget, of_write_and_read
from controllers.scans.selective import LOG2_E


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
    """Outputs, last state, last window; unless not `keep` what was read, and the states before each block but one."""
    (T, B), h_BNI, window_BWC = reset_TB.shape, inputs[1], inputs[2]
    out_TBI = h_BNI.new_empty(T, B, h_BNI.shape[2])
    last_BNI, last_BWC = lasts(h_BNI, window_BWC, in_place=in_place)
    kept_TBI = h_BNI.new_empty(T if keep else 0, B, h_BNI.shape[2])
    before_PBNI = h_BNI.new_empty((T - 1) // STEPS if keep else 0, *h_BNI.shape)
    results = out_TBI, last_BNI, last_BWC, kept_TBI, before_PBNI
    _forward(*arrays(reset_TB, *inputs), eps, last_BNI is h_BNI, *arrays(*results))
    return results


class _Mamba2(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, reset_TB: Tensor, eps: float, *inputs: Tensor) -> tuple[Tensor, ...]:
        *results, y_TBI, before_PBNI = _run(reset_TB, eps, inputs, keep=True)
        ctx.eps = eps
        ctx.save_for_backward(reset_TB, y_TBI, before_PBNI, *inputs)
        return tuple(results)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *dresults: Tensor) -> tuple[Tensor | None, ...]:
        reset_TB, y_TBI, before_PBNI, *inputs = ctx.saved_tensors
        slopes = [value.new_empty(value.shape) for value in inputs[:2]]
        slopes += [value.new_zeros(value.shape) for value in inputs[2:]]
        _backward(*arrays(reset_TB, *inputs), ctx.eps, *arrays(y_TBI, before_PBNI, *dresults, *slopes))
        return None, None, *slopes


@compiled
def _of_step(raw, dt_bias, rate, x, k, step, factor, decay, written):
    """Row k of the steps' lengths [., H], the decays of the states of each channel [., H, P], and what is written."""
    _, H, P = decay.shape
    for head in range(H):
        step[k, head] = softplus(raw[head] + dt_bias[head])
        factor[head] = exp2(rate[head] * step[k, head])
    for head in range(H):
        for p in range(P):
            decay[k, head, p] = factor[head]
            written[k, head, p] = step[k, head] * x[k, head, p]


@kernel
def _forward(
    reset, zxbcdt, h0, window, initial, initial_window, weight, bias, dt_bias, a_log, skip, norm, eps, in_place,
    out, h, last_window, kept, before,
):  # fmt: skip
    T, B, _ = zxbcdt.shape
    (N, I), C, H, dtype = initial.shape, len(bias), len(a_log), zxbcdt.dtype
    xbc, y, decay, written = np.empty(C, dtype), np.empty(I, dtype), np.empty(I, dtype), np.empty(I, dtype)
    x_1HP, step_1H, factor_H = xbc[:I].reshape(1, H, -1), np.empty((1, H), dtype), np.empty(H, dtype)
    decay_1HP, written_1HP = decay.reshape(1, H, -1), written.reshape(1, H, -1)
    taps, skips, rate = transposed(weight), np.repeat(skip, I // H), -np.exp(a_log) * dtype.type(LOG2_E)
    since = np.full(B, T + len(taps))
    for group in range(0, B, LANES):
        for t in range(T):
            for b in range(group, min(group + LANES, B)):
                row, h_b = zxbcdt[t, b], h[b]
                since[b] = 0 if reset[t, b] else since[b] + 1
                convolve(zxbcdt, I, window, initial_window, taps, bias, t, b, since[b], xbc)
                for c in range(C):
                    xbc[c] *= sigmoid(xbc[c])
                if reset[t, b] and (t > 0 or in_place):
                    copy(h_b, initial)
                state = h_b if t > 0 else initial if reset[t, b] else h0[b]
                if t % STEPS == 0 and t > 0 and len(before) > 0:
                    copy(before[t // STEPS - 1, b], state)
                _of_step(row[I + C :], dt_bias, rate, x_1HP, 0, step_1H, factor_H, decay_1HP, written_1HP)
                for i in range(I):
                    y[i] = skips[i] * xbc[i]
                for n in range(N):
                    w, r = xbc[I + n], xbc[I + N + n]
                    if t == 0 and not in_place:
                        for i in range(I):
                            after = decay[i] * state[n, i] + w * written[i]
                            h_b[n, i] = after
                            y[i] += r * after
                    else:  # the same in place, which is not made vectors of where it might be either
                        for i in range(I):
                            after = decay[i] * h_b[n, i] + w * written[i]
                            h_b[n, i] = after
                            y[i] += r * after
                if len(kept) > 0:
                    copy(kept[t, b], y)
                out_t = out[t, b]
                for i in range(I):
                    y[i] *= row[i] * sigmoid(row[i])
                scale = dtype.type(1 / math.sqrt(dot(y, y) / I + eps))
                for i in range(I):
                    out_t[i] = y[i] * scale * norm[i]
    last_windows(zxbcdt, I, window, initial_window, since, last_window)


@sums
def _of_scale(dout, norm, gated):
    slope = gated.dtype.type(0)
    for i in range(len(gated)):
        slope += dout[i] * norm[i] * gated[i]
    return slope


@compiled
def _unnorm(y, z, norm, eps, dout, dy, dz, dnorm):
    """Back through one row of the gated norm."""
    I, one, dtype = len(y), y.dtype.type(1), y.dtype
    for i in range(I):
        silu = z[i] * sigmoid(z[i])
        dz[i] = silu
        dy[i] = y[i] * silu
    scale = dtype.type(1 / math.sqrt(dot(dy, dy) / I + eps))
    shrink = dtype.type(_of_scale(dout, norm, dy) * scale * scale * scale / I)
    for i in range(I):
        gate, silu, gated = sigmoid(z[i]), dz[i], dy[i]
        dnorm[i] += dout[i] * gated * scale
        slope = dout[i] * norm[i] * scale - gated * shrink
        dy[i] = slope * silu
        dz[i] = slope * y[i] * (gate + silu * (one - gate))


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


@kernel
def _backward(
    reset, zxbcdt, h0, window, initial, initial_window, weight, bias, dt_bias, a_log, skip, norm, eps,
    kept, before, dout, dlast, dlast_window,
    dzxbcdt, dh, dwindow, dinitial, dinitial_window, dweight, dbias, ddt_bias, da_log, dskip, dnorm,
):  # fmt: skip
    T, B, _ = zxbcdt.shape
    (N, I), C, H, W, dtype = initial.shape, len(bias), len(a_log), len(initial_window), zxbcdt.dtype
    zero, one = dtype.type(0), dtype.type(1)
    taps, a, since = transposed(weight), -np.exp(a_log), since_reset(reset, W)
    dtaps, rate = np.zeros_like(taps), a * dtype.type(LOG2_E)
    pre, ahead = np.empty((LANES, STEPS, C), dtype), np.empty((LANES, W, C), dtype)
    dpre, wr = np.empty((STEPS + W, C), dtype), np.empty((STEPS, 2 * N), dtype)
    step, factor = np.empty((STEPS, H), dtype), np.empty(H, dtype)
    x, written, decay = np.empty((STEPS, I), dtype), np.empty((STEPS, I), dtype), np.empty((STEPS, I), dtype)
    dx, dwritten, dy = np.empty((STEPS, I), dtype), np.empty((STEPS, I), dtype), np.empty((STEPS, I), dtype)
    shared = np.empty(STEPS, dtype)
    left, dlogs, h = np.empty((STEPS, I), dtype), np.empty((STEPS, I), dtype), np.empty(I, dtype)
    heads = (STEPS, H, I // H)  # the same again by heads
    x_KHP, written_KHP, decay_KHP = x.reshape(heads), written.reshape(heads), decay.reshape(heads)
    dx_KHP, dwritten_KHP, dy_KHP, dlogs_KHP = (
        dx.reshape(heads), dwritten.reshape(heads), dy.reshape(heads), dlogs.reshape(heads)
    )  # fmt: skip
    copy(dh, dlast)
    for group in range(0, B, LANES):
        lanes = min(LANES, B - group)
        ahead[:] = 0
        for block in range(len(before), -1, -1):
            start = block * STEPS
            steps = min(STEPS, T - start)
            for k in range(steps):  # lanes side by side, as they lie in memory
                for lane in range(lanes):
                    t, b = start + k, group + lane
                    convolve(zxbcdt, I, window, initial_window, taps, bias, t, b, since[t, b], pre[lane, k])
            for lane in range(lanes):
                b = group + lane
                for k in range(steps):
                    row, drow = zxbcdt[start + k, b], dzxbcdt[start + k, b]
                    for i in range(I):
                        x[k, i] = pre[lane, k, i] * sigmoid(pre[lane, k, i])
                    for n in range(2 * N):
                        wr[k, n] = pre[lane, k, I + n] * sigmoid(pre[lane, k, I + n])
                    _of_step(row[I + C :], dt_bias, rate, x_KHP, k, step, factor, decay_KHP, written_KHP)
                    _unnorm(kept[start + k, b], row[:I], norm, eps, dout[start + k, b], dy[k], drow[:I], dnorm)
                    shared[k] = dot(dy[k], written[k])
                    for i in range(I):
                        dlogs[k, i] = zero
                        dwritten[k, i] = zero
                entered, resets, dh_b = before[block - 1, b] if block > 0 else h0[b], reset[start:, b], dh[b]
                for n in range(N):
                    for i in range(I):
                        h[i] = entered[n, i]
                    for k in range(steps):
                        w = wr[k, n]
                        if resets[k]:
                            for i in range(I):
                                h[i] = initial[n, i]
                        for i in range(I):
                            left[k, i] = decay[k, i] * h[i]
                            h[i] = left[k, i] + w * written[k, i]
                    for k in range(steps - 1, -1, -1):
                        w, r = wr[k, n], wr[k, N + n]
                        dw, dr = of_write_and_read(n, k, dh_b, dy, left, written)
                        dpre[k, I + n], dpre[k, I + N + n] = dw + r * shared[k], dr + w * shared[k]
                        for i in range(I):
                            slope = dh_b[n, i] + r * dy[k, i]
                            dwritten[k, i] += slope * w
                            dlogs[k, i] += slope * left[k, i]
                            dh_b[n, i] = slope * decay[k, i]
                        if resets[k]:
                            forget(n, dh_b, dinitial)
                for k in range(steps):
                    raw, draw = zxbcdt[start + k, b, I + C :], dzxbcdt[start + k, b, I + C :]
                    for head in range(H):
                        for p in range(I // H):
                            dx_KHP[k, head, p] = (
                                dy_KHP[k, head, p] * skip[head] + dwritten_KHP[k, head, p] * step[k, head]
                            )
                        dlog, dstep, dskipped = _of_head(k, head, dlogs_KHP, dwritten_KHP, dy_KHP, x_KHP)
                        draw[head] = (dlog * a[head] + dstep) * sigmoid(raw[head] + dt_bias[head])
                        ddt_bias[head] += draw[head]
                        da_log[head] += dlog * step[k, head] * a[head]
                        dskip[head] += dskipped
                    for i in range(I):
                        dpre[k, i] = dx[k, i]
                    for c in range(C):
                        gate = sigmoid(pre[lane, k, c])
                        dpre[k, c] *= gate * (one + pre[lane, k, c] * (one - gate))
                unconvolve(
                    zxbcdt, I, window, initial_window, taps, since, start, steps, b, dlast_window, dpre, ahead[lane],
                    dzxbcdt, dwindow, dinitial_window, dtaps, dbias,
                )  # fmt: skip
    for k in range(len(taps)):
        for c in range(C):
            dweight[c, k] = dtaps[k, c]
