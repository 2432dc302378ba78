"""What is between Mamba's two projections, on a CPU: convolution and selective scan, compiled, around two products.

The equations are those of `controllers.scans.convolution` and `selective`. Forward, the states of a few lanes stay in
the cache for all of time. Backward, states are made again from those before each block of STEPS steps, and one state
of all channels is walked through a block before the next one is, so that what a step needs is in the nearest cache.
Steps' lengths come of so few features that their product is part of these loops, and made again backward.

Axis letters: T time, B lanes, I inner channels, N states a channel, W steps of the convolution's window, R = r + 2 N
features that the step's length (r of them), B and C are made of.
"""

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
    transposed,
)
from controllers.scans.compiled_convolution import LANES, convolve, last_windows, since_reset, unconvolve
from controllers.scans.compiled_states import STEPS, forget, of_write_and_read
from controllers.scans.selective import LOG2_E


class MambaParameters(NamedTuple):
    """Of a layer, laid out as in `mamba_ssm.Mamba`, and what its lanes start from."""

    initial_NI: Tensor
    initial_WI: Tensor
    weight_IK: Tensor
    bias_I: Tensor
    to_features_RI: Tensor
    dt_Ir: Tensor
    dt_bias_I: Tensor
    a_log_IN: Tensor
    skip_I: Tensor


