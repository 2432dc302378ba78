"""The bistable recurrent cell over time on CPUs, compiled by numba; `scans.nbrc.cell` has the equations.

As in `scans.gru.numba`, one kernel has the whole scan and another the way back with the gradients of the weights. The
sums of a step lie in the order a, c, n: states contribute to the first two, inputs to all. Backward, with
h' - n = c (h - n) and 1 - tanh^2 = a (2 - a), it computes

    dn = dh' (1 - c) (1 - n^2)     da = dn h a (2 - a)     dc = dh' (h' - n) (1 - c)
    dh = c dh' + a dn + W_a^T da + W_c^T dc

Axis letters: T steps (K of one span, S at once), B environments, D input features, H hidden units, G = 3H sums, or the
2H that states contribute to.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mneme.controllers.scans.gated import add_weight_gradients
from mneme.controllers.scans.machine_code import add, arrays, compiled, copy, fma, kernel, sigmoid
from mneme.controllers.scans.nbrc.cell import NbrcParameters
from mneme.controllers.scans.one_state import Saved, Stepper, run, run_back
from mneme.controllers.scans.products import multiply, panels
from mneme.controllers.scans.resets import scan_with_stops


class _Weights(NamedTuple):
    """Weights that all steps of the forward kernel share."""

    initial: Any  # [H]
    recurrent: Any  # panels of [H, G] for a, c, or none
    own: Any  # [G] for a, c of each unit's own state, or empty
    of_input: Any  # panels of [D, G] for a, c, n
    bias: Any  # [G] of a, c


def numba_nbrc_scan(
    x_TBD: Tensor, reset_TB: Tensor, h_BH: Tensor, initial_H: Tensor, p: NbrcParameters, cut_TB: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`scans.nbrc.scan.nbrc_scan`."""
    return scan_with_stops(_NbrcScan, _run, x_TBD, reset_TB, h_BH, initial_H, p, cut_TB)


def nbrc_stepper(initial_H: Tensor, p: NbrcParameters) -> Stepper:
    """Steps with these weights."""
    return Stepper(_forward, _laid_out(initial_H, p), sums=3)


def _run(
    x_TBD: Tensor, reset_TB: Tensor, h_BH: Tensor, initial_H: Tensor, p: NbrcParameters, keep: bool
) -> tuple[Tensor, Tensor]:
    """`one_state.run`; the sums are a, c and n."""
    return run(_forward, _laid_out(initial_H, p), x_TBD, reset_TB, h_BH, p.w_ih, sums=3, keep=keep)


def _laid_out(initial_H: Tensor, p: NbrcParameters) -> _Weights:
    shared, own = _apart(p, initial_H)
    initial, w_ih, w_hh, of_itself, bias = arrays(initial_H, p.w_ih, shared, own, p.bias)
    return _Weights(initial, panels(w_hh.T, range(2)), of_itself, panels(w_ih.T, range(3)), bias)


def _apart(p: NbrcParameters, like_H: Tensor) -> tuple[Tensor, Tensor]:
    """The states' weights as [G, H] that units share and as [G] of each one's own, of which one has no numbers."""
    return (p.w_hh.new_empty(0, len(like_H)), p.w_hh) if p.cellular else (p.w_hh, p.w_hh.new_empty(0))


class _NbrcScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_TBD: Tensor, reset_TB: Tensor, stop_TB: Tensor, h_BH: Tensor, initial_H: Tensor, *p: Tensor
    ) -> tuple[Tensor, Tensor]:
        parameters = NbrcParameters(*p)
        shared, own = _apart(parameters, initial_H)
        h_SBH, sums_TBG = _run(x_TBD, reset_TB, h_BH, initial_H, parameters, keep=True)
        ctx.save_for_backward(x_TBD, reset_TB, stop_TB, initial_H, parameters.w_ih, shared, h_SBH, sums_TBG, own)
        return h_SBH[1:], h_SBH[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_TBH: Tensor, dlast_BH: Tensor) -> tuple[Tensor | None, ...]:
        *kept, own = ctx.saved_tensors
        saved, down = Saved(*kept), torch.zeros_like(own)
        w_hh, of_itself, d_of_itself = arrays(saved.w_hh, own, down)
        recurrent = panels(w_hh if len(w_hh) else w_hh[:, :0])
        weights, dh_BH, dinitial_H = run_back(
            _backward, saved, recurrent, dy_TBH, dlast_BH, ctx.needs_input_grad[0], of_itself, d_of_itself
        )
        dw_ih, dw_hh, db, _ = weights.of_parameters()
        dbias = db[: 2 * len(dinitial_H)]
        return weights.dx_TBD, None, None, dh_BH, dinitial_H, dw_ih, down if len(own) else dw_hh, dbias


