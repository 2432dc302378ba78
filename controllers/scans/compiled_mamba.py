"""What is between Mamba's two projections, on a CPU: convolution and selective scan, compiled, around two products.

The equations are those of `scans.convolution` and `selective`. Forward, the states of a few lanes stay in
the cache for all of time. Backward, states are made again from those before each block of STEPS steps, which
`scans.compiled_states` walks through. Steps' lengths come of so few features that their product is part of
these loops, and made again backward.

Axis letters: T time, B lanes, I inner channels, N states a channel, W steps of the convolution's window, R = r + 2 N
features that the step's length (r of them), B and C are made of, Q blocks of K = STEPS steps, X, Y states in tiles.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mneme.controllers.products import product
from mneme.controllers.scans.compiled import (
    allocating,
    arrays,
    compiled,
    copy,
    dot,
    kernel,
    lasts,
    sigmoid,
    softplus,
    transposed,
)
from mneme.controllers.scans.compiled_convolution import (
    LANES,
    convolve,
    convolve_block,
    last_windows,
    since_reset,
    unconvolve,
)
from mneme.controllers.scans.compiled_states import STEPS, blocks_of_states, recur, recur_back
from mneme.controllers.scans.selective import LOG2_E
from mneme.controllers.scans.tiles import tile_shape


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
    before their gates, and the states before each block."""
    xz_TBJ, h_BNI, window_BWI, initial_NI, initial_WI, weight_IK, bias_I, to_features_RI, *rest = inputs
    (T, B), I = reset_TB.shape, h_BNI.shape[2]
    u_TBI, out_TBI = h_BNI.new_empty(T, B, I), h_BNI.new_empty(T, B, I)
    last_BNI, last_BWI = lasts(h_BNI, window_BWI, in_place=in_place)
    kept_TBI = h_BNI.new_empty(T if keep else 0, B, I)
    tiles = tile_shape(initial_NI)
    before_QBXY = blocks_of_states(h_BNI, T if keep else 0, tiles)
    xz, reset = arrays(xz_TBJ, reset_TB)
    _convolve(xz, reset, *arrays(window_BWI, initial_WI, weight_IK, bias_I, u_TBI, last_BWI))
    features_TBR = product(u_TBI.view(-1, u_TBI.shape[-1]), to_features_RI.t()).view(*u_TBI.shape[:2], -1)
    state = arrays(u_TBI, features_TBR, h_BNI, initial_NI, *rest)
    _forward(xz, reset, *state, tiles, *arrays(out_TBI, last_BNI, kept_TBI, before_QBXY))
    return out_TBI, last_BNI, last_BWI, u_TBI, features_TBR, kept_TBI, before_QBXY


class _Mamba(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, reset_TB: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        out_TBI, last_BNI, last_BWI, *saved = _run(reset_TB, inputs, keep=True)
        ctx.save_for_backward(reset_TB, *saved, *inputs)
        return out_TBI, last_BNI, last_BWI

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout_TBI: Tensor, dlast_BNI: Tensor, dlast_BWI: Tensor) -> tuple[Tensor | None, ...]:
        reset_TB, u_TBI, features_TBR, kept_TBI, before_QBXY, *inputs = ctx.saved_tensors
        xz_TBJ, h_BNI, window_BWI, *own = inputs
        initial_NI, initial_WI, weight_IK, bias_I, to_features_RI, *rest = own
        dxz_TBJ, du_TBI, dfeatures_TBR, dh_BNI = (
            value.new_empty(value.shape) for value in (xz_TBJ, u_TBI, features_TBR, h_BNI)
        )
        dwindow_BWI, dinitial_NI, dinitial_WI, dweight_IK, dbias_I, *drest = (
            value.new_zeros(value.shape) for value in (window_BWI, initial_NI, initial_WI, weight_IK, bias_I, *rest)
        )
        xz, reset, dxz = arrays(xz_TBJ, reset_TB, dxz_TBJ)
        given = arrays(u_TBI, features_TBR, initial_NI, *rest)
        kept = arrays(kept_TBI, before_QBXY, dout_TBI, dlast_BNI)
        slopes = arrays(du_TBI, dfeatures_TBR, dh_BNI, dinitial_NI, *drest)
        _backward(xz, reset, *given, tile_shape(initial_NI), *kept, dxz, *slopes)

        u_XI, du_XI, dfeatures_XR = (value.flatten(0, 1) for value in (u_TBI, du_TBI, dfeatures_TBR))
        du_XI += product(dfeatures_XR, to_features_RI)
        dto_features_RI = product(dfeatures_XR.t(), u_XI)

        _unconvolve(
            xz, reset, *arrays(window_BWI, initial_WI, weight_IK, bias_I, du_TBI, dlast_BWI),
            dxz, *arrays(dwindow_BWI, dinitial_WI, dweight_IK, dbias_I),
        )  # fmt: skip
        return (
            None, dxz_TBJ, dh_BNI, dwindow_BWI, dinitial_NI, dinitial_WI, dweight_IK, dbias_I, dto_features_RI, *drest,
        )  # fmt: skip


