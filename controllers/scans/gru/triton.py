"""GRU over time on a GPU, in one launch forward and one back; `scans.gru.cell` has the equations.

Forward, the kernel replaces the input's contributions to n, r and z by the gates' values, and stores m beside them: 4H
values a step. Computing them again in the backward pass would take two matrix products, which last longer from about
190 units on in TF32, and from 40 in full float32. Backward, the kernel goes back in time and stores the gradients of
the sums n, r, z and m. Its recurrent product has inner length 3H for H units, so that it reads as much of U as the
forward one.

Axis letters: T steps, S = T + 1 states, B environments, D input features, H units, R = T B rows,
G = 4H gates (n, r, z, m); in the kernels BL lanes and BU units of one program, and BK of the inner axis at a time.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from mneme.controllers.scans.gru.cell import GruParameters
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


def triton_gru_scan(
    x_TBD: Tensor, reset_TB: Tensor, h_BH: Tensor, initial_H: Tensor, p: GruParameters, cut_TB: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`scans.gru.scan.gru_scan`: every state [T, B, H], and the last one, [B, H]."""
    if torch.is_grad_enabled():
        y_TBH, last_BH = _GruScan.apply(x_TBD, reset_TB, gradient_stops(reset_TB, cut_TB), h_BH, initial_H, *p)
        return y_TBH, last_BH
    h_SBH, _ = _forward(x_TBD, reset_TB, h_BH, initial_H, p, keep=False)
    return h_SBH[1:], h_SBH[-1].clone()


def _forward(
    x_TBD: Tensor, reset_TB: Tensor, h_BH: Tensor, initial_H: Tensor, p: GruParameters, keep: bool
) -> tuple[Tensor, Tensor]:
    """States [T + 1, B, H], the incoming one first, and gates [T, B, G], which unless `keep` are scratch without m."""
    T, B, D = x_TBD.shape
    H = h_BH.shape[1]
    gates_TBG = x_TBD.new_empty(T, B, (4 if keep else 3) * H)
    bias_X = torch.cat([p.b_ih[2 * H :], p.b_ih[: 2 * H] + p.b_hh[: 2 * H]])
    torch.addmm(bias_X, x_TBD.reshape(-1, D), _n_first(p.w_ih).t(), out=gates_TBG.view(T * B, -1)[:, : 3 * H])
    h_SBH = h_BH.new_empty(T + 1, B, H)
    h_SBH[0] = h_BH
    cut = tiles(T, B, H, H, 3, x_TBD.element_size(), processors(x_TBD.device))
    bias_H, w_HH = p.b_hh[2 * H :], p.w_hh.contiguous()
    tensors = gates_TBG, h_SBH, reset_TB.contiguous(), initial_H, w_HH, bias_H
    launch(_forward_kernel, cut, T, tensors, (B,), H=H, KEEP=keep)
    return h_SBH, gates_TBG


def _n_first(rows_X: Tensor) -> Tensor:
    """Blocks [3H, ...] from the order r, z, n to n, r, z."""
    return rows_X.roll(len(rows_X) // 3, 0)


class _GruScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_TBD: Tensor, reset_TB: Tensor, stop_TB: Tensor, h_BH: Tensor, initial_H: Tensor, *p: Tensor
    ) -> tuple[Tensor, Tensor]:
        parameters = GruParameters(*p)
        h_SBH, gates_TBG = _forward(x_TBD, reset_TB, h_BH, initial_H, parameters, keep=True)
        ctx.save_for_backward(x_TBD, reset_TB, stop_TB, initial_H, parameters.w_ih, parameters.w_hh, h_SBH, gates_TBG)
        return h_SBH[1:], h_SBH[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_TBH: Tensor, dlast_BH: Tensor) -> tuple[Tensor | None, ...]:
        x_TBD, reset_TB, stop_TB, initial_H, w_ih, w_hh, h_SBH, gates_TBG = ctx.saved_tensors
        T, B, D = x_TBD.shape
        H = w_hh.shape[1]
        cut = tiles(T, B, H, 3 * H, 1, x_TBD.element_size(), processors(x_TBD.device))
        d_TBG = torch.empty_like(gates_TBG)
        dh_BH = to_be_summed(dlast_BH)
        dinitial_LH = dh_BH.new_zeros(cut.lane_blocks, H)
        flags = reset_TB.contiguous(), stop_TB.contiguous()
        inputs = gates_TBG, h_SBH, *flags, initial_H, w_hh.t().contiguous(), dy_TBH.contiguous()
        launch(_backward_kernel, cut, T, (*inputs, d_TBG, dh_BH, dinitial_LH), (T, B), back=True, H=H)
        dcarry_BH, dfirst_H = split_at_reset(dh_BH + d_TBG[0, :, H:] @ w_hh, reset_TB[0], stop_TB[0])
        dinitial_H = dfirst_H + dinitial_LH.sum(0)
        d_RG = d_TBG.view(T * B, 4 * H)
        h_in_RH = torch.where(reset_TB.unsqueeze(-1), initial_H, h_SBH[:-1]).view(-1, H)
        dw_ih = (d_RG[:, : 3 * H].t() @ x_TBD.reshape(-1, D)).roll(-H, 0)
        dw_hh = d_RG[:, H:].t() @ h_in_RH
        db = d_RG.sum(0)
        dx_TBD = (d_RG[:, : 3 * H] @ _n_first(w_ih)).view_as(x_TBD) if ctx.needs_input_grad[0] else None
        dtype = x_TBD.dtype
        return dx_TBD, None, None, dcarry_BH.to(dtype), dinitial_H.to(dtype), dw_ih, dw_hh, db[: 3 * H].roll(-H), db[H:]


