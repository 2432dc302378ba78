"""Mamba-2's recurrence on a CPU, compiled; the equations are those of `controllers.scans.ssd`.

One decay a head makes the scan a matrix product on a GPU. On a CPU the plain recurrence over states that stay in the
nearest cache takes less: a chunk of L steps costs L times as much a step as it has states, and its sums cross memory.

    h' = exp(a dt) h + dt x B^T        y = h' C + D x

Axis letters: T time, B lanes, C channels (x, B and C side by side), I inner features, H heads, N state size.
"""

import numpy as np
from torch import Tensor

from controllers.scans.compiled import LOG2_E, compiled, copy, exp2, kernel, move
from controllers.scans.compiled_scan import STEPS, Kernels, compiled_scan

LANES = 16  # whose states are in the cache at the same time, forward


def compiled_ssd_scan(
    xbc_TBC: Tensor, dt_TBH: Tensor, reset_TB: Tensor, h_BNI: Tensor, initial_NI: Tensor, a_H: Tensor, skip_H: Tensor
) -> tuple[Tensor, Tensor]:
    """All steps: what is read, [T, B, I], and the last state, [B, N, I].

    Where `reset_TB` is true the lane takes `initial_NI` for its state before that step. Differentiable, once, in every
    tensor but the flags.
    """
    inputs = xbc_TBC, dt_TBH, h_BNI, initial_NI, a_H, skip_H
    return compiled_scan(Kernels(_forward, _backward, of_steps=2), reset_TB, *inputs)


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
def _forward(reset, xbc, dt, h0, initial, a, skip, y, h, before):
    T, B, _ = xbc.shape
    N, I = initial.shape
    decay, written, out = np.empty(I, xbc.dtype), np.empty(I, xbc.dtype), np.empty(I, xbc.dtype)
    skips, rate = np.repeat(skip, I // len(a)), a * a.dtype.type(LOG2_E)
    for group in range(0, B, LANES):
        for t in range(T):
            for b in range(group, min(group + LANES, B)):
                h_b, x, y_t = h[b], xbc[t, b], y[t, b]
                if reset[t, b] and t > 0:
                    copy(h_b, initial)
                state = h_b if t > 0 else initial if reset[t, b] else h0[b]
                if t % STEPS == 0 and len(before) > 0:
                    copy(before[t // STEPS, b], state)
                _of_step(x, dt[t, b], rate, decay, written)
                for i in range(I):
                    out[i] = skips[i] * x[i]
                for n in range(N):
                    w, r = x[I + n], x[I + N + n]
                    if t == 0:
                        for i in range(I):
                            after = decay[i] * state[n, i] + w * written[i]
                            h_b[n, i] = after
                            out[i] += r * after
                    else:  # the same in place, which is not made vectors of where it might be either
                        for i in range(I):
                            after = decay[i] * h_b[n, i] + w * written[i]
                            h_b[n, i] = after
                            out[i] += r * after
                for i in range(I):
                    y_t[i] = out[i]


@kernel
def _backward(
    reset, xbc, dt, h0, initial, a, skip, before, dy, dlast, dxbc, ddt, dh, dinitial, da, dskip
):  # fmt: skip
    T, B, _ = xbc.shape
    N, I = initial.shape
    H, size, dtype = len(a), I // len(a), xbc.dtype
    rate = a * dtype.type(LOG2_E)
    entered, h = np.empty((STEPS, N, I), dtype), np.empty((N, I), dtype)
    decays, writes = np.empty((STEPS, I), dtype), np.empty((STEPS, I), dtype)
    dout, dlog, dwritten = np.empty(I, dtype), np.empty(I, dtype), np.empty(I, dtype)
    zero = dtype.type(0)
    copy(dh, dlast)
    for b in range(B):
        dh_b = dh[b]
        for block in range(len(before) - 1, -1, -1):
            start, stop = block * STEPS, min((block + 1) * STEPS, T)
            copy(h, before[block, b])
            for t in range(start, stop):
                x, decay, written = xbc[t, b], decays[t - start], writes[t - start]
                if reset[t, b]:
                    copy(h, initial)
                _of_step(x, dt[t, b], rate, decay, written)
                for n in range(N):
                    w, entered_n, h_n = x[I + n], entered[t - start, n], h[n]
                    for i in range(I):
                        entered_n[i] = h_n[i]
                        h_n[i] = decay[i] * h_n[i] + w * written[i]
            for t in range(stop - 1, start - 1, -1):
                x, decay, written = xbc[t, b], decays[t - start], writes[t - start]
                dx, dy_t = dxbc[t, b], dy[t, b]
                for i in range(I):
                    dout[i] = dy_t[i]
                    dlog[i] = zero
                    dwritten[i] = zero
                for n in range(N):
                    w, r, entered_n = x[I + n], x[I + N + n], entered[t - start, n]
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
                    move(dinitial, dh_b)
