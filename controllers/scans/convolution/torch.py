"""Causal depthwise convolution over time in PyTorch: `scans.convolution.cell` without the silu.

Inputs from before the first step come from a window, which is carried; after a reset they come from the initial window.
All steps are first computed as if there were no resets. The few that follow a reset closely are then computed again,
from inputs gathered for them.

Axis letters: T steps, B environments, C channels, K taps, W = K - 1 steps of a window (oldest first), R steps shortly
after a reset.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def convolution_scan(
    x_TBC: Tensor,
    reset_TB: Tensor,
    window_BWC: Tensor,
    initial_WC: Tensor,
    weight_CK: Tensor,
    bias_C: Tensor,
    cut_TB: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """All steps: [T, B, C], and the last window [B, W, C].

    Where `reset_TB` is true, the environment's window before that step is `initial_WC`; where `cut_TB` is true, no
    gradient goes back to that window. The result can be differentiated once, in every tensor but the flags.
    """
    window_BWC = torch.where(reset_TB[0].view(-1, 1, 1), initial_WC, window_BWC)
    y_TBC, last_BWC = _ConvolutionScan.apply(x_TBC, reset_TB, cut_TB, window_BWC, initial_WC, weight_CK, bias_C)
    return y_TBC, last_BWC


class _Rows(NamedTuple):
    """Indices of rows in a table [(W + T) B + W, C] of the window, all inputs, and the initial window."""

    t_R: Tensor  # [R] steps fewer than W after a reset
    b_R: Tensor  # [R] their environments
    seen_RK: Tensor  # [R, K] the inputs of their taps
    last_BW: Tensor  # [B, W] the inputs in the last window


def _rows(reset_TB: Tensor, W: int) -> _Rows:
    T, B = reset_TB.shape
    time_T1 = torch.arange(T, device=reset_TB.device).unsqueeze(1)
    # a reset at the first step is in the window already
    since_TB = time_T1 - torch.where(reset_TB & (time_T1 > 0), time_T1, -T - W).cummax(0).values
    t_R, b_R = (since_TB < W).nonzero(as_tuple=True)
    tap_K = torch.arange(W + 1, device=reset_TB.device)

    def seen(t: Tensor, b: Tensor, since: Tensor) -> Tensor:
        return torch.where(W - tap_K <= since, (t + tap_K) * B + b, (W + T) * B + tap_K + since)

    lanes_B1 = torch.arange(B, device=reset_TB.device).unsqueeze(1)
    last_BK = seen(torch.full_like(lanes_B1, T), lanes_B1, since_TB[-1].unsqueeze(1) + 1)
    return _Rows(t_R, b_R, seen(t_R.unsqueeze(1), b_R.unsqueeze(1), since_TB[t_R, b_R].unsqueeze(1)), last_BK[:, :W])


def gradient_reach(reset_TB: Tensor, cut_TB: Tensor, W: int) -> Tensor:
    """Steps that the gradient goes back from each step, and from the last window, [T + 1, B]; W without a cut."""
    time_S1 = torch.arange(len(reset_TB) + 1, device=reset_TB.device).unsqueeze(1)

    def last(flags_TB: Tensor) -> Tensor:
        return torch.where(F.pad(flags_TB, (0, 0, 0, 1)), time_S1, -1).cummax(0).values

    cut_SB = last(cut_TB & ~reset_TB)
    return torch.where(cut_SB > last(reset_TB), time_S1 - cut_SB, W)


class _ConvolutionScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TBC: Tensor,
        reset_TB: Tensor,
        cut_TB: Tensor | None,
        window_BWC: Tensor,
        initial_WC: Tensor,
        weight_CK: Tensor,
        bias_C: Tensor,
    ) -> tuple[Tensor, Tensor]:
        (T, B, C), W = x_TBC.shape, window_BWC.shape[1]
        rows = _rows(reset_TB, W)
        weight_KC = weight_CK.t().contiguous()
        table = x_TBC.new_empty((W + T) * B + W, C)
        inputs = table[: (W + T) * B].view(W + T, B, C)
        inputs[:W] = window_BWC.transpose(0, 1)
        inputs[W:] = x_TBC
        table[(W + T) * B :] = initial_WC
        y_TBC = torch.addcmul(bias_C, inputs[:T], weight_KC[0])
        for k in range(1, W + 1):
            y_TBC.addcmul_(inputs[k : k + T], weight_KC[k])
        y_TBC[rows.t_R, rows.b_R] = (table[rows.seen_RK] * weight_KC).sum(1) + bias_C
        ctx.save_for_backward(reset_TB, cut_TB, table, weight_KC, *rows)
        return y_TBC, table[rows.last_BW]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_TBC: Tensor, dlast_BWC: Tensor) -> tuple[Tensor | None, ...]:
        reset_TB, cut_TB, table, weight_KC, *saved = ctx.saved_tensors
        rows = _Rows(*saved)
        (T, B, C), W = dy_TBC.shape, dlast_BWC.shape[1]
        age_K = torch.arange(W, -1, -1, device=dy_TBC.device)  # of what a tap sees, in steps
        reach_SB = None if cut_TB is None else gradient_reach(reset_TB, cut_TB, W)
        inputs = table[: (W + T) * B].view(W + T, B, C)
        dbias_C = dy_TBC.sum((0, 1))
        dy_RC = dy_TBC[rows.t_R, rows.b_R]
        dy_TBC = dy_TBC.index_put((rows.t_R, rows.b_R), dy_TBC.new_zeros(()))
        dtable = torch.zeros_like(table)
        dinputs = dtable[: (W + T) * B].view(W + T, B, C)
        dweight_KC = (dy_RC.unsqueeze(1) * table[rows.seen_RK]).sum(0)
        product_TBC = torch.empty_like(dy_TBC)
        dseen_RKC = dy_RC.unsqueeze(1) * weight_KC
        if reach_SB is not None:
            dseen_RKC *= (reach_SB[rows.t_R, rows.b_R].unsqueeze(1) >= age_K).unsqueeze(2)
            dlast_BWC = dlast_BWC * (reach_SB[T].unsqueeze(1) >= age_K[:W]).unsqueeze(2)
        for k in range(W + 1):
            dweight_KC[k] += torch.mul(dy_TBC, inputs[k : k + T], out=product_TBC).sum((0, 1))
            if reach_SB is None or k == W:
                dinputs[k : k + T].addcmul_(dy_TBC, weight_KC[k])
            elif len(steps := (reach_TB := reach_SB[:T] >= W - k).any(1).nonzero()[:, 0]):
                taken = slice(int(steps[0]), int(steps[-1]) + 1)
                reached_TBC = dy_TBC[taken] * reach_TB[taken].unsqueeze(2)
                dinputs[k : k + T][taken].addcmul_(reached_TBC, weight_KC[k])
        dtable.index_add_(0, rows.seen_RK.flatten(), dseen_RKC.flatten(0, 1))
        dtable.index_add_(0, rows.last_BW.flatten(), dlast_BWC.flatten(0, 1))
        return dinputs[W:], None, None, dinputs[:W].transpose(0, 1), dtable[(W + T) * B :], dweight_KC.t(), dbias_C
