"""The GRU over time on CPUs, compiled by numba; `scans.gru.cell` has the equations.

One kernel has the whole scan, and another the way back with the gradients of the weights, so that Python's lock is free
for as long. The four sums of a step lie side by side in the order m = U_n h + c_n, r, z, n: states contribute to the
first three, inputs to the last three. Backward, with h' - n = z (h - n), it computes

    dn = dh' (1 - z) (1 - n^2)     dm = r dn     dr = dn m r (1 - r)     dz = dh' (h' - n) (1 - z)
    dh = z dh' + U_r^T dr + U_z^T dz + U_n^T dm

Axis letters: T steps (K of one span, S at once), B environments, D input features, H hidden units, G = 4H sums, or the
3H that inputs or states contribute to.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mneme.controllers.scans.gated import add_weight_gradients
from mneme.controllers.scans.gru.cell import GruParameters
from mneme.controllers.scans.machine_code import add, arrays, compiled, copy, kernel, sigmoid
from mneme.controllers.scans.one_state import Saved, Stepper, run, run_back
from mneme.controllers.scans.products import multiply, panels
from mneme.controllers.scans.resets import scan_with_stops


class _Weights(NamedTuple):
    """Weights that all steps of the forward kernel share."""

    initial: Any  # [H]
    recurrent: Any  # panels of [H, G] for m, r, z
    of_input: Any  # panels of [D, G] for r, z, n
    bias: Any  # [G]


def numba_gru_scan(
    x_TBD: Tensor, reset_TB: Tensor, h_BH: Tensor, initial_H: Tensor, p: GruParameters, cut_TB: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`scans.gru.scan.gru_scan`."""
    return scan_with_stops(_GruScan, _run, x_TBD, reset_TB, h_BH, initial_H, p, cut_TB)


def gru_stepper(initial_H: Tensor, p: GruParameters) -> Stepper:
    """Steps with these weights."""
    return Stepper(_forward, _laid_out(initial_H, p), sums=4)


def _run(
    x_TBD: Tensor, reset_TB: Tensor, h_BH: Tensor, initial_H: Tensor, p: GruParameters, keep: bool
) -> tuple[Tensor, Tensor]:
    """`one_state.run`; the sums are m, r, z and n."""
    return run(_forward, _laid_out(initial_H, p), x_TBD, reset_TB, h_BH, p.w_ih, sums=4, keep=keep)


def _laid_out(initial_H: Tensor, p: GruParameters) -> _Weights:
    initial, w_ih, w_hh, b_ih, b_hh = arrays(initial_H, *p)
    split = 2 * len(initial)
    bias = np.concatenate([b_hh[split:], b_ih[:split] + b_hh[:split], b_ih[split:]])
    return _Weights(initial, panels(w_hh.T, (2, 0, 1)), panels(w_ih.T, (0, 1, 2)), bias)


class _GruScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_TBD: Tensor, reset_TB: Tensor, stop_TB: Tensor, h_BH: Tensor, initial_H: Tensor, *p: Tensor
    ) -> tuple[Tensor, Tensor]:
        h_SBH, sums_TBG = _run(x_TBD, reset_TB, h_BH, initial_H, GruParameters(*p), keep=True)
        ctx.save_for_backward(x_TBD, reset_TB, stop_TB, initial_H, *p[:2], h_SBH, sums_TBG)
        return h_SBH[1:], h_SBH[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_TBH: Tensor, dlast_BH: Tensor) -> tuple[Tensor | None, ...]:
        saved = Saved(*ctx.saved_tensors)
        (w_hh,) = arrays(saved.w_hh)
        recurrent = panels(w_hh, first_row=2 * len(saved.initial_H))  # rows m, r, z
        weights, dh_BH, dinitial_H = run_back(_backward, saved, recurrent, dy_TBH, dlast_BH, ctx.needs_input_grad[0])
        return weights.dx_TBD, None, None, dh_BH, dinitial_H, *weights.of_parameters(first_gate=1)


@kernel
def _forward(x, given, reset, weights, trace, sums, before, unkept):
    (T, B), H, D, keep = reset.shape, len(weights.initial), x.shape[2], len(trace.sums) > 0
    P = len(weights.recurrent) // 3  # panels of a gate
    row = P * weights.recurrent.shape[2]
    for t in range(T):
        for b in range(B):
            copy(before[b], weights.initial if reset[t, b] else trace.h[t, b])
        multiply(before, 0, H, weights.recurrent, 0, 3 * P, sums, 0, False)
        if D:
            multiply(x[t], 0, D, weights.of_input, 0, 2 * P, sums, row, True)
            multiply(x[t], 0, D, weights.of_input, 2 * P, 3 * P, sums, 3 * row, False)
        for b in range(B):
            if not D:
                _add_given(given[t, b], row, sums[b])
            _update(before[b], sums[b], row, weights.bias, trace.sums[t, b] if keep else unkept, trace.h[t + 1, b])


@compiled
def _add_given(given, row, sums):
    """What inputs contribute to r, z, n, [G], to one environment's sums."""
    H = len(given) // 3
    for i in range(H):
        sums[row + i] += given[i]
        sums[2 * row + i] += given[H + i]
        sums[3 * row + i] = given[2 * H + i]


@compiled
def _update(before, sums, row, bias, kept, after):
    """One environment's step, from the products of its state and input, which lie `row` apart from gate to gate."""
    H = len(before)
    one, two = before.dtype.type(1), before.dtype.type(2)
    for i in range(H):
        m = sums[i] + bias[i]
        r = sigmoid(sums[row + i] + bias[H + i])
        z = sigmoid(sums[2 * row + i] + bias[2 * H + i])
        n = two * sigmoid(two * (sums[3 * row + i] + bias[3 * H + i] + r * m)) - one
        kept[i], kept[H + i], kept[2 * H + i], kept[3 * H + i] = m, r, z, n
        after[i] = n + z * (before[i] - n)


@kernel
def _backward(reset, stop, initial, recurrent, trace, dy, d, adding, through_gates):
    (K, B), S, D = reset.shape, len(d.sums), adding.x.shape[2]
    P, G, _ = recurrent.shape
    for t in range(K - 1, -1, -1):
        d_sums = d.sums[t % S]
        for b in range(B):
            add(d.h[b], dy[t, b])
            _update_back(d.h[b], trace.sums[t, b], trace.h[t + 1, b], d_sums[b])
        if not stop[t].all() or reset[t].any():
            multiply(d_sums, 0, G, recurrent, 0, P, through_gates, 0, False)
        for b in range(B):
            if reset[t, b] or not stop[t, b]:
                add(d.h[b], through_gates[b])
            if reset[t, b]:
                add(d.initial, d.h[b])
            if stop[t, b]:
                d.h[b] = d.h.dtype.type(0)
        if D and t % S == 0:
            add_weight_gradients(t, min(t + S, K), reset, initial, trace.h, d.sums, adding)


@compiled
def _update_back(dh, sums, after, d):
    """Back through one environment's step: dh [H] is the gradient of h', and becomes that of h past the gates."""
    H = len(dh)
    one = dh.dtype.type(1)
    for i in range(H):
        m, r, z, n = sums[i], sums[H + i], sums[2 * H + i], sums[3 * H + i]
        fresh = one - z
        d_n = dh[i] * fresh * (one - n * n)
        d[i], d[H + i] = d_n * r, d_n * m * r * (one - r)
        d[2 * H + i], d[3 * H + i] = dh[i] * (after[i] - n) * fresh, d_n
        dh[i] *= z
