"""Mamba-2's recurrence on a CPU, compiled; the equations are those of `controllers.scans.ssd`.

One decay a head makes the scan a matrix product on a GPU. On a CPU the plain recurrence over states that stay in the
nearest cache takes less: a chunk of L steps costs L times as much a step as it has states, and its sums cross memory.

    h' = exp(a dt) h + dt x B^T        y = h' C + D x

Axis letters: T time, B lanes, C channels (x, B and C side by side), I inner features, H heads, N state size,
P blocks of STEPS steps.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from controllers.scans.compiled import arrays, compiled, copy, exp2, kernel

STEPS, FORWARD_LANES, BACKWARD_LANES = 16, 16, 2
_LOG2_E = math.log2(math.e)


def compiled_ssd_scan(
    xbc_TBC: Tensor, dt_TBH: Tensor, reset_TB: Tensor, h_BNI: Tensor, initial_NI: Tensor, a_H: Tensor, skip_H: Tensor
) -> tuple[Tensor, Tensor]:
    """All steps: what is read, [T, B, I], and the last state, [B, N, I].

    Where `reset_TB` is true the lane takes `initial_NI` for its state before that step. Differentiable, once, in every
    tensor but the flags.
    """
    inputs = xbc_TBC, dt_TBH, h_BNI, initial_NI, a_H, skip_H
    if torch.is_grad_enabled():
        y_TBI, last_BNI = _SsdScan.apply(reset_TB, *inputs)
        return y_TBI, last_BNI
    return _run(reset_TB, inputs, keep=False)[:2]


def _run(reset_TB: Tensor, inputs: tuple[Tensor, ...], keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, last state, and unless not `keep` the states before each block, [P, B, N, I]."""
    xbc_TBC, h_BNI, a_H = inputs[0], inputs[2], inputs[4]
    T, B, _ = xbc_TBC.shape
    y_TBI, last_BNI = xbc_TBC.new_empty(T, B, h_BNI.shape[2]), h_BNI.new_empty(h_BNI.shape)
    before_PBNI = h_BNI.new_empty(-(-T // STEPS) if keep else 0, *h_BNI.shape)
    _forward(*arrays(reset_TB, *inputs, a_H * _LOG2_E, y_TBI, last_BNI, before_PBNI))
    return y_TBI, last_BNI, before_PBNI


class _SsdScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, reset_TB: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        y_TBI, last_BNI, before_PBNI = _run(reset_TB, inputs, keep=True)
        ctx.save_for_backward(reset_TB, before_PBNI, *inputs)
        return y_TBI, last_BNI

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_TBI: Tensor, dlast_BNI: Tensor) -> tuple[Tensor | None, ...]:
        reset_TB, before_PBNI, *inputs = ctx.saved_tensors
        a_H = inputs[4]
        slopes = [value.new_empty(value.shape) for value in inputs[:3]]
        slopes += [value.new_zeros(value.shape) for value in inputs[3:]]  # which are summed over time
        _backward(*arrays(reset_TB, *inputs, a_H * _LOG2_E, before_PBNI, dy_TBI, dlast_BNI, *slopes))
        return None, *slopes


@compiled
def _of_step(x, dt, rate, decay, written):
    """Decay of the states of each channel, [I], and what is written to them."""
    size = len(decay) // len(dt)
    for head in range(len(dt)):
        step = dt[head]
        factor = exp2(rate[head] * step)
        for i in range(head * size, (head + 1) * size):
            decay[i] = factor
            written[i] = step * x[i]


@kernel
def _forward(reset, xbc, dt, h0, initial, a, skip, rate, y, h, before):
    T, B, _ = xbc.shape
    N, I = initial.shape
    decay, written, out = np.empty(I, xbc.dtype), np.empty(I, xbc.dtype), np.empty(I, xbc.dtype)
    skips = np.repeat(skip, I // len(a))
    copy(h, h0)
    for group in range(0, B, FORWARD_LANES):
        for t in range(T):
            for b in range(group, min(group + FORWARD_LANES, B)):
                h_b, x, y_t = h[b], xbc[t, b], y[t, b]
                if reset[t, b]:
                    copy(h_b, initial)
                if len(before) > 0 and t % STEPS == 0:
                    copy(before[t // STEPS, b], h_b)
                _of_step(x, dt[t, b], rate, decay, written)
                for i in range(I):
                    out[i] = skips[i] * x[i]
                for n in range(N):
                    w, r = x[I + n], x[I + N + n]
                    for i in range(I):
                        after = decay[i] * h_b[n, i] + w * written[i]
                        h_b[n, i] = after
                        out[i] += r * after
                for i in range(I):
                    y_t[i] = out[i]


@kernel
def _backward(
    reset, xbc, dt, h0, initial, a, skip, rate, before, dy, dlast, dxbc, ddt, dh, dinitial, da, dskip
):  # fmt: skip
    T, B, _ = xbc.shape
    N, I = initial.shape
    H, size, dtype = len(a), I // len(a), xbc.dtype
    entered, h = np.empty((BACKWARD_LANES, STEPS, N, I), dtype), np.empty((BACKWARD_LANES, N, I), dtype)
    decays, writes = np.empty((BACKWARD_LANES, STEPS, I), dtype), np.empty((BACKWARD_LANES, STEPS, I), dtype)
    dout, dlog, dwritten = np.empty(I, dtype), np.empty(I, dtype), np.empty(I, dtype)
    zero = dtype.type(0)
    copy(dh, dlast)
    for group in range(0, B, BACKWARD_LANES):
        lanes = min(BACKWARD_LANES, B - group)
        for block in range(len(before) - 1, -1, -1):
            start, stop = block * STEPS, min((block + 1) * STEPS, T)
            copy(h[:lanes], before[block, group : group + lanes])
            for t in range(start, stop):
                for lane in range(lanes):
                    b, h_b, k = group + lane, h[lane], t - start
                    x, decay, written = xbc[t, b], decays[lane, k], writes[lane, k]
                    if reset[t, b]:
                        copy(h_b, initial)
                    _of_step(x, dt[t, b], rate, decay, written)
                    for n in range(N):
                        w, entered_n = x[I + n], entered[lane, k, n]
                        for i in range(I):
                            entered_n[i] = h_b[n, i]
                            h_b[n, i] = decay[i] * h_b[n, i] + w * written[i]
            for t in range(stop - 1, start - 1, -1):
                for lane in range(lanes):
                    b, k = group + lane, t - start
                    x, decay, written, dh_b = xbc[t, b], decays[lane, k], writes[lane, k], dh[b]
                    dx, dy_t = dxbc[t, b], dy[t, b]
                    for i in range(I):
                        dout[i] = dy_t[i]
                        dlog[i] = zero
                        dwritten[i] = zero
                    for n in range(N):
                        w, r, entered_n = x[I + n], x[I + N + n], entered[lane, k, n]
                        dw, dr = zero, zero
                        for i in range(I):
                            left = decay[i] * entered_n[i]
                            slope = dh_b[n, i] + r * dout[i]
                            dr += dout[i] * (left + w * written[i])
                            dw += slope * written[i]
                            dwritten[i] += slope * w
                            dlog[i] += slope * left
                            dh_b[n, i] = slope * decay[i]
                        dx[I + n] = dw
                        dx[I + N + n] = dr
                    for head in range(H):
                        step, through = dt[t, b, head], skip[head]
                        dlogs, dsteps, dskips = zero, zero, zero
                        for i in range(head * size, (head + 1) * size):
                            dx[i] = dout[i] * through + dwritten[i] * step
                            dlogs += dlog[i]
                            dsteps += dwritten[i] * x[i]
                            dskips += dout[i] * x[i]
                        ddt[t, b, head] = dlogs * a[head] + dsteps
                        da[head] += dlogs * step
                        dskip[head] += dskips
                    if reset[t, b]:
                        for n in range(N):
                            for i in range(I):
                                dinitial[n, i] += dh_b[n, i]
                                dh_b[n, i] = zero
