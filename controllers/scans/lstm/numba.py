"""The LSTM over time on CPUs, compiled by numba; `scans.lstm.cell` has the equations.

As in `scans.gru.numba`, one kernel has the whole scan and another the way back with the gradients of the weights, which
computes

    do = dh' tanh(c') o (1 - o)     dc' += dh' o (1 - tanh(c')^2)
    di = dc' g i (1 - i)     df = dc' c f (1 - f)     dg = dc' i (1 - g^2)
    dh = U^T (di, df, dg, do)     dc = f dc'

Axis letters: T steps (K of one span, S at once), B environments, D input features, H hidden units, G = 4H gates.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mneme.controllers.scans.gated import WeightSums, add_weight_gradients, inputs_apart
from mneme.controllers.scans.lstm.cell import LstmParameters, LstmState
from mneme.controllers.scans.machine_code import add, arrays, compiled, copy, fma, in_arrays, kernel, scratch, sigmoid
from mneme.controllers.scans.products import multiply, padded, panels
from mneme.controllers.scans.resets import gradient_stops


class _Weights(NamedTuple):
    """Weights that all steps of the forward kernel share."""

    initial: LstmState  # [H] each
    recurrent: Any  # panels of [H, G]
    of_input: Any  # panels of [D, G]
    bias: Any  # [G]


class _Trace(NamedTuple):
    """Values that the forward kernel keeps for the backward kernel."""

    gates: Any  # [K, B, G] i, f, g and o, or empty if nothing is to be kept
    tanh_c: Any  # [K, B, H] likewise
    states: LstmState  # [K + 1, B, H] each, the one before the span first


def numba_lstm_scan(
    x_TBD: Tensor,
    reset_TB: Tensor,
    state: LstmState,
    initial: LstmState,
    p: LstmParameters,
    cut_TB: Tensor | None = None,
) -> tuple[Tensor, LstmState]:
    """`scans.lstm.scan.lstm_scan`."""
    if torch.is_grad_enabled():
        y_TBH, h_BH, c_BH = _LstmScan.apply(x_TBD, reset_TB, gradient_stops(reset_TB, cut_TB), *state, *initial, *p)
        return y_TBH, LstmState(h_BH, c_BH)
    states, _, _ = _run(x_TBD, reset_TB, state, initial, p, keep=False)
    return states.h[1:], LstmState(states.h[-1].clone(), states.c[-1].clone())


class LstmStepper:
    """Steps without autograd, for which the weights are laid out once; they must not change meanwhile."""

    def __init__(self, initial: LstmState, p: LstmParameters) -> None:
        self._weights, self._lanes = _laid_out(initial, p), -1

    def __call__(self, x_BD: Tensor, reset_B: Tensor, state: LstmState) -> LstmState:
        """The next states, [B, D], bool [B], [B, H] each -> [B, H] each, which are good until the next call."""
        h_BH = state.h
        if len(h_BH) != self._lanes:
            self._lanes, self._states = len(h_BH), LstmState(*h_BH.new_empty(2, 2, *h_BH.shape))
            (self._given,), self._room = scratch(h_BH, (1, len(h_BH), 0)), _room(h_BH)
            gates, tanh_c = arrays(h_BH.new_empty(0, 0, 0), h_BH.new_empty(0, 0, 0))
            self._trace = _Trace(gates, tanh_c, in_arrays(self._states))
        for (before_BH, _), value_BH in zip(self._states, state, strict=True):
            before_BH.copy_(value_BH)
        x, reset = arrays(x_BD, reset_B)
        _forward(x[None], self._given, reset[None], self._weights, self._trace, *self._room)
        return LstmState(self._states.h[1], self._states.c[1])


def _run(
    x_TBD: Tensor, reset_TB: Tensor, state: LstmState, initial: LstmState, p: LstmParameters, keep: bool
) -> tuple[LstmState, Tensor, Tensor]:
    """States [T + 1, B, H], the incoming one first; if `keep`, i, f, g, o [T, B, G] and tanh(c') [T, B, H]."""
    (T, B), H, new = reset_TB.shape, state.h.shape[1], state.h.new_empty
    states, kept = LstmState(*new(2, T + 1, B, H)), T if keep else 0
    for all_steps, first in zip(states, state, strict=True):
        all_steps[0] = first
    gates_TBG, tanh_c_TBH = new(kept, B, 4 * H), new(kept, B, H)
    gates, tanh_c, *inputs = arrays(gates_TBG, tanh_c_TBH, *inputs_apart(x_TBD, p.w_ih, state.h), reset_TB)
    trace = _Trace(gates, tanh_c, in_arrays(states))
    _forward(*inputs, _laid_out(initial, p), trace, *_room(state.h))
    return states, gates_TBG, tanh_c_TBH


def _laid_out(initial: LstmState, p: LstmParameters) -> _Weights:
    w_ih, w_hh, b_ih, b_hh = arrays(*p)
    return _Weights(in_arrays(initial), panels(w_hh.T, range(4)), panels(w_ih.T, range(4)), b_ih + b_hh)


def _room(h_BH: Tensor) -> tuple[np.ndarray, ...]:
    """Room for the forward kernel to work in."""
    B, H = h_BH.shape
    return scratch(h_BH, (B, 4 * padded(H, h_BH.dtype)), (B, H), (4 * H,), (H,))


class _LstmScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_TBD: Tensor, reset_TB: Tensor, stop_TB: Tensor, *rest: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        state, initial, p = LstmState(*rest[:2]), LstmState(*rest[2:4]), LstmParameters(*rest[4:])
        states, gates_TBG, tanh_c_TBH = _run(x_TBD, reset_TB, state, initial, p, keep=True)
        ctx.save_for_backward(x_TBD, reset_TB, stop_TB, *initial, p.w_ih, p.w_hh, *states, gates_TBG, tanh_c_TBH)
        return states.h[1:], states.h[-1].clone(), states.c[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_TBH: Tensor, dh_BH: Tensor, dc_BH: Tensor) -> tuple[Tensor | None, ...]:
        x_TBD, reset_TB, stop_TB, initial_h, initial_c, w_ih, w_hh, h_SBH, c_SBH, *kept = ctx.saved_tensors
        weights = WeightSums(x_TBD, reset_TB, initial_h, w_ih, w_hh, sums=4, with_dx=ctx.needs_input_grad[0])
        d_SBG = w_hh.new_empty(weights.at_once, *kept[0].shape[1:])
        dstate = LstmState(*(value.clone(memory_format=torch.contiguous_format) for value in (dh_BH, dc_BH)))
        dinitial = LstmState(torch.zeros_like(initial_h), torch.zeros_like(initial_c))
        initial, (weights_of_h, d) = in_arrays(LstmState(initial_h, initial_c)), arrays(w_hh, d_SBG)
        recurrent = panels(weights_of_h)
        (room,) = scratch(w_hh, (len(dh_BH), recurrent.shape[0] * recurrent.shape[2]))
        gradients = in_arrays(dstate), in_arrays(dinitial)
        for start, stop in reversed(weights.spans):
            flags = arrays(reset_TB[start:stop], stop_TB[start:stop])
            gates, tanh_c, dy = arrays(*(x[start:stop] for x in (*kept, dy_TBH)))
            trace = _Trace(gates, tanh_c, in_arrays(LstmState(h_SBH[start : stop + 1], c_SBH[start : stop + 1])))
            _backward(*flags, initial, recurrent, trace, dy, d, *gradients, weights.arrays, room)
            weights.add_apart(start, stop, h_SBH[start:stop], d_SBG[: stop - start])
        dw_ih, dw_hh, db, _ = weights.of_parameters()
        return weights.dx_TBD, None, None, *dstate, *dinitial, dw_ih, dw_hh, db, db


@kernel
def _forward(x, given, reset, weights, trace, sums, before, unkept, unkept_tanh):
    (T, B), H, D, keep = reset.shape, before.shape[1], x.shape[2], len(trace.gates) > 0
    h, c, P = trace.states.h, trace.states.c, len(weights.recurrent)
    row = P // 4 * weights.recurrent.shape[2]
    for t in range(T):
        for b in range(B):
            copy(before[b], weights.initial.h if reset[t, b] else h[t, b])
        multiply(before, 0, H, weights.recurrent, 0, P, sums, 0, False)
        if D:
            multiply(x[t], 0, D, weights.of_input, 0, P, sums, 0, True)
        for b in range(B):
            if not D:
                for gate in range(4):
                    add(sums[b, gate * row : gate * row + H], given[t, b, gate * H : gate * H + H])
            c_before = weights.initial.c if reset[t, b] else c[t, b]
            gates, tanh_c = (trace.gates[t, b], trace.tanh_c[t, b]) if keep else (unkept, unkept_tanh)
            _update(c_before, sums[b], row, weights.bias, gates, tanh_c, h[t + 1, b], c[t + 1, b])


@compiled
def _update(c, sums, row, bias, gates, tanh_c, h_after, c_after):
    """One environment's step, from the products of its state and input, which lie `row` apart from gate to gate."""
    H = len(c)
    one, two = c.dtype.type(1), c.dtype.type(2)
    for j in range(H):
        i = sigmoid(sums[j] + bias[j])
        f = sigmoid(sums[row + j] + bias[H + j])
        g = two * sigmoid(two * (sums[2 * row + j] + bias[2 * H + j])) - one
        o = sigmoid(sums[3 * row + j] + bias[3 * H + j])
        gates[j], gates[H + j], gates[2 * H + j], gates[3 * H + j] = i, f, g, o
        new = fma(f, c[j], i * g)
        tanh = two * sigmoid(two * new) - one
        tanh_c[j], c_after[j], h_after[j] = tanh, new, o * tanh


@kernel
def _backward(reset, stop, initial, recurrent, trace, dy, d, dstate, dinitial, adding, through_gates):
    """`dstate` goes from after the span to before it; d [S, B, G] are the gradients of the gates' sums."""
    (K, B), S, D, (P, G, _), zero = reset.shape, len(d), adding.x.shape[2], recurrent.shape, d.dtype.type(0)
    dh, dc, H = dstate.h, dstate.c, dstate.h.shape[1]
    for t in range(K - 1, -1, -1):
        d_sums = d[t % S]
        for b in range(B):
            add(dh[b], dy[t, b])
            c_before = initial.c if reset[t, b] else trace.states.c[t, b]
            _update_back(dh[b], dc[b], trace.gates[t, b], trace.tanh_c[t, b], c_before, d_sums[b])
        if not stop[t].all() or reset[t].any():
            multiply(d_sums, 0, G, recurrent, 0, P, through_gates, 0, False)
        for b in range(B):
            if reset[t, b] or not stop[t, b]:
                copy(dh[b], through_gates[b, :H])
            if reset[t, b]:
                add(dinitial.h, dh[b])
                add(dinitial.c, dc[b])
            if stop[t, b]:
                dh[b], dc[b] = zero, zero
        if D and t % S == 0:
            add_weight_gradients(t, min(t + S, K), reset, initial.h, trace.states.h, d, adding)


@compiled
def _update_back(dh, dc, gates, tanh_c, c_before, d):
    """Back through one environment's step: dc [H] is the gradient of c', and becomes that of c."""
    H = len(dh)
    one = dh.dtype.type(1)
    for j in range(H):
        i, f, g, o = gates[j], gates[H + j], gates[2 * H + j], gates[3 * H + j]
        d_c = dc[j] + dh[j] * o * (one - tanh_c[j] * tanh_c[j])
        d[j] = d_c * g * i * (one - i)
        d[H + j] = d_c * c_before[j] * f * (one - f)
        d[2 * H + j] = d_c * i * (one - g * g)
        d[3 * H + j] = dh[j] * tanh_c[j] * o * (one - o)
        dc[j] = d_c * f
