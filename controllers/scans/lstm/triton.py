"""LSTM over time on a GPU, in one launch forward and one back; `scans.lstm.cell` has the equations.

As in `scans.gru.triton`, the kernel replaces the input's contributions to the four gates by their values, and backward
stores the gradients of the gates' sums. A program keeps the memories c of its units in registers, because only h enters
the product. tanh(c) is computed again in the backward pass, which is cheaper than storing it.

Axis letters: T steps, S = T + 1 states, B environments, D input features, H units, R = T B rows,
G = 4H gates (i, f, g, o); in the kernels BL lanes and BU units of one program, and BK of the inner axis at a time.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from mneme.controllers.scans.lstm.cell import LstmParameters, LstmState
from mneme.controllers.scans.persistent import (
    COUNTER_STRIDE,
    arrive,
    launch,
    load_states,
    plus,
    processors,
    sigmoid,
    split_at_reset,
    take_place,
    tanh,
    through_gates,
    tiles,
    to_be_summed,
    wait,
)
from mneme.controllers.scans.resets import gradient_stops


def triton_lstm_scan(
    x_TBD: Tensor,
    reset_TB: Tensor,
    state: LstmState,
    initial: LstmState,
    p: LstmParameters,
    cut_TB: Tensor | None = None,
) -> tuple[Tensor, LstmState]:
    """`scans.lstm.scan.lstm_scan`: every output [T, B, H], and the last state."""
    if torch.is_grad_enabled():
        y_TBH, h_BH, c_BH = _LstmScan.apply(x_TBD, reset_TB, gradient_stops(reset_TB, cut_TB), *state, *initial, *p)
        return y_TBH, LstmState(h_BH, c_BH)
    h_SBH, c_SBH, _ = _forward(x_TBD, reset_TB, state, initial, p)
    return h_SBH[1:], LstmState(h_SBH[-1].clone(), c_SBH[-1].clone())


def _forward(
    x_TBD: Tensor, reset_TB: Tensor, state: LstmState, initial: LstmState, p: LstmParameters
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs and memories [T + 1, B, H], the incoming ones first, and gates [T, B, G]."""
    T, B, D = x_TBD.shape
    H = state.h.shape[1]
    gates_TBG = x_TBD.new_empty(T, B, 4 * H)
    torch.addmm(p.b_ih + p.b_hh, x_TBD.reshape(-1, D), p.w_ih.t(), out=gates_TBG.view(T * B, -1))
    h_SBH, c_SBH = state.h.new_empty(2, T + 1, B, H)
    h_SBH[0], c_SBH[0] = state
    cut = tiles(T, B, H, H, 4, x_TBD.element_size(), processors(x_TBD.device))
    tensors = gates_TBG, h_SBH, c_SBH, reset_TB.contiguous(), *initial, p.w_hh.contiguous()
    launch(_forward_kernel, cut, T, tensors, (B,), H=H)
    return h_SBH, c_SBH, gates_TBG


class _LstmScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_TBD: Tensor, reset_TB: Tensor, stop_TB: Tensor, *rest: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        state, initial, p = LstmState(*rest[:2]), LstmState(*rest[2:4]), LstmParameters(*rest[4:])
        h_SBH, c_SBH, gates_TBG = _forward(x_TBD, reset_TB, state, initial, p)
        ctx.save_for_backward(x_TBD, reset_TB, stop_TB, *initial, p.w_ih, p.w_hh, h_SBH, c_SBH, gates_TBG)
        return h_SBH[1:], h_SBH[-1].clone(), c_SBH[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_TBH: Tensor, dlast_h_BH: Tensor, dlast_c_BH: Tensor) -> tuple[Tensor | None, ...]:
        x_TBD, reset_TB, stop_TB, initial_h_H, initial_c_H, w_ih, w_hh, h_SBH, c_SBH, gates_TBG = ctx.saved_tensors
        T, B, D = x_TBD.shape
        H = w_hh.shape[1]
        cut = tiles(T, B, H, 4 * H, 1, x_TBD.element_size(), processors(x_TBD.device))
        d_TBG = torch.empty_like(gates_TBG)
        dh_BH, dc_BH = map(to_be_summed, (dlast_h_BH, dlast_c_BH))
        dinitial_h_LH, dinitial_c_LH = dh_BH.new_zeros(2, cut.lane_blocks, H)
        flags = reset_TB.contiguous(), stop_TB.contiguous()
        inputs = gates_TBG, c_SBH, *flags, initial_c_H, w_hh.t().contiguous(), dy_TBH.contiguous()
        outputs = d_TBG, dh_BH, dc_BH, dinitial_h_LH, dinitial_c_LH
        launch(_backward_kernel, cut, T, (*inputs, *outputs), (T, B), back=True, H=H)
        dcarry_h_BH, dfirst_h_H = split_at_reset((d_TBG[0] @ w_hh).to(dh_BH.dtype), reset_TB[0], stop_TB[0])
        dcarry_c_BH, dfirst_c_H = split_at_reset(dc_BH, reset_TB[0], stop_TB[0])
        d_RG = d_TBG.view(T * B, 4 * H)
        h_in_RH = torch.where(reset_TB.unsqueeze(-1), initial_h_H, h_SBH[:-1]).view(-1, H)
        db = d_RG.sum(0)
        dx_TBD = (d_RG @ w_ih).view_as(x_TBD) if ctx.needs_input_grad[0] else None
        dcarry = (dcarry_h_BH, dcarry_c_BH, dfirst_h_H + dinitial_h_LH.sum(0), dfirst_c_H + dinitial_c_LH.sum(0))
        return (
            dx_TBD,
            None,
            None,
            *(d.to(x_TBD.dtype) for d in dcarry),
            d_RG.t() @ x_TBD.reshape(-1, D),
            d_RG.t() @ h_in_RH,
            db,
            db,
        )


