"""The selective scan of Mamba-1 on a CPU, compiled; the equations are those of `controllers.scans.selective`.

Forward, the states of a few lanes stay in the cache for all of time, and lanes that lie side by side are read side by
side. Backward, the states and decays of STEPS steps are computed again, then walked back.

Axis letters: T time, B lanes, I inner channels, N states a channel.
"""

import numpy as np
from torch import Tensor

from controllers.scans.compiled import LOG2_E, compiled, copy, exp2, kernel, move, sigmoid, softplus
from controllers.scans.compiled_scan import STEPS, Kernels, compiled_scan
from controllers.scans.selective import SelectiveInputs, SelectiveParameters

LANES = 16  # whose states are in the cache at the same time, forward


def compiled_selective_scan(
    x: SelectiveInputs, reset_TB: Tensor, h_BNI: Tensor, initial_NI: Tensor, p: SelectiveParameters
) -> tuple[Tensor, Tensor]:
    """`controllers.scans.selective.selective_scan`: every output [T, B, I], and the last state [B, N, I]."""
    inputs = x.u, x.dt, x.z, x.write, x.read, h_BNI, initial_NI, -p.a_log.exp().t(), p.skip
    return compiled_scan(Kernels(_forward, _backward, of_steps=5), reset_TB, *inputs)


@compiled
def _of_step(u, dt, step, written):
    """The steps' lengths d, and what is written."""
    for i in range(len(step)):
        step[i] = softplus(dt[i])
        written[i] = step[i] * u[i]


@kernel
def _forward(reset, u, dt, z, write, read, h0, initial, a, skip, y, h, before):
    T, B, I = u.shape
    N, rate = write.shape[2], a * a.dtype.type(LOG2_E)
    step, written, out = np.empty(I, u.dtype), np.empty(I, u.dtype), np.empty(I, u.dtype)
    for group in range(0, B, LANES):
        for t in range(T):
            for b in range(group, min(group + LANES, B)):
                h_b, u_t, z_t, y_t = h[b], u[t, b], z[t, b], y[t, b]
                if reset[t, b] and t > 0:
                    copy(h_b, initial)
                state = h_b if t > 0 else initial if reset[t, b] else h0[b]
                if t % STEPS == 0 and len(before) > 0:
                    copy(before[t // STEPS, b], state)
                _of_step(u_t, dt[t, b], step, written)
                for i in range(I):
                    out[i] = skip[i] * u_t[i]
                for n in range(N):
                    w, r = write[t, b, n], read[t, b, n]
                    if t == 0:
                        for i in range(I):
                            after = exp2(rate[n, i] * step[i]) * state[n, i] + w * written[i]
                            h_b[n, i] = after
                            out[i] += r * after
                    else:  # the same in place, which is not made vectors of where it might be either
                        for i in range(I):
                            after = exp2(rate[n, i] * step[i]) * h_b[n, i] + w * written[i]
                            h_b[n, i] = after
                            out[i] += r * after
                for i in range(I):
                    y_t[i] = out[i] * z_t[i] * sigmoid(z_t[i])


@kernel
def _backward(
    reset, u, dt, z, write, read, h0, initial, a, skip, before, dy, dlast,
    du, ddt, dz, dwrite, dread, dh, dinitial, da, dskip,
):  # fmt: skip
    T, B, I = u.shape
    N, dtype = write.shape[2], u.dtype
    rate = a * dtype.type(LOG2_E)
    entered, decay = np.empty((STEPS, N, I), dtype), np.empty((STEPS, N, I), dtype)
    h, outs = np.empty((N, I), dtype), np.empty((STEPS, I), dtype)
    step, written, dout = np.empty(I, dtype), np.empty(I, dtype), np.empty(I, dtype)
    dstep, dwritten = np.empty(I, dtype), np.empty(I, dtype)
    zero, one = dtype.type(0), dtype.type(1)
    copy(dh, dlast)
    for b in range(B):
        dh_b = dh[b]
        for block in range(len(before) - 1, -1, -1):
            start, stop = block * STEPS, min((block + 1) * STEPS, T)
            copy(h, before[block, b])
            for t in range(start, stop):
                u_t, out = u[t, b], outs[t - start]
                if reset[t, b]:
                    copy(h, initial)
                _of_step(u_t, dt[t, b], step, written)
                for i in range(I):
                    out[i] = skip[i] * u_t[i]
                for n in range(N):
                    w, r = write[t, b, n], read[t, b, n]
                    entered_n, decay_n, h_n = entered[t - start, n], decay[t - start, n], h[n]
                    for i in range(I):
                        factor = exp2(rate[n, i] * step[i])
                        decay_n[i] = factor
                        entered_n[i] = h_n[i]
                        after = factor * h_n[i] + w * written[i]
                        h_n[i] = after
                        out[i] += r * after
            for t in range(stop - 1, start - 1, -1):
                u_t, dt_t, z_t, dy_t, out = u[t, b], dt[t, b], z[t, b], dy[t, b], outs[t - start]
                du_t, ddt_t, dz_t, dwrite_t, dread_t = du[t, b], ddt[t, b], dz[t, b], dwrite[t, b], dread[t, b]
                for i in range(I):
                    gate = sigmoid(z_t[i])
                    silu = z_t[i] * gate
                    dout[i] = dy_t[i] * silu
                    dz_t[i] = dy_t[i] * out[i] * (gate + silu * (one - gate))
                _of_step(u_t, dt_t, step, written)
                for i in range(I):
                    dskip[i] += dout[i] * u_t[i]
                    dwritten[i] = zero
                    dstep[i] = zero
                for n in range(N):
                    w, r = write[t, b, n], read[t, b, n]
                    entered_n, decay_n = entered[t - start, n], decay[t - start, n]
                    dw, dr = zero, zero
                    for i in range(I):
                        left = decay_n[i] * entered_n[i]
                        slope = dh_b[n, i] + r * dout[i]
                        dr += dout[i] * (left + w * written[i])
                        dw += slope * written[i]
                        dwritten[i] += slope * w
                        dlog = slope * left
                        dstep[i] += dlog * a[n, i]
                        da[n, i] += dlog * step[i]
                        dh_b[n, i] = slope * decay_n[i]
                    dwrite_t[n] = dw
                    dread_t[n] = dr
                for i in range(I):
                    du_t[i] = dout[i] * skip[i] + dwritten[i] * step[i]
                for i in range(I):
                    ddt_t[i] = (dstep[i] + dwritten[i] * u_t[i]) * sigmoid(dt_t[i])
                if reset[t, b]:
                    move(dinitial, dh_b)