def compiled_mamba(
    xz_TBJ: Tensor, reset_TB: Tensor, h_BNI: Tensor, window_BWI: Tensor, p: MambaParameters, in_place: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """All steps: what the second projection takes, [T, B, I], the last state, and the last window.

    Where `reset_TB` is true the lane takes the initial state and window before that step. Differentiable, once, in
    every tensor but the flags.

    Args:
        xz_TBJ: x and its gate side by side, J = 2 I.
        in_place: without autograd the last state and window take the place of the given ones, where both of these lie
            in order.
    """
    if torch.is_grad_enabled():
        out_TBI, last_BNI, last_BWI = _Mamba.apply(reset_TB, xz_TBJ, h_BNI, window_BWI, *p)
        return out_TBI, last_BNI, last_BWI
    return _run(reset_TB, (xz_TBJ, h_BNI, window_BWI, *p), keep=False, in_place=in_place)[:3]  # type: ignore[return-value]


def _run(reset_TB: Tensor, inputs: tuple[Tensor, ...], keep: bool, in_place: bool = False) -> tuple[Tensor, ...]:
    """Outputs, last state, last window; the convolved, and the steps' features; and unless not `keep` the outputs
    before their gates, and the states before each block but the first."""
    xz_TBJ, h_BNI, window_BWI, initial_NI, initial_WI, weight_IK, bias_I, to_features_RI, *rest = inputs
    (T, B), I = reset_TB.shape, h_BNI.shape[2]
    u_TBI, out_TBI = h_BNI.new_empty(T, B, I), h_BNI.new_empty(T, B, I)
    last_BNI, last_BWI = lasts(h_BNI, window_BWI, in_place=in_place)
    kept_TBI = h_BNI.new_empty(T if keep else 0, B, I)
    before_PBNI = h_BNI.new_empty((T - 1) // STEPS if keep else 0, *h_BNI.shape)
    xz, reset = arrays(xz_TBJ, reset_TB)
    _convolve(xz, reset, *arrays(window_BWI, initial_WI, weight_IK, bias_I, u_TBI, last_BWI))
    features_TBR = u_TBI @ to_features_RI.t()
    state = arrays(u_TBI, features_TBR, h_BNI, initial_NI, *rest)
    _forward(xz, reset, *state, last_BNI is h_BNI, *arrays(out_TBI, last_BNI, kept_TBI, before_PBNI))
    return out_TBI, last_BNI, last_BWI, u_TBI, features_TBR, kept_TBI, before_PBNI


class _Mamba(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, reset_TB: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        out_TBI, last_BNI, last_BWI, *saved = _run(reset_TB, inputs, keep=True)
        ctx.save_for_backward(reset_TB, *saved, *inputs)
        return out_TBI, last_BNI, last_BWI

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout_TBI: Tensor, dlast_BNI: Tensor, dlast_BWI: Tensor) -> tuple[Tensor | None, ...]:
        reset_TB, u_TBI, features_TBR, kept_TBI, before_PBNI, *inputs = ctx.saved_tensors
        xz_TBJ, h_BNI, window_BWI, *own = inputs
        initial_NI, initial_WI, weight_IK, bias_I, to_features_RI, *rest = own
        dxz_TBJ, du_TBI, dfeatures_TBR, dh_BNI = (
            value.new_empty(value.shape) for value in (xz_TBJ, u_TBI, features_TBR, h_BNI)
        )
        dwindow_BWI, dinitial_NI, dinitial_WI, dweight_IK, dbias_I, *drest = (
            value.new_zeros(value.shape) for value in (window_BWI, initial_NI, initial_WI, weight_IK, bias_I, *rest)
        )
        xz, reset, dxz = arrays(xz_TBJ, reset_TB, dxz_TBJ)
        given = arrays(u_TBI, features_TBR, h_BNI, initial_NI, *rest, kept_TBI, before_PBNI, dout_TBI, dlast_BNI)
        _backward(xz, reset, *given, dxz, *arrays(du_TBI, dfeatures_TBR, dh_BNI, dinitial_NI, *drest))

        u_XI, du_XI, dfeatures_XR = (value.flatten(0, 1) for value in (u_TBI, du_TBI, dfeatures_TBR))
        du_XI.addmm_(dfeatures_XR, to_features_RI)
        dto_features_RI = dfeatures_XR.t() @ u_XI

        _unconvolve(
            xz, reset, *arrays(window_BWI, initial_WI, weight_IK, bias_I, du_TBI, dlast_BWI),
            dxz, *arrays(dwindow_BWI, dinitial_WI, dweight_IK, dbias_I),
        )  # fmt: skip
        return (
            None, dxz_TBJ, dh_BNI, dwindow_BWI, dinitial_NI, dinitial_WI, dweight_IK, dbias_I, dto_features_RI, *drest,
        )  # fmt: skip


@kernel
def _convolve(xz, reset, window, initial, weight, bias, u, last_window):
    (T, B, I), taps = u.shape, transposed(weight)
    since = np.full(B, T + len(taps))
    for t in range(T):
        for b in range(B):
            since[b] = 0 if reset[t, b] else since[b] + 1
            u_t = u[t, b]
            convolve(xz, 0, window, initial, taps, bias, t, b, since[b], u_t)
            for i in range(I):
                u_t[i] *= sigmoid(u_t[i])
    last_windows(xz, 0, window, initial, since, last_window)


@kernel
def _unconvolve(xz, reset, window, initial, weight, bias, du, dlast, dxz, dwindow, dinitial, dweight, dbias):
    (T, B, I), W, one = du.shape, window.shape[1], du.dtype.type(1)
    taps, since = transposed(weight), since_reset(reset, W)
    dtaps = np.zeros_like(taps)
    pre, slopes = np.empty(I, du.dtype), np.empty((LANES, STEPS + W, I), du.dtype)
    ahead = np.empty((LANES, W, I), du.dtype)
    for group in range(0, B, LANES):
        lanes = min(LANES, B - group)
        ahead[:] = 0
        for start in range((T - 1) // STEPS * STEPS, -1, -STEPS):
            steps = min(STEPS, T - start)
            for k in range(steps):  # lanes side by side, as they lie in memory
                for lane in range(lanes):
                    t, b = start + k, group + lane
                    du_t, slope = du[t, b], slopes[lane, k]
                    convolve(xz, 0, window, initial, taps, bias, t, b, since[t, b], pre)
                    for i in range(I):
                        gate = sigmoid(pre[i])
                        slope[i] = du_t[i] * gate * (one + pre[i] * (one - gate))
            for lane in range(lanes):
                unconvolve(
                    xz, 0, window, initial, taps, since, start, steps, group + lane, dlast, slopes[lane], ahead[lane],
                    dxz, dwindow, dinitial, dtaps, dbias,
                )  # fmt: skip
    for k in range(len(taps)):
        for i in range(I):
            dweight[i, k] = dtaps[k, i]


@compiled
def _rates(a_log):
    """A = -exp(a_log) by states, [N, I]."""
    a = transposed(a_log)
    flat = a.reshape(-1)
    for i in range(len(flat)):
        flat[i] = -np.exp(flat[i])
    return a


@compiled
def _lengths(features, t, b, weight, bias, raw, step):
    """Fill a step's lengths [I] from its first features, before the softplus and after: weight and bias as [r, I]."""
    r, I = weight.shape
    copy(raw, bias)
    for q in range(0, r - 3, 4):
        f_0, f_1, f_2, f_3 = features[t, b, q], features[t, b, q + 1], features[t, b, q + 2], features[t, b, q + 3]
        for i in range(I):
            raw[i] += f_0 * weight[q, i] + f_1 * weight[q + 1, i] + f_2 * weight[q + 2, i] + f_3 * weight[q + 3, i]
    for q in range(r // 4 * 4, r):
        for i in range(I):
            raw[i] += features[t, b, q] * weight[q, i]
    for i in range(I):
        step[i] = softplus(raw[i])


@kernel
def _forward(xz, reset, u, features, h0, initial, dt_weight, dt_bias, a_log, skip, in_place, out, h, kept, before):
    (T, B, I), N, dtype = u.shape, len(initial), u.dtype
    r, dt_rI = dt_weight.shape[1], transposed(dt_weight)
    rate = _rates(a_log)
    for n in range(N):
        for i in range(I):
            rate[n, i] *= dtype.type(LOG2_E)
    raw, step, written, y = np.empty(I, dtype), np.empty(I, dtype), np.empty(I, dtype), np.empty(I, dtype)
    for group in range(0, B, LANES):
        for t in range(T):
            for b in range(group, min(group + LANES, B)):
                h_b, u_t, z = h[b], u[t, b], xz[t, b, I:]
                if reset[t, b] and (t > 0 or in_place):
                    copy(h_b, initial)
                state = h_b if t > 0 else initial if reset[t, b] else h0[b]
                if t % STEPS == 0 and t > 0 and len(before) > 0:
                    copy(before[t // STEPS - 1, b], state)
                _lengths(features, t, b, dt_rI, dt_bias, raw, step)
                for i in range(I):
                    written[i] = step[i] * u_t[i]
                    y[i] = skip[i] * u_t[i]
                for n in range(N):
                    write, read = features[t, b, r + n], features[t, b, r + N + n]
                    if t == 0 and not in_place:
                        for i in range(I):
                            after = exp2(rate[n, i] * step[i]) * state[n, i] + write * written[i]
                            h_b[n, i] = after
                            y[i] += read * after
                    else:  # the same in place, which is not made vectors of where it might be either
                        for i in range(I):
                            after = exp2(rate[n, i] * step[i]) * h_b[n, i] + write * written[i]
                            h_b[n, i] = after
                            y[i] += read * after
                if len(kept) > 0:
                    copy(kept[t, b], y)
                out_t = out[t, b]
                for i in range(I):
                    out_t[i] = y[i] * z[i] * sigmoid(z[i])


@compiled
def _add_products(features, t, b, x, total):
    """Add a step's first features times x [I] to [r, I]."""
    r, I = total.shape
    for q in range(0, r - 3, 4):
        f_0, f_1, f_2, f_3 = features[t, b, q], features[t, b, q + 1], features[t, b, q + 2], features[t, b, q + 3]
        for i in range(I):
            total[q, i] += f_0 * x[i]
            total[q + 1, i] += f_1 * x[i]
            total[q + 2, i] += f_2 * x[i]
            total[q + 3, i] += f_3 * x[i]
    for q in range(r // 4 * 4, r):
        for i in range(I):
            total[q, i] += features[t, b, q] * x[i]


@kernel
def _backward(
    xz, reset, u, features, h0, initial, dt_weight, dt_bias, a_log, skip, kept, before, dout, dlast,
    dxz, du, dfeatures, dh, dinitial, ddt_weight, ddt_bias, da_log, dskip,
):  # fmt: skip
    (T, B, I), N, dtype = u.shape, len(initial), u.dtype
    r, zero, one = dt_weight.shape[1], dtype.type(0), dtype.type(1)
    dt_rI, a, da = transposed(dt_weight), _rates(a_log), np.zeros((N, I), dtype)
    ddt_rI, ddt, raw = np.zeros_like(dt_rI), np.empty(I, dtype), np.empty((STEPS, I), dtype)
    step, written, dy = np.empty((STEPS, I), dtype), np.empty((STEPS, I), dtype), np.empty((STEPS, I), dtype)
    dstep, dwritten, wr = np.empty((STEPS, I), dtype), np.empty((STEPS, I), dtype), np.empty((STEPS, 2 * N), dtype)
    shared = np.empty(STEPS, dtype)
    decay, left, h = np.empty((STEPS, I), dtype), np.empty((STEPS, I), dtype), np.empty(I, dtype)
    copy(dh, dlast)
    for block in range(len(before), -1, -1):
        start = block * STEPS
        steps = min(STEPS, T - start)
        for b in range(B):
            for k in range(steps):
                t = start + k
                u_t, y, dout_t, z, dz = u[t, b], kept[t, b], dout[t, b], xz[t, b, I:], dxz[t, b, I:]
                copy(wr[k], features[t, b, r:])
                _lengths(features, t, b, dt_rI, dt_bias, raw[k], step[k])
                for i in range(I):
                    written[k, i] = step[k, i] * u_t[i]
                    dstep[k, i] = zero
                    dwritten[k, i] = zero
                for i in range(I):
                    dz[i] = sigmoid(z[i])
                for i in range(I):
                    dy[k, i] = dout_t[i] * z[i] * dz[i]
                shared[k] = dot(dy[k], written[k])
                for i in range(I):
                    dz[i] = dout_t[i] * y[i] * dz[i] * (one + z[i] * (one - dz[i]))
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
                        factor = exp2(a[n, i] * dtype.type(LOG2_E) * step[k, i])
                        decay[k, i] = factor
                        left[k, i] = factor * h[i]
                        h[i] = left[k, i] + w * written[k, i]
                for k in range(steps - 1, -1, -1):
                    write, read = wr[k, n], wr[k, N + n]
                    dwrite, dread = of_write_and_read(n, k, dh_b, dy, left, written)
                    for i in range(I):
                        slope = dh_b[n, i] + read * dy[k, i]
                        dwritten[k, i] += slope * write
                        dlog = slope * left[k, i]
                        dstep[k, i] += dlog * a[n, i]
                        da[n, i] += dlog * step[k, i]
                        dh_b[n, i] = slope * decay[k, i]
                    dfeatures[start + k, b, r + n] = dwrite + read * shared[k]
                    dfeatures[start + k, b, r + N + n] = dread + write * shared[k]
                    if resets[k]:
                        forget(n, dh_b, dinitial)
            for k in range(steps):
                t = start + k
                u_t, du_t = u[t, b], du[t, b]
                for i in range(I):
                    du_t[i] = dy[k, i] * skip[i] + dwritten[k, i] * step[k, i]
                for i in range(I):
                    dskip[i] += dy[k, i] * u_t[i]
                for i in range(I):
                    ddt[i] = (dstep[k, i] + dwritten[k, i] * u_t[i]) * sigmoid(raw[k, i])
                for i in range(I):
                    ddt_bias[i] += ddt[i]
                for q in range(r):
                    dfeatures[t, b, q] = dot(ddt, dt_rI[q])
                _add_products(features, t, b, ddt, ddt_rI)
    for i in range(I):
        for n in range(N):
            da_log[i, n] = da[n, i] * a[n, i]
        for q in range(r):
            ddt_weight[i, q] = ddt_rI[q, i]