@triton.jit(do_not_specialize=["start", "stop", "B"])
def _forward_kernel(
    gates_ptr,  # [T, B, 4H] the input's share of i, f, g, o; replaced by their values
    states_ptr,  # [T + 1, B, H] outputs h
    memories_ptr,  # [T + 1, B, H] memories c
    reset_ptr,  # [T, B]
    initial_ptr,  # [H] of h
    initial_memory_ptr,  # [H] of c
    weights_ptr,  # [4H, H]
    counters_ptr,
    start,
    stop,
    B,
    H: tl.constexpr,
    PRECISION: tl.constexpr,
    COLUMNS: tl.constexpr,
    BL: tl.constexpr,
    BU: tl.constexpr,
    BK: tl.constexpr,
):
    WIDE: tl.constexpr = tl.float64 if states_ptr.dtype.element_ty == tl.float64 else tl.float32
    block, lanes, units, lane_there, unit_there = take_place(counters_ptr, B, H, COLUMNS, BL, BU)
    counter_ptr = counters_ptr + (1 + block) * COUNTER_STRIDE
    there = lane_there[:, None] & unit_there[None, :]
    own = lanes[:, None] * H + units[None, :]
    own_gates = lanes[:, None] * 4 * H + units[None, :]
    row = tl.cast(start, tl.int64) * B  # 64 bits for what grows with time; a step's own offsets fit into 32
    states_ptr += row * H
    memories_ptr += row * H
    gates_ptr += row * 4 * H
    reset_ptr += row
    initial = tl.load(initial_memory_ptr + units, mask=unit_there, other=0).to(WIDE)[None, :]
    c = tl.load(memories_ptr + own, mask=there, other=0).to(WIDE)
    for t in tl.range(start, stop, num_stages=1):
        gates = gates_ptr + own_gates
        i = tl.load(gates, mask=there, other=0).to(WIDE)
        f = tl.load(gates + H, mask=there, other=0).to(WIDE)
        g = tl.load(gates + 2 * H, mask=there, other=0).to(WIDE)
        o = tl.load(gates + 3 * H, mask=there, other=0).to(WIDE)
        reset = tl.load(reset_ptr + lanes, mask=lane_there, other=0)[:, None] != 0
        wait(counter_ptr, t - start, COLUMNS)
        for first in range(0, H, BK):
            k = first + tl.arange(0, BK)
            h_k = load_states(states_ptr, initial_ptr, reset, lanes, lane_there, k, H)
            u = weights_ptr + k[:, None] + units[None, :] * H
            u_there = (k < H)[:, None] & unit_there[None, :]
            u_i = tl.load(u, mask=u_there, other=0)
            u_f = tl.load(u + H * H, mask=u_there, other=0)
            u_g = tl.load(u + 2 * H * H, mask=u_there, other=0)
            u_o = tl.load(u + 3 * H * H, mask=u_there, other=0)
            i = tl.dot(h_k, u_i, i, input_precision=PRECISION, out_dtype=WIDE)
            f = tl.dot(h_k, u_f, f, input_precision=PRECISION, out_dtype=WIDE)
            g = tl.dot(h_k, u_g, g, input_precision=PRECISION, out_dtype=WIDE)
            o = tl.dot(h_k, u_o, o, input_precision=PRECISION, out_dtype=WIDE)
        i = sigmoid(i)
        f = sigmoid(f)
        g = tanh(g)
        o = sigmoid(o)
        c = f * tl.where(reset, initial, c) + i * g
        states_ptr += B * H
        tl.store(states_ptr + own, o * tanh(c), mask=there)
        arrive(counter_ptr, COLUMNS)
        memories_ptr += B * H
        tl.store(memories_ptr + own, c, mask=there)
        tl.store(gates, i, mask=there)
        tl.store(gates + H, f, mask=there)
        tl.store(gates + 2 * H, g, mask=there)
        tl.store(gates + 3 * H, o, mask=there)
        gates_ptr += B * 4 * H
        reset_ptr += B