@compiled
def _silu(x):
    for i in range(len(x)):
        x[i] *= sigmoid(x[i])


@kernel
def _convolve(xz, reset, window, initial, weight, bias, u, last_window):
    (T, B, _), taps, since = u.shape, transposed(weight), since_reset(reset, len(initial))
    for t in range(T):
        for b in range(B):
            convolve(xz, 0, window, initial, taps, bias, t, b, since[t, b], u[t, b])
            _silu(u[t, b])
    last_windows(xz, 0, window, initial, since[T - 1], last_window)


@compiled
def _unsilu(pre, du, start, steps, b, slopes):
    """The slopes [K, I] of what was convolved, pre [K, I]."""
    one = pre.dtype.type(1)
    for k in range(steps):
        du_t = du[start + k, b]
        for i in range(len(du_t)):
            gate = sigmoid(pre[k, i])
            slopes[k, i] = du_t[i] * gate * (one + pre[k, i] * (one - gate))


@kernel
def _unconvolve(xz, reset, window, initial, weight, bias, du, dlast, dxz, dwindow, dinitial, dweight, dbias):
    (T, B, I), W = du.shape, window.shape[1]
    taps, since = transposed(weight), since_reset(reset, W)
    dtaps = np.zeros_like(taps)
    pre, slopes = np.empty((LANES, STEPS, I), du.dtype), np.empty((STEPS + W, I), du.dtype)
    ahead = np.empty((LANES, W, I), du.dtype)
    for group in range(0, B, LANES):
        lanes = min(LANES, B - group)
        ahead[:] = 0
        for start in range((T - 1) // STEPS * STEPS, -1, -STEPS):
            steps = min(STEPS, T - start)
            convolve_block(xz, 0, window, initial, taps, bias, start, steps, group, lanes, since, pre)
            for lane in range(lanes):
                _unsilu(pre[lane], du, start, steps, group + lane, slopes)
                unconvolve(
                    xz, 0, window, initial, taps, since, start, steps, group + lane, dlast, slopes, ahead[lane],
                    dxz, dwindow, dinitial, dtaps, dbias,
                )  # fmt: skip
    for k in range(len(taps)):
        for i in range(I):
            dweight[i, k] = dtaps[k, i]


@allocating
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


@compiled
def _inputs(u, features, start, steps, b, dt_weight, dt_bias, raw, step, written, wr):
    """A block's lengths of lane b, before the softplus and after, and what is written: [K, I]; w and r, [K, 2 N]."""
    for k in range(steps):
        u_t = u[start + k, b]
        _lengths(features, start + k, b, dt_weight, dt_bias, raw[k], step[k])
        copy(wr[k], features[start + k, b, len(dt_weight) :])
        for i in range(len(u_t)):
            written[k, i] = step[k, i] * u_t[i]


@compiled
def _skipped(u, start, steps, b, skip, y):
    """Fill y [K, I] with what passes a block of lane b by the states."""
    for k in range(steps):
        u_t = u[start + k, b]
        for i in range(len(u_t)):
            y[k, i] = skip[i] * u_t[i]


@compiled
def _gated(y, xz, start, steps, b, kept, out):
    """A block's outputs of lane b."""
    I = y.shape[1]
    for k in range(steps):
        y_k, z, out_t = y[k], xz[start + k, b, I:], out[start + k, b]
        if len(kept) > 0:
            copy(kept[start + k, b], y_k)
        for i in range(I):
            out_t[i] = y_k[i] * z[i] * sigmoid(z[i])


@kernel
def _forward(xz, reset, u, features, h0, initial, dt_weight, dt_bias, a_log, skip, tiles, out, h, kept, before):
    (T, B, I), dtype = u.shape, u.dtype
    dt_rI, rate = transposed(dt_weight), _rates(a_log)
    rate *= dtype.type(LOG2_E)
    raw, step, wr = np.empty((STEPS, I), dtype), np.empty((STEPS, I), dtype), np.empty((STEPS, 2 * len(initial)), dtype)
    written, y = np.empty((STEPS, I), dtype), np.empty((STEPS, I), dtype)
    for group in range(0, B, LANES):
        for start in range(0, T, STEPS):
            steps = min(STEPS, T - start)
            for b in range(group, min(group + LANES, B)):
                _inputs(u, features, start, steps, b, dt_rI, dt_bias, raw, step, written, wr)
                _skipped(u, start, steps, b, skip, y)
                entered = h[b] if start > 0 else h0[b]
                keep = before[start // STEPS, b] if len(before) > 0 else initial[:0]
                recur(initial, reset[start:, b], steps, rate, step, written, wr, entered, y, keep, h[b], tiles)
                _gated(y, xz, start, steps, b, kept, out)


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


@compiled
def _back_through_gate(kept, xz, start, steps, b, dout, written, dy, dxz, shared):
    """A block's slopes of lane b of what was read, dy [K, I], and of z; and dy . written, [K]."""
    I, one = dy.shape[1], dy.dtype.type(1)
    for k in range(steps):
        y, dout_t, dy_k = kept[start + k, b], dout[start + k, b], dy[k]
        z, dz = xz[start + k, b, I:], dxz[start + k, b, I:]
        for i in range(I):
            gate = sigmoid(z[i])
            silu = z[i] * gate
            dy_k[i] = dout_t[i] * silu
            dz[i] = dout_t[i] * y[i] * (gate + silu * (one - gate))
        shared[k] = dot(dy_k, written[k])


@compiled
def _back_to_features(
    u, features, start, steps, b, raw, step, dt_weight, skip, dy, dstep, dwritten, dwr, ddt, du, dfeatures,
    ddt_weight, ddt_bias, dskip,
):  # fmt: skip
    """A block's slopes of lane b of the convolved but through the features, and of what the lengths are made of."""
    (r, I), ln2 = dt_weight.shape, u.dtype.type(1 / LOG2_E)
    for k in range(steps):
        u_t, du_t, dfeature = u[start + k, b], du[start + k, b], dfeatures[start + k, b]
        for i in range(I):
            du_t[i] = dy[k, i] * skip[i] + dwritten[k, i] * step[k, i]
        for i in range(I):
            dskip[i] += dy[k, i] * u_t[i]
        for i in range(I):
            ddt[i] = (dstep[k, i] * ln2 + dwritten[k, i] * u_t[i]) * sigmoid(raw[k, i])
        for i in range(I):
            ddt_bias[i] += ddt[i]
        for q in range(r):
            dfeature[q] = dot(ddt, dt_weight[q])
        copy(dfeature[r:], dwr[k])
        _add_products(features, start + k, b, ddt, ddt_weight)


@kernel
def _backward(
    xz, reset, u, features, initial, dt_weight, dt_bias, a_log, skip, tiles, kept, before, dout, dlast,
    dxz, du, dfeatures, dh, dinitial, ddt_weight, ddt_bias, da_log, dskip,
):  # fmt: skip
    (T, B, I), N, dtype = u.shape, len(initial), u.dtype
    dt_rI, a, da = transposed(dt_weight), _rates(a_log), np.zeros((N, I), dtype)
    ddt_rI, ddt, rate, shared = np.zeros_like(dt_rI), np.empty(I, dtype), a * dtype.type(LOG2_E), np.empty(STEPS, dtype)
    raw, step, written = np.empty((STEPS, I), dtype), np.empty((STEPS, I), dtype), np.empty((STEPS, I), dtype)
    wr, dwr = np.empty((STEPS, 2 * N), dtype), np.empty((STEPS, 2 * N), dtype)
    dy, dstep, dwritten = np.empty((STEPS, I), dtype), np.empty((STEPS, I), dtype), np.empty((STEPS, I), dtype)
    size = STEPS, tiles.rows, tiles.width
    factors, left, parts = np.empty(size, dtype), np.empty(size, dtype), np.empty((STEPS, 2 * N, tiles.folded), dtype)
    copy(dh, dlast)
    for block in range(len(before) - 1, -1, -1):
        start = block * STEPS
        steps = min(STEPS, T - start)
        for b in range(B):
            _inputs(u, features, start, steps, b, dt_rI, dt_bias, raw, step, written, wr)
            _back_through_gate(kept, xz, start, steps, b, dout, written, dy, dxz, shared)
            recur_back(
                initial, reset[start:, b], steps, rate, step, written, wr, before[block, b], dy, shared, factors, left,
                parts, dh[b], dinitial, dstep, da, dwritten, dwr, tiles,
            )  # fmt: skip
            _back_to_features(
                u, features, start, steps, b, raw, step, dt_rI, skip, dy, dstep, dwritten, dwr, ddt, du, dfeatures,
                ddt_rI, ddt_bias, dskip,
            )  # fmt: skip
    for i in range(I):
        for n in range(N):
            da_log[i, n] = da[n, i] * a[n, i]
        for q in range(len(dt_rI)):
            ddt_weight[i, q] = ddt_rI[q, i]
