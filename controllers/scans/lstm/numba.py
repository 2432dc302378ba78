"""The LSTM over time on CPUs, compiled by numba; `scans.lstm.cell` has the equations.

An update of the preset for delayed cue, collecting and learning, is 1.35 times as fast with it as with
`scans.lstm.torch` (`python -m benchmarks.backends`, two threads of a Zen 3).

As in `scans.gru.numba`, torch has the products with all steps of a block, and the kernels have the loop over its steps.
Backward, that loop computes

    do = dh' tanh(c') o (1 - o)     dc' += dh' o (1 - tanh(c')^2)
    di = dc' g i (1 - i)     df = dc' c f (1 - f)     dg = dc' i (1 - g^2)
    dh = U^T (di, df, dg, do)     dc = f dc'

Axis letters: T steps (K of one block, S = T + 1 states), B environments, D input features, H hidden units,
G = 4H gates.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mneme.controllers.precision import wide
from mneme.controllers.scans.blocks import blocks
from mneme.controllers.scans.lstm.cell import LstmParameters, LstmState
from mneme.controllers.scans.machine_code import add, arrays, compiled, copy, fma, in_arrays, kernel, scratch, sigmoid
from mneme.controllers.scans.products import multiply, panels
from mneme.controllers.scans.resets import gradient_stops
from mneme.controllers.scans.weight_gradients import WeightGradients


class _Weights(NamedTuple):
    """Weights that all steps of the forward kernel share."""

    initial: LstmState  # [H] each
    recurrent: Any  # [P, H, W] panels of [H, G]
    bias: Any  # [G]


class _Trace(NamedTuple):
    """Values of a block that the forward kernel keeps for the backward kernel."""

    gates: Any  # [K, B, G] the input's contribution before the kernel, i, f, g and o after it
    tanh_c: Any  # [K, B, H] or empty, if nothing is to be kept
    states: LstmState  # [K + 1, B, H] each, the one before the block first


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
    states, _ = _run(x_TBD, reset_TB, state, initial, p, keep=False)
    return states.h[1:], LstmState(states.h[-1].clone(), states.c[-1].clone())


def _run(
    x_TBD: Tensor, reset_TB: Tensor, state: LstmState, initial: LstmState, p: LstmParameters, keep: bool
) -> tuple[LstmState, list[Tensor]]:
    """States [T + 1, B, H], the incoming one first; if `keep`, i, f, g, o [K, B, G] and tanh(c') [K, B, H] of each
    block."""
    T, B, D = x_TBD.shape
    H = state.h.shape[1]
    w_ih = p.w_ih.to(x_TBD.dtype)
    weights = _Weights(in_arrays(initial), *arrays(panels(p.w_hh.t()), p.b_ih + p.b_hh))
    states, kept = LstmState(*state.h.new_empty(2, T + 1, B, H)), []
    for all_steps, first in zip(states, state, strict=True):
        all_steps[0] = first
    P, _, W = weights.recurrent.shape
    room = scratch(state.h, (B, P * W), (B, H), (H,))
    for start, stop in blocks(T, B):
        gates_KBG = wide(x_TBD[start:stop].reshape(-1, D) @ w_ih.t()).view(-1, B, 4 * H)
        tanh_c_KBH = state.h.new_empty(len(gates_KBG) if keep else 0, B, H)
        (reset,) = arrays(reset_TB[start:stop])
        _forward(reset, weights, _trace(gates_KBG, tanh_c_KBH, states, start, stop), *room)
        kept += [gates_KBG, tanh_c_KBH] if keep else []
    return states, kept


def _trace(gates_KBG: Tensor, tanh_c_KBH: Tensor, states: LstmState, start: int, stop: int) -> _Trace:
    gates, tanh_c = arrays(gates_KBG, tanh_c_KBH)
    return _Trace(gates, tanh_c, in_arrays(LstmState(*(value[start : stop + 1] for value in states))))


class _LstmScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_TBD: Tensor, reset_TB: Tensor, stop_TB: Tensor, *rest: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        state, initial, p = LstmState(*rest[:2]), LstmState(*rest[2:4]), LstmParameters(*rest[4:])
        states, kept = _run(x_TBD, reset_TB, state, initial, p, keep=True)
        ctx.save_for_backward(x_TBD, reset_TB, stop_TB, *initial, p.w_ih, p.w_hh, *states, *kept)
        return states.h[1:], states.h[-1].clone(), states.c[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_TBH: Tensor, dh_BH: Tensor, dc_BH: Tensor) -> tuple[Tensor | None, ...]:
        x_TBD, reset_TB, stop_TB, initial_h, initial_c, w_ih, w_hh, h_SBH, c_SBH, *kept = ctx.saved_tensors
        states, spans = LstmState(h_SBH, c_SBH), blocks(*reset_TB.shape)
        shared = WeightGradients(x_TBD, reset_TB, initial_h, w_ih, w_hh, ctx.needs_input_grad[0])
        scratch_KBG = w_hh.new_empty(spans[0][1], reset_TB.shape[1], len(w_hh))
        dstate = LstmState(*(value.clone(memory_format=torch.contiguous_format) for value in (dh_BH, dc_BH)))
        dinitial = LstmState(torch.zeros_like(initial_h), torch.zeros_like(initial_c))
        gradients = in_arrays(dstate), in_arrays(dinitial)
        given = arrays(initial_c, panels(w_hh))
        room = scratch(w_hh, (reset_TB.shape[1], given[1].shape[0] * given[1].shape[2]))
        for (start, stop), gates_KBG, tanh_c_KBH in reversed(list(zip(spans, kept[::2], kept[1::2], strict=True))):
            d_KBG = scratch_KBG[: stop - start]
            flags = arrays(reset_TB[start:stop], stop_TB[start:stop])
            dy, d = arrays(dy_TBH[start:stop], d_KBG)
            _backward(*flags, *given, _trace(gates_KBG, tanh_c_KBH, states, start, stop), dy, d, *gradients, *room)
            shared.add(start, stop, h_SBH[start:stop], d_KBG, d_KBG)
        return shared.dx_TBD, None, None, *dstate, *dinitial, *shared.of_parameters()


@kernel
def _forward(reset, weights, trace, from_h, before, unkept):
    (K, B, _), keep, h, c = trace.gates.shape, len(trace.tanh_c) > 0, trace.states.h, trace.states.c
    for t in range(K):
        for b in range(B):
            copy(before[b], weights.initial.h if reset[t, b] else h[t, b])
        multiply(before, weights.recurrent, from_h)
        for b in range(B):
            c_before = weights.initial.c if reset[t, b] else c[t, b]
            tanh_c = trace.tanh_c[t, b] if keep else unkept
            _update(c_before, from_h[b], weights.bias, trace.gates[t, b], tanh_c, h[t + 1, b], c[t + 1, b])


@compiled
def _update(c, from_h, bias, gates, tanh_c, h_after, c_after):
    """One environment's step: `gates` [G] is the input's contribution, and becomes i, f, g, o."""
    H = len(c)
    one, two = c.dtype.type(1), c.dtype.type(2)
    for j in range(H):
        i = sigmoid(gates[j] + bias[j] + from_h[j])
        f = sigmoid(gates[H + j] + bias[H + j] + from_h[H + j])
        g = two * sigmoid(two * (gates[2 * H + j] + bias[2 * H + j] + from_h[2 * H + j])) - one
        o = sigmoid(gates[3 * H + j] + bias[3 * H + j] + from_h[3 * H + j])
        gates[j], gates[H + j], gates[2 * H + j], gates[3 * H + j] = i, f, g, o
        new = fma(f, c[j], i * g)
        tanh = two * sigmoid(two * new) - one
        tanh_c[j], c_after[j], h_after[j] = tanh, new, o * tanh


@kernel
def _backward(reset, stop, initial_c, recurrent, trace, dy, d, dstate, dinitial, through_gates):
    """Fill d [K, B, G], the gradients of the gates' sums; `dstate` goes from after the block to before it."""
    (K, B, _), zero, dh, dc = trace.gates.shape, d.dtype.type(0), dstate.h, dstate.c
    for t in range(K - 1, -1, -1):
        for b in range(B):
            add(dh[b], dy[t, b])
            c_before = initial_c if reset[t, b] else trace.states.c[t, b]
            _update_back(dh[b], dc[b], trace.gates[t, b], trace.tanh_c[t, b], c_before, d[t, b])
        if not stop[t].all() or reset[t].any():
            multiply(d[t], recurrent, through_gates)
        for b in range(B):
            if reset[t, b] or not stop[t, b]:
                copy(dh[b], through_gates[b, : dh.shape[1]])
            if reset[t, b]:
                add(dinitial.h, dh[b])
                add(dinitial.c, dc[b])
            if stop[t, b]:
                dh[b], dc[b] = zero, zero


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
