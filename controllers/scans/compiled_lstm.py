"""An LSTM over time on a CPU, compiled: the loop over steps between the products that all steps share.

The equations are those of `scans.lstm`. Backward, dL/dh' and dL/dc' go from step to step:

    do = dh' tanh(c') o (1 - o)     dc' += dh' o (1 - tanh(c')^2)
    di = dc' g i (1 - i)     df = dc' c f (1 - f)     dg = dc' i (1 - g^2)
    dh = U^T (di, df, dg, do)     dc = f dc'

Axis letters: T time (K of one block), B lanes, D input features, H hidden, G = 4H gates.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mneme.controllers.products import product
from mneme.controllers.scans.blocks import blocks
from mneme.controllers.scans.compiled import add, arrays, compiled, copy, kernel, sigmoid
from mneme.controllers.scans.compiled_product import multiply, panels
from mneme.controllers.scans.lstm import LstmParameters, LstmState
from mneme.controllers.scans.tiles import product_tiles
from mneme.controllers.scans.weight_gradients import WeightGradients


def compiled_lstm_scan(
    x_TBD: Tensor, reset_TB: Tensor, state: LstmState, initial: LstmState, p: LstmParameters
) -> tuple[Tensor, LstmState]:
    """`lstm_scan` on a CPU."""
    if torch.is_grad_enabled():
        y_TBH, h_BH, c_BH = _CompiledLstm.apply(x_TBD, reset_TB, *state, *initial, *p)
        return y_TBH, LstmState(h_BH, c_BH)
    states, _ = _run(x_TBD, reset_TB, state, initial, p, keep=False)
    return states.h[1:], LstmState(states.h[-1].clone(), states.c[-1].clone())


def _run(
    x_TBD: Tensor, reset_TB: Tensor, state: LstmState, initial: LstmState, p: LstmParameters, keep: bool
) -> tuple[LstmState, list[Tensor]]:
    """States [T + 1, B, H], the incoming one first; and if `keep` for each block i, f, g, o [K, B, G] and tanh(c')
    [K, B, H]."""
    T, B, D = x_TBD.shape
    H = state.h.shape[1]
    tiles = product_tiles(B, H, state.h.dtype)
    given = arrays(*initial, panels(p.w_hh.t(), tiles), p.b_ih + p.b_hh)
    states, kept = LstmState(*state.h.new_empty(2, T + 1, B, H)), []
    for all_steps, first in zip(states, state, strict=True):
        all_steps[0] = first
    for start, stop in blocks(T, B):
        gates_KBG = product(x_TBD[start:stop].reshape(-1, D), p.w_ih.t()).view(-1, B, 4 * H)
        shown_KBH = state.h.new_empty(len(gates_KBG) if keep else 0, B, H)
        reset, gates, shown = arrays(reset_TB[start:stop], gates_KBG, shown_KBH)
        _forward(reset, *given, gates, shown, *arrays(*(value[start : stop + 1] for value in states)), tiles)
        kept += [gates_KBG, shown_KBH] if keep else []
    return states, kept


class _CompiledLstm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TBD: Tensor, reset_TB: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        state, initial, p = LstmState(*rest[:2]), LstmState(*rest[2:4]), LstmParameters(*rest[4:])
        states, kept = _run(x_TBD, reset_TB, state, initial, p, keep=True)
        ctx.save_for_backward(x_TBD, reset_TB, *initial, p.w_ih, p.w_hh, *states, *kept)
        return states.h[1:], states.h[-1].clone(), states.c[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_TBH: Tensor, dh_BH: Tensor, dc_BH: Tensor) -> tuple[Tensor | None, ...]:
        x_TBD, reset_TB, initial_h, initial_c, w_ih, w_hh, h_SBH, c_SBH, *kept = ctx.saved_tensors
        _, B, H = h_SBH.shape
        tiles, spans = product_tiles(B, H, w_hh.dtype), blocks(*reset_TB.shape)
        shared = WeightGradients(x_TBD, reset_TB, initial_h, w_ih, w_hh, ctx.needs_input_grad[0])
        room_KBG = w_hh.new_empty(spans[0][1], B, 4 * H)
        dstate = tuple(value.clone(memory_format=torch.contiguous_format) for value in (dh_BH, dc_BH))
        dinitial = torch.zeros_like(initial_h), torch.zeros_like(initial_c)
        given = arrays(initial_c, panels(w_hh, tiles))
        for (start, stop), gates_KBG, shown_KBH in reversed(list(zip(spans, kept[::2], kept[1::2], strict=True))):
            d_KBG = room_KBG[: stop - start]
            block = arrays(reset_TB[start:stop], gates_KBG, shown_KBH, c_SBH[start:stop], dy_TBH[start:stop])
            _backward(*given, *block, *arrays(d_KBG, *dstate, *dinitial), tiles)
            shared.add(start, stop, h_SBH[start:stop], d_KBG, d_KBG)
        return shared.dx_TBD, None, *dstate, *dinitial, *shared.of_parameters()


@compiled
def _update(c, of_h, bias, gates, shown, keep, h_out, c_out):
    """A lane's step: gates [G] go in as what the input says, and come out as i, f, g, o."""
    H = len(c)
    one, two = c.dtype.type(1), c.dtype.type(2)
    for j in range(H):
        i = sigmoid(gates[j] + bias[j] + of_h[j])
        f = sigmoid(gates[H + j] + bias[H + j] + of_h[H + j])
        g = two * sigmoid(two * (gates[2 * H + j] + bias[2 * H + j] + of_h[2 * H + j])) - one
        o = sigmoid(gates[3 * H + j] + bias[3 * H + j] + of_h[3 * H + j])
        gates[j], gates[H + j], gates[2 * H + j], gates[3 * H + j] = i, f, g, o
        new = f * c[j] + i * g
        tanh = two * sigmoid(two * new) - one
        if keep:
            shown[j] = tanh
        c_out[j], h_out[j] = new, o * tanh


@kernel
def _forward(reset, initial_h, initial_c, weight, bias, gates, shown, h, c, tiles):
    (K, B, G), H, keep = gates.shape, len(initial_h), len(shown) > 0
    of_h, h_in, unused = np.empty((B, G), h.dtype), np.empty((B, H), h.dtype), np.empty(H, h.dtype)
    for t in range(K):
        for b in range(B):
            copy(h_in[b], initial_h if reset[t, b] else h[t, b])
        multiply(h_in, weight, of_h, tiles)
        for b in range(B):
            c_in, shown_t = initial_c if reset[t, b] else c[t, b], shown[t, b] if keep else unused
            _update(c_in, of_h[b], bias, gates[t, b], shown_t, keep, h[t + 1, b], c[t + 1, b])


@compiled
def _slopes(dh, dc, gates, shown, c, d):
    """A lane's slopes of the gates' sums, d [G]; dc [H] goes in as the slope of the step's memory but through what is
    shown of it, and comes out as that of the memory before."""
    H = len(dh)
    one = dh.dtype.type(1)
    for j in range(H):
        i, f, g, o = gates[j], gates[H + j], gates[2 * H + j], gates[3 * H + j]
        d_c = dc[j] + dh[j] * o * (one - shown[j] * shown[j])
        d[j] = d_c * g * i * (one - i)
        d[H + j] = d_c * c[j] * f * (one - f)
        d[2 * H + j] = d_c * i * (one - g * g)
        d[3 * H + j] = dh[j] * shown[j] * o * (one - o)
        dc[j] = d_c * f


@kernel
def _backward(initial_c, weight, reset, gates, shown, c, dy, d, dh, dc, dinitial_h, dinitial_c, tiles):
    (K, B, _), zero = gates.shape, dh.dtype.type(0)
    for t in range(K - 1, -1, -1):
        for b in range(B):
            add(dh[b], dy[t, b])
            c_in = initial_c if reset[t, b] else c[t, b]
            _slopes(dh[b], dc[b], gates[t, b], shown[t, b], c_in, d[t, b])
        multiply(d[t], weight, dh, tiles)
        for b in range(B):
            if reset[t, b]:
                add(dinitial_h, dh[b])
                add(dinitial_c, dc[b])
                dh[b], dc[b] = zero, zero