@triton.jit(do_not_specialize=["start", "stop", "B"])
def _forward_kernel(
    gates_ptr,  # [T, B, 4H] or [T, B, 3H]: the input's share of n, r, z; replaced by n, r, z, m if KEEP
    states_ptr,  # [T + 1, B, H]
    reset_ptr,  # [T, B]
    initial_ptr,  # [H]
    weights_ptr,  # [3H, H], rows r, z, m
    bias_ptr,  # [H], of m
    counters_ptr,
    start,
    stop,
    B,
    H: tl.constexpr,
    KEEP: tl.constexpr,
    PRECISION: tl.constexpr,
    COLUMNS: tl.constexpr,
    BL: tl.constexpr,
    BU: tl.constexpr,
    BK: tl.constexpr,
):
    G: tl.constexpr = 4 * H if KEEP else 3 * H
    WIDE: tl.constexpr = tl.float64 if states_ptr.dtype.element_ty == tl.float64 else tl.float32
    block, lanes, units, lane_there, unit_there = take_place(counters_ptr, B, H, COLUMNS, BL, BU)
    counter_ptr = counters_ptr + (1 + block) * COUNTER_STRIDE
    there = lane_there[:, None] & unit_there[None, :]
    initial = tl.load(initial_ptr + units, mask=unit_there, other=0).to(WIDE)[None, :]
    bias = tl.load(bias_ptr + units, mask=unit_there, other=0).to(WIDE)[None, :]
    own = lanes[:, None] * H + units[None, :]
    own_gates = lanes[:, None] * G + units[None, :]
    row = tl.cast(start, tl.int64) * B  # 64 bits for what grows with time; a step's own offsets fit into 32
    states_ptr += row * H
    gates_ptr += row * G
    reset_ptr += row
    h = tl.load(states_ptr + own, mask=there, other=0).to(WIDE)
    for t in tl.range(start, stop, num_stages=1):
        gates = gates_ptr + own_gates
        n = tl.load(gates, mask=there, other=0).to(WIDE)
        r = tl.load(gates + H, mask=there, other=0).to(WIDE)
        z = tl.load(gates + 2 * H, mask=there, other=0).to(WIDE)
        reset = tl.load(reset_ptr + lanes, mask=lane_there, other=0)[:, None] != 0
        h = tl.where(reset, initial, h)
        m = tl.full((BL, BU), 0, WIDE)
        wait(counter_ptr, t - start, COLUMNS)
        for first in range(0, H, BK):
            k = first + tl.arange(0, BK)
            h_k = load_states(states_ptr, initial_ptr, reset, lanes, lane_there, k, H)
            u = weights_ptr + k[:, None] + units[None, :] * H
            u_there = (k < H)[:, None] & unit_there[None, :]
            u_r = tl.load(u, mask=u_there, other=0)
            u_z = tl.load(u + H * H, mask=u_there, other=0)
            u_m = tl.load(u + 2 * H * H, mask=u_there, other=0)
            r = tl.dot(h_k, u_r, r, input_precision=PRECISION, out_dtype=WIDE)
            z = tl.dot(h_k, u_z, z, input_precision=PRECISION, out_dtype=WIDE)
            m = tl.dot(h_k, u_m, m, input_precision=PRECISION, out_dtype=WIDE)
        r = sigmoid(r)
        z = sigmoid(z)
        m += bias
        n = tanh(n + r * m)
        h = n + z * (h - n)
        states_ptr += B * H
        tl.store(states_ptr + own, h, mask=there)
        arrive(counter_ptr, COLUMNS)
        if KEEP:
            tl.store(gates, n, mask=there)
            tl.store(gates + H, r, mask=there)
            tl.store(gates + 2 * H, z, mask=there)
            tl.store(gates + 3 * H, m, mask=there)
        gates_ptr += B * G
        reset_ptr += B


