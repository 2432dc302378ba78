"""The linear scan with real factors (`scans.linear.scan`) in one Triton kernel a pass.

The channels of all environments are independent, so that [B, N] is treated as C columns. A program has BLOCK_C of them
for all steps, BLOCK_T steps at once: the loads of a block are issued together, an associative scan composes its steps
(Blelloch 1990: (a_i, b_i) o (a_j, b_j) = (a_j a_i, a_j b_i + b_j)), and the state before the block is added. A reset is
a step with a = 0 and b = b + a initial (Lu et al. 2023, "Structured state space models for in-context reinforcement
learning", in the form for diagonal a). Backward, the same scan runs from the last step to the first and writes all
gradients on its way. Products and sums are computed in float32 at least.

Axis letters: T steps, B environments, N channels, C = B N columns.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from mneme.controllers.scans.resets import gradient_stops

BLOCK_C = 32  # a tile's row is 128 bytes of float32, one cache line; 64 lanes of 128 channels make 256 programs
BLOCK_T = 32  # with 4 warps 8 steps a thread of each operand: enough loads in flight, and no registers spilled


@triton.jit
def _compose(a_i, b_i, a_j, b_j):
    return a_j * a_i, a_j * b_i + b_j


@triton.jit
def _plus(x, y):
    return x + y


@triton.jit
def _forward_kernel(
    a_TC, b_TC, reset_TB, h_C, initial_N, y_TC, T, C, N,
    ACC: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = column < C
    lane, B = column // N, C // N
    state = tl.load(h_C + column, inside, 0.0).to(ACC)
    initial = tl.load(initial_N + column % N, inside, 0.0).to(ACC)[None, :]
    for first in range(0, T, BLOCK_T):
        t = (first + tl.arange(0, BLOCK_T)).to(tl.int64)[:, None]
        here, valid = t * C + column[None, :], (t < T) & inside[None, :]
        a = tl.load(a_TC + here, valid, 1.0).to(ACC)  # behind the end a = 1 and b = 0 pass the state on
        b = tl.load(b_TC + here, valid, 0.0).to(ACC)
        fresh = tl.load(reset_TB + t * B + lane[None, :], valid, 0) != 0
        b = tl.where(fresh, a * initial + b, b)
        product, total = tl.associative_scan((tl.where(fresh, 0.0, a), b), 0, _compose)
        y = product * state[None, :] + total
        tl.store(y_TC + here, y, valid)
        state = tl.reduce(tl.where(t == first + BLOCK_T - 1, y, 0.0), 0, _plus)


@triton.jit
def _backward_kernel(
    a_TC, reset_TB, stop_TB, h_C, initial_N, y_TC, dy_TC, dlast_C, da_TC, db_TC, dh_C, dinitial_C, T, C, N,
    ACC: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = column < C
    lane, B = column // N, C // N
    h = tl.load(h_C + column, inside, 0.0).to(ACC)[None, :]
    initial = tl.load(initial_N + column % N, inside, 0.0).to(ACC)[None, :]
    state = tl.load(dlast_C + column, inside, 0.0).to(ACC)
    dh = tl.full((BLOCK_C,), 0.0, ACC)
    dinitial = tl.full((BLOCK_C,), 0.0, ACC)
    for first in range(0, T, BLOCK_T):
        t = (T - 1 - first - tl.arange(0, BLOCK_T)).to(tl.int64)[:, None]
        here, valid = t * C + column[None, :], (t >= 0) & inside[None, :]
        flag, followed = t * B + lane[None, :], valid & (t + 1 < T)
        stop_after = tl.load(stop_TB + flag + B, followed, 0) != 0
        a_after = tl.where(stop_after, 0.0, tl.load(a_TC + here + C, followed, 1.0).to(ACC))
        product, total = tl.associative_scan((a_after, tl.load(dy_TC + here, valid, 0.0).to(ACC)), 0, _compose)
        g = product * state[None, :] + total
        tl.store(db_TC + here, g, valid)
        fresh = tl.load(reset_TB + flag, valid, 0) != 0
        before = tl.where(t == 0, h, tl.load(y_TC + here - C, valid & (t > 0), 0.0).to(ACC))
        tl.store(da_TC + here, g * tl.where(fresh, initial, before), valid)
        entered = g * tl.load(a_TC + here, valid, 0.0).to(ACC)
        dinitial += tl.reduce(tl.where(fresh, entered, 0.0), 0, _plus)
        stop = tl.load(stop_TB + flag, valid, 0) != 0
        dh += tl.reduce(tl.where((t == 0) & (stop == 0), entered, 0.0), 0, _plus)
        state = tl.reduce(tl.where(t == T - first - BLOCK_T, g, 0.0), 0, _plus)
    tl.store(dh_C + column, dh, inside)
    tl.store(dinitial_C + column, dinitial, inside)


def triton_linear_scan(
    a_TBN: Tensor, b_TBN: Tensor, reset_TB: Tensor, h_BN: Tensor, initial_N: Tensor, cut_TB: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`scans.linear.scan.linear_scan` with a real factor for every step."""
    y_TBN, last_BN = _TritonLinearScan.apply(a_TBN, b_TBN, reset_TB, gradient_stops(reset_TB, cut_TB), h_BN, initial_N)
    return y_TBN, last_BN


def _launch(kernel: Any, tensors: tuple[Tensor, ...], like_TBN: Tensor) -> None:
    T, B, N = like_TBN.shape
    acc = tl.float64 if like_TBN.dtype == torch.float64 else tl.float32
    with torch.cuda.device_of(like_TBN):
        kernel[(triton.cdiv(B * N, BLOCK_C),)](*tensors, T, B * N, N, acc, BLOCK_T, BLOCK_C)


class _TritonLinearScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, a_TBN: Tensor, b_TBN: Tensor, reset_TB: Tensor, stop_TB: Tensor, h_BN: Tensor, initial_N: Tensor
    ) -> tuple[Tensor, Tensor]:
        tensors = [value.contiguous() for value in (a_TBN, b_TBN, reset_TB, h_BN, initial_N)]
        a_TBN, b_TBN, reset_TB, h_BN, initial_N = tensors
        y_TBN = torch.empty_like(b_TBN)
        _launch(_forward_kernel, (*tensors, y_TBN), b_TBN)
        ctx.save_for_backward(a_TBN, reset_TB, stop_TB.contiguous(), h_BN, initial_N, y_TBN)
        return y_TBN, y_TBN[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_TBN: Tensor, dlast_BN: Tensor) -> tuple[Tensor | None, ...]:
        a_TBN, reset_TB, stop_TB, h_BN, initial_N, y_TBN = ctx.saved_tensors
        da_TBN, db_TBN = torch.empty_like(a_TBN), torch.empty_like(y_TBN)
        dh_BN, dinitial_BN = torch.empty_like(h_BN), torch.empty_like(h_BN)
        incoming = (a_TBN, reset_TB, stop_TB, h_BN, initial_N, y_TBN, dy_TBN.contiguous(), dlast_BN.contiguous())
        _launch(_backward_kernel, (*incoming, da_TBN, db_TBN, dh_BN, dinitial_BN), y_TBN)
        return da_TBN, db_TBN, None, None, dh_BN, dinitial_BN.sum(0)