@triton.jit(do_not_specialize=["start", "stop", "T", "B"])
def _backward_kernel(
    gates_ptr,  # [T, B, 4H] i, f, g, o
    memories_ptr,  # [T + 1, B, H]
    reset_ptr,  # [T, B]
    stop_ptr,  # [T, B] where no gradient goes back
    initial_memory_ptr,  # [H]
    weights_ptr,  # [H, 4H]
    dy_ptr,  # [T, B, H]
    d_ptr,  # [T, B, 4H] gradients of the pre-activations, to be written
    dh_ptr,  # [B, H] of the output after the last step
    dc_ptr,  # [B, H] of the memory after the last step; replaced by that of the memory before the first
    dinitial_h_ptr,  # [blocks of lanes, H] to be added to
    dinitial_c_ptr,  # [blocks of lanes, H] to be added to
    counters_ptr,
    start,
    stop,
    T,
    B,
    H: tl.constexpr,
    PRECISION: tl.constexpr,
    COLUMNS: tl.constexpr,
    BL: tl.constexpr,
    BU: tl.constexpr,
    BK: tl.constexpr,
):
    WIDE: tl.constexpr = tl.float64 if dy_ptr.dtype.element_ty == tl.float64 else tl.float32
    block, lanes, units, lane_there, unit_there = take_place(counters_ptr, B, H, COLUMNS, BL, BU)
    counter_ptr = counters_ptr + (1 + block) * COUNTER_STRIDE
    there = lane_there[:, None] & unit_there[None, :]
    own = lanes[:, None] * H + units[None, :]
    own_gates = lanes[:, None] * 4 * H + units[None, :]
    total = block * H + units
    row = tl.cast(stop - 1, tl.int64) * B
    gates_ptr += row * 4 * H
    d_ptr += row * 4 * H
    memories_ptr += row * H
    dy_ptr += row * H
    reset_ptr += row
    stop_ptr += row
    initial = tl.load(initial_memory_ptr + units, mask=unit_there, other=0).to(WIDE)[None, :]
    dc = tl.load(dc_ptr + own, mask=there, other=0)
    dinitial_h = tl.load(dinitial_h_ptr + total, mask=unit_there, other=0)
    dinitial_c = tl.load(dinitial_c_ptr + total, mask=unit_there, other=0)
    for done in tl.range(0, stop - start, num_stages=1):
        gates = gates_ptr + own_gates
        i = tl.load(gates, mask=there, other=0).to(WIDE)
        f = tl.load(gates + H, mask=there, other=0).to(WIDE)
        g = tl.load(gates + 2 * H, mask=there, other=0).to(WIDE)
        o = tl.load(gates + 3 * H, mask=there, other=0).to(WIDE)
        c_before = tl.load(memories_ptr + own, mask=there, other=0).to(WIDE)
        reset = tl.load(reset_ptr + lanes, mask=lane_there, other=0)[:, None] != 0
        c_before = tl.where(reset, initial, c_before)
        dh = tl.load(dy_ptr + own, mask=there, other=0).to(WIDE)
        if stop - done < T:  # a step follows: what comes through its gates
            wait(counter_ptr, done, COLUMNS)
            passed = through_gates(
                tl.full((BL, BU), 0, WIDE),
                d_ptr + B * 4 * H,
                weights_ptr,
                lanes,
                lane_there,
                units,
                unit_there,
                4 * H,
                4 * H,
                BK,
                PRECISION,
            )
            reset_after = tl.load(reset_ptr + B + lanes, mask=lane_there, other=0)[:, None] != 0
            dinitial_h += tl.reduce(tl.where(reset_after, passed, 0), 0, plus)
            dinitial_c += tl.reduce(tl.where(reset_after, dc, 0), 0, plus)
            stop_after = tl.load(stop_ptr + B + lanes, mask=lane_there, other=0)[:, None] != 0
            dh += tl.where(stop_after, 0, passed)
            dc = tl.where(stop_after, 0, dc)
        else:
            dh += tl.load(dh_ptr + own, mask=there, other=0)
        tanh_c = tanh(f * c_before + i * g)
        dc += dh * o * (1 - tanh_c * tanh_c)
        d = d_ptr + own_gates
        tl.store(d, dc * g * i * (1 - i), mask=there)
        tl.store(d + H, dc * c_before * f * (1 - f), mask=there)
        tl.store(d + 2 * H, dc * i * (1 - g * g), mask=there)
        tl.store(d + 3 * H, dh * tanh_c * o * (1 - o), mask=there)
        arrive(counter_ptr, COLUMNS)
        dc *= f
        gates_ptr -= B * 4 * H
        d_ptr -= B * 4 * H
        memories_ptr -= B * H
        dy_ptr -= B * H
        reset_ptr -= B
        stop_ptr -= B
    tl.store(dc_ptr + own, dc, mask=there)
    tl.store(dinitial_h_ptr + total, dinitial_h, mask=unit_there)
    tl.store(dinitial_c_ptr + total, dinitial_c, mask=unit_there)