@triton.jit(do_not_specialize=["start", "stop", "T", "B"])
def _backward_kernel(
    gates_ptr,  # [T, B, 4H] n, r, z, m
    states_ptr,  # [T + 1, B, H]
    reset_ptr,  # [T, B]
    stop_ptr,  # [T, B] where no gradient goes back
    initial_ptr,  # [H]
    weights_ptr,  # [H, 3H], columns r, z, m
    dy_ptr,  # [T, B, H]
    d_ptr,  # [T, B, 4H] gradients of the pre-activations, to be written
    dh_ptr,  # [B, H] of the state after the last step; replaced by what goes past the gates of the first
    dinitial_ptr,  # [blocks of lanes, H] to be added to
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
    WIDE: tl.constexpr = tl.float64 if states_ptr.dtype.element_ty == tl.float64 else tl.float32
    block, lanes, units, lane_there, unit_there = take_place(counters_ptr, B, H, COLUMNS, BL, BU)
    counter_ptr = counters_ptr + (1 + block) * COUNTER_STRIDE
    there = lane_there[:, None] & unit_there[None, :]
    initial = tl.load(initial_ptr + units, mask=unit_there, other=0).to(WIDE)[None, :]
    own = lanes[:, None] * H + units[None, :]
    own_gates = lanes[:, None] * 4 * H + units[None, :]
    dh = tl.load(dh_ptr + own, mask=there, other=0)
    dinitial = tl.load(dinitial_ptr + block * H + units, mask=unit_there, other=0)
    row = tl.cast(stop - 1, tl.int64) * B
    gates_ptr += row * 4 * H
    d_ptr += row * 4 * H
    states_ptr += row * H
    dy_ptr += row * H
    reset_ptr += row
    stop_ptr += row
    for done in tl.range(0, stop - start, num_stages=1):
        gates = gates_ptr + own_gates
        n = tl.load(gates, mask=there, other=0).to(WIDE)
        r = tl.load(gates + H, mask=there, other=0).to(WIDE)
        z = tl.load(gates + 2 * H, mask=there, other=0).to(WIDE)
        m = tl.load(gates + 3 * H, mask=there, other=0).to(WIDE)
        h = tl.load(states_ptr + own, mask=there, other=0).to(WIDE)
        dy = tl.load(dy_ptr + own, mask=there, other=0).to(WIDE)
        reset = tl.load(reset_ptr + lanes, mask=lane_there, other=0)[:, None] != 0
        h = tl.where(reset, initial, h)
        if stop - done < T:  # a step follows: what comes through its gates
            wait(counter_ptr, done, COLUMNS)
            after = d_ptr + B * 4 * H + H
            dh = through_gates(
                dh, after, weights_ptr, lanes, lane_there, units, unit_there, 4 * H, 3 * H, BK, PRECISION
            )
            reset_after = tl.load(reset_ptr + B + lanes, mask=lane_there, other=0)[:, None] != 0
            dinitial += tl.reduce(tl.where(reset_after, dh, 0), 0, plus)
            stop_after = tl.load(stop_ptr + B + lanes, mask=lane_there, other=0)[:, None] != 0
            dh = tl.where(stop_after, 0, dh)
        dh += dy
        d_n = dh * (1 - z) * (1 - n * n)
        d_m = d_n * r
        d = d_ptr + own_gates
        tl.store(d, d_n, mask=there)
        tl.store(d + H, d_m * m * (1 - r), mask=there)
        tl.store(d + 2 * H, dh * (h - n) * z * (1 - z), mask=there)
        tl.store(d + 3 * H, d_m, mask=there)
        arrive(counter_ptr, COLUMNS)
        dh *= z
        gates_ptr -= B * 4 * H
        d_ptr -= B * 4 * H
        states_ptr -= B * H
        dy_ptr -= B * H
        reset_ptr -= B
        stop_ptr -= B
    tl.store(dh_ptr + own, dh, mask=there)
    tl.store(dinitial_ptr + block * H + units, dinitial, mask=unit_there)
