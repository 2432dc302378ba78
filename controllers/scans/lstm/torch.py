"""The LSTM over time in PyTorch, with a gradient derived by hand; `scans.lstm.cell` has the equations.

As in `scans.gru.torch`, the sums of a step's gates i, f, g, o lie side by side in one buffer, to which the products are
added in place, and tanh is computed as tanh(a) = 2 sigmoid(2a) - 1, for g with the inner factor 2 in the weights.
Backward, what does not depend on the incoming gradient is computed for a block of steps at once.

Axis letters: T steps (K of one block, S = T + 1 states), B environments, D input features, H hidden units,
G = 4H gates.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mneme.controllers.precision import add_product
from mneme.controllers.scans.blocks import blocks
from mneme.controllers.scans.lstm.cell import LstmParameters, LstmState
from mneme.controllers.scans.resets import gradient_stops, lanes_to_reset, of_step_before, of_steps
from mneme.controllers.scans.weight_gradients import WeightGradients


class _Trace(NamedTuple):
    """Values that the forward pass keeps for the backward pass."""

    h_SBH: Tensor  # [T + 1, B, H] outputs, the incoming one first
    c_SBH: Tensor  # [T + 1, B, H] memories, the incoming one first
    gates_TBG: Tensor  # [T, B, 4H] values of i, f, g, o
    tanh_c_TBH: Tensor  # [T, B, H]


def torch_lstm_scan(
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
    trace = _forward(x_TBD, lanes_to_reset(reset_TB), state, initial, p, keep=False)
    return trace.h_SBH[1:], LstmState(trace.h_SBH[-1].clone(), trace.c_SBH[-1].clone())


def lstm_step(x_BD: Tensor, state: LstmState, p: LstmParameters) -> LstmState:
    """The next state without autograd, in the fewest operations, rounded in the order of `torch_lstm_scan`."""
    gates = torch.addmm(p.b_ih + p.b_hh, x_BD, p.w_ih.t()).addmm_(state.h, p.w_hh.t())
    i, f, g, o = gates.chunk(4, 1)
    g.mul_(2)
    gates.sigmoid_()
    g.mul_(2).sub_(1)
    c_BH = torch.mul(f, state.c).addcmul_(i, g)
    tanh_c = torch.mul(c_BH, 2).sigmoid_().mul_(2).sub_(1)
    return LstmState(tanh_c.mul_(o), c_BH)


def _forward(
    x_TBD: Tensor,
    resets: Sequence[Tensor],
    state: LstmState,
    initial: LstmState,
    p: LstmParameters,
    keep: bool,
) -> _Trace:
    """All steps; unless `keep`, the trace's gates and tanh(c) are scratch of one block."""
    T, B, D = x_TBD.shape
    H = state.h.shape[1]
    spans = blocks(T, B)
    scale_G = p.b_ih.new_ones(4 * H)
    scale_G[2 * H : 3 * H] = 2
    w_in, w_rec = (p.w_ih * scale_G.unsqueeze(1)).t().contiguous(), (p.w_hh * scale_G.unsqueeze(1)).t()
    b_in = (p.b_ih + p.b_hh) * scale_G
    minus_one = state.h.new_full((), -1.0)
    kept = T if keep else spans[0][1]
    h_SBH, c_SBH = state.h.new_empty(2, T + 1, B, H)
    trace = _Trace(h_SBH, c_SBH, state.h.new_empty(kept, B, 4 * H), state.h.new_empty(kept, B, H))
    h_SBH[0], c_SBH[0] = state
    h, c = h_SBH[0], c_SBH[0]
    h_in = torch.empty_like(h)
    initial_h, initial_c = (of_steps(value.expand(sum(map(len, resets)), -1), resets) for value in initial)
    for start, stop in spans:
        row = slice(start, stop) if keep else slice(stop - start)
        gates_KBG = trace.gates_TBG[row]
        add_product(gates_KBG.view(-1, 4 * H), b_in, x_TBD[start:stop].reshape(-1, D), w_in)
        rows = zip(
            range(start, stop),
            gates_KBG.unbind(),
            *(gate_KBH.unbind() for gate_KBH in gates_KBG.split(H, -1)),
            trace.tanh_c_TBH[row].unbind(),
            h_SBH[start + 1 : stop + 1].unbind(),
            c_SBH[start + 1 : stop + 1].unbind(),
            strict=True,
        )
        for t, gates, i, f, g, o, tanh_c, h_out, c_out in rows:
            if len(lanes := resets[t]):
                h = torch.index_copy(h, 0, lanes, initial_h[t], out=h_in)
                c.index_copy_(0, lanes, initial_c[t])  # nobody else sees c
            gates.addmm_(h, w_rec).sigmoid_()
            torch.add(minus_one, g, alpha=2, out=g)
            c = torch.mul(f, c, out=c_out).addcmul_(i, g)
            torch.mul(c, 2, out=tanh_c).sigmoid_()
            torch.add(minus_one, tanh_c, alpha=2, out=tanh_c)
            h = torch.mul(o, tanh_c, out=h_out)
    return trace