@kernel
def _forward(x, given, reset, weights, trace, sums, before, unkept):
    (T, B), H, D, keep = reset.shape, len(weights.initial), x.shape[2], len(trace.sums) > 0
    P = len(weights.of_input) // 3  # panels of a gate
    row = P * weights.of_input.shape[2]
    for t in range(T):
        for b in range(B):
            copy(before[b], weights.initial if reset[t, b] else trace.h[t, b])
            if len(weights.own):
                _of_own(before[b], weights.own, row, sums[b])
        multiply(before, 0, H, weights.recurrent, 0, len(weights.recurrent), sums, 0, False)
        if D:
            multiply(x[t], 0, D, weights.of_input, 0, 2 * P, sums, 0, True)
            multiply(x[t], 0, D, weights.of_input, 2 * P, 3 * P, sums, 2 * row, False)
        for b in range(B):
            if not D:
                _add_given(given[t, b], row, sums[b])
            _update(before[b], sums[b], row, weights.bias, trace.sums[t, b] if keep else unkept, trace.h[t + 1, b])


@compiled
def _of_own(before, own, row, sums):
    """What one environment's state contributes to a and c where a unit's gates read its own state alone."""
    H = len(before)
    for i in range(H):
        sums[i], sums[row + i] = own[i] * before[i], own[H + i] * before[i]


@compiled
def _add_given(given, row, sums):
    """What inputs contribute to a, c, n, [G], to one environment's sums."""
    H = len(given) // 3
    for i in range(H):
        sums[i] += given[i]
        sums[row + i] += given[H + i]
        sums[2 * row + i] = given[2 * H + i]


@compiled
def _update(before, sums, row, bias, kept, after):
    """One environment's step, from the products of its state and input, which lie `row` apart from gate to gate."""
    H = len(before)
    one, two = before.dtype.type(1), before.dtype.type(2)
    for i in range(H):
        a = two * sigmoid(two * (sums[i] + bias[i]))
        c = sigmoid(sums[row + i] + bias[H + i])
        n = two * sigmoid(two * (sums[2 * row + i] + a * before[i])) - one
        kept[i], kept[H + i], kept[2 * H + i] = a, c, n
        after[i] = n + c * (before[i] - n)


@kernel
def _backward(reset, stop, initial, recurrent, trace, dy, d, adding, through_gates, own, d_own):
    (K, B), S, D, H = reset.shape, len(d.sums), adding.x.shape[2], len(initial)
    for t in range(K - 1, -1, -1):
        d_sums = d.sums[t % S]
        for b in range(B):
            before = initial if reset[t, b] else trace.h[t, b]
            add(d.h[b], dy[t, b])
            _update_back(d.h[b], trace.sums[t, b], before, trace.h[t + 1, b], d_sums[b])
            if len(own):
                _of_own_back(d_sums[b], before, own, through_gates[b], d_own)
        if not stop[t].all() or reset[t].any():
            multiply(d_sums, 0, 2 * H, recurrent, 0, len(recurrent), through_gates, 0, False)
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
def _update_back(dh, sums, before, after, d):
    """Back through one environment's step: dh [H] is the gradient of h', and becomes that of h past the gates."""
    H = len(dh)
    one, two = dh.dtype.type(1), dh.dtype.type(2)
    for i in range(H):
        a, c, n = sums[i], sums[H + i], sums[2 * H + i]
        fresh = one - c
        d_n = dh[i] * fresh * (one - n * n)
        d[i] = d_n * before[i] * a * (two - a)
        d[H + i], d[2 * H + i] = dh[i] * (after[i] - n) * fresh, d_n
        dh[i] = fma(c, dh[i], a * d_n)


@compiled
def _of_own_back(d, before, own, through_gates, d_own):
    """Back through `_of_own`: what comes to the state, [H], and to the weights, [G], which are added to."""
    H = len(before)
    for i in range(H):
        through_gates[i] = fma(own[i], d[i], own[H + i] * d[H + i])
        d_own[i] += d[i] * before[i]
        d_own[H + i] += d[H + i] * before[i]