class _LstmScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_TBD: Tensor, reset_TB: Tensor, stop_TB: Tensor, *rest: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        state, initial, p = LstmState(*rest[:2]), LstmState(*rest[2:4]), LstmParameters(*rest[4:])
        trace = _forward(x_TBD, lanes_to_reset(reset_TB), state, initial, p, keep=True)
        ctx.save_for_backward(x_TBD, reset_TB, stop_TB, *initial, p.w_ih, p.w_hh, *trace)
        return trace.h_SBH[1:], trace.h_SBH[-1].clone(), trace.c_SBH[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_TBH: Tensor, dh_BH: Tensor, dc_BH: Tensor) -> tuple[Tensor | None, ...]:
        x_TBD, reset_TB, stop_TB, initial_h, initial_c, w_ih, w_hh, *saved = ctx.saved_tensors
        trace = _Trace(*saved)
        T, B, _ = x_TBD.shape
        H = w_hh.shape[1]
        spans = blocks(T, B)
        shared = WeightGradients(x_TBD, reset_TB, initial_h, w_ih, w_hh, ctx.needs_input_grad[0])
        learned = ctx.needs_input_grad[5] or ctx.needs_input_grad[6]
        resets, stops = lanes_to_reset(reset_TB), lanes_to_reset(stop_TB)
        dinitial = LstmState(torch.zeros_like(initial_h), torch.zeros_like(initial_c)) if learned else None
        derivatives_KBG, memory_derivatives_KBH = (
            w_hh.new_empty(spans[0][1], B, 4 * H),
            w_hh.new_empty(spans[0][1], B, H),
        )
        # dL/dy of the step before, to which each turn of the loop below leads
        dy_before = [dy_TBH.new_zeros(()), *dy_TBH[:-1].unbind()]
        dy_stop = of_steps(of_step_before(dy_TBH, stop_TB), stops)
        dh, dc = dh_BH + dy_TBH[-1], dc_BH
        for start, stop in reversed(spans):
            gates_KBG, tanh_c_KBH = trace.gates_TBG[start:stop], trace.tanh_c_TBH[start:stop]
            d_KBG, ch_KBH = derivatives_KBG[: stop - start], memory_derivatives_KBH[: stop - start]
            _derivatives(gates_KBG, trace.c_SBH[start:stop], tanh_c_KBH, out=d_KBG, memory_out=ch_KBH)
            d_KB4H = d_KBG.view(-1, B, 4, H)
            rows = zip(
                range(start, stop),
                d_KBG.unbind(),
                d_KB4H[:, :, :3].unbind(),
                d_KB4H[:, :, 3].unbind(),
                ch_KBH.unbind(),
                gates_KBG[..., H : 2 * H].unbind(),
                strict=True,
            )
            for t, d, d_ifg, d_o, ch, f in reversed(list(rows)):
                dc = torch.addcmul(dc, dh, ch)
                d_ifg.mul_(dc.unsqueeze(1))
                d_o.mul_(dh)
                dc.mul_(f)
                if dinitial is not None and len(lanes := resets[t]):
                    dinitial.c.add_(dc[lanes].sum(0))
                if len(stops[t]) == B:
                    dc, dh = torch.zeros_like(dc), dy_stop[t]
                    continue
                dh = torch.addmm(dy_before[t], d, w_hh)
                if len(stops[t]):
                    dc.index_fill_(0, stops[t], 0)
                    dh.index_copy_(0, stops[t], dy_stop[t])
            if dinitial is not None:
                dinitial.h.add_(d_KBG[reset_TB[start:stop]].sum(0) @ w_hh)
            shared.add(start, stop, trace.h_SBH[start:stop], d_KBG, d_KBG)
        return shared.dx_TBD, None, None, dh, dc, *(dinitial or (None, None)), *shared.of_parameters()


def _derivatives(gates_KBG: Tensor, c_in_KBH: Tensor, tanh_c_KBH: Tensor, out: Tensor, memory_out: Tensor) -> None:
    """Fill `out` with the derivatives of c' in the sums of i, f, g and of h' in o's; `memory_out` with dh'/dc'."""
    i, f, g, o = gates_KBG.chunk(4, -1)
    s_i, s_f, s_g, s_o = out.chunk(4, -1)
    sigmoid_backward, tanh_backward = torch.ops.aten.sigmoid_backward, torch.ops.aten.tanh_backward
    sigmoid_backward.grad_input(g, i, grad_input=s_i)
    sigmoid_backward.grad_input(c_in_KBH, f, grad_input=s_f)
    tanh_backward.grad_input(i, g, grad_input=s_g)
    sigmoid_backward.grad_input(tanh_c_KBH, o, grad_input=s_o)
    tanh_backward.grad_input(o, tanh_c_KBH, grad_input=memory_out)
