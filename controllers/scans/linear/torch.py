"""A diagonal linear recurrence over time in PyTorch, with a gradient derived by hand (see `scans.linear.scan`).

The gradient is the same recurrence backwards: with g[t] the whole gradient of h[t],

    g[t] = dL/dy[t] + conj(a[t+1]) g[t+1]      db[t] = g[t]      da[t] = g[t] conj(h[t-1])

without the last term where t + 1 is a reset or a cut, so both passes are one multiplication and addition a step. On
CPUs this loop takes a few per cent of the time of the
matrix products around it, and unlike cumulative products in log space it is exact for every factor, 0 included. On
GPUs, where starting a kernel takes longer than a step, `scans.linear.doubling` takes its place if factors are constant.

Axis letters: T steps (K of one block, S = T + 1 states), B environments, N channels, R rows (steps times environments)
with a reset, L those of one step.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mneme.controllers.scans.blocks import blocks_on
from mneme.controllers.scans.linear.doubling import accumulate, ages
from mneme.controllers.scans.resets import gradient_stops, lanes_to_reset, of_step_before, of_steps, with_rows


def torch_linear_scan(
    a: Tensor, b_TBN: Tensor, reset_TB: Tensor, h_BN: Tensor, initial_N: Tensor, cut_TB: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`scans.linear.scan.linear_scan`."""
    if torch.is_grad_enabled():
        y_TBN, last_BN = _LinearScan.apply(a, b_TBN, reset_TB, gradient_stops(reset_TB, cut_TB), h_BN, initial_N)
        return y_TBN, last_BN
    h_SBN = _forward(a, b_TBN, reset_TB, h_BN, initial_N)
    return h_SBN[1:], h_SBN[-1].clone()


def _at_once(a: Tensor, device: torch.device) -> bool:
    """True if all steps are computed by `accumulate` rather than by a loop over them."""
    return a.dim() == 1 and device.type == "cuda"


def _steps(a: Tensor, steps: int) -> tuple[Tensor, ...]:
    """The factors of each step: [B, N] or [N]."""
    return a.unbind() if a.dim() == 3 else (a,) * steps


def _forward(a: Tensor, b_TBN: Tensor, reset_TB: Tensor, h_BN: Tensor, initial_N: Tensor) -> Tensor:
    """Every state [T + 1, B, N], the incoming one first."""
    T = len(b_TBN)
    if _at_once(a, b_TBN.device):
        before_TBN = torch.cat([h_BN.unsqueeze(0), torch.zeros_like(b_TBN[1:])])
        before_TBN = torch.where(reset_TB.unsqueeze(-1), initial_N, before_TBN)
        return torch.cat([h_BN.unsqueeze(0), accumulate(a, torch.addcmul(b_TBN, a, before_TBN), ages(reset_TB))])
    h_SBN = b_TBN.new_empty(T + 1, *h_BN.shape)
    h_SBN[0] = h_BN
    h, h_in = h_SBN[0], torch.empty_like(h_SBN[0])
    resets = lanes_to_reset(reset_TB)
    initial_rows = of_steps(initial_N.expand(sum(map(len, resets)), -1), resets)
    rows = zip(_steps(a, T), b_TBN.unbind(), resets, initial_rows, h_SBN[1:].unbind(), strict=True)
    for a_t, b_BN, lanes, initial_LN, h_out in rows:
        if len(lanes):
            h = torch.index_copy(h, 0, lanes, initial_LN, out=h_in)
        h = torch.addcmul(b_BN, a_t, h, out=h_out)
    return h_SBN


def _backward(a: Tensor, dy_TBN: Tensor, stop_TB: Tensor, dlast_BN: Tensor) -> Tensor:
    """The gradients g of all states [T, B, N]; `a` is already conjugated."""
    T = len(dy_TBN)
    if _at_once(a, dy_TBN.device):
        dy_TBN = torch.cat([dy_TBN[:-1], (dy_TBN[-1] + dlast_BN).unsqueeze(0)])
        return accumulate(a, dy_TBN, ages(stop_TB), backwards=True)
    g_TBN = torch.empty_like(dy_TBN, memory_format=torch.contiguous_format)
    g = torch.add(dy_TBN[-1], dlast_BN, out=g_TBN[-1])
    if bool(stop_TB.all()):
        g_TBN[:-1] = dy_TBN[:-1]
        return g_TBN
    stops = lanes_to_reset(stop_TB)
    dy_stop = of_steps(of_step_before(dy_TBN, stop_TB), stops)
    rows = zip(_steps(a, T)[1:], dy_TBN[:-1].unbind(), stops[1:], dy_stop[1:], g_TBN[:-1].unbind(), strict=True)
    for a_t, dy_BN, lanes, dy_LN, g_out in reversed(list(rows)):
        g = torch.addcmul(dy_BN, a_t, g, out=g_out)
        if len(lanes):
            g.index_copy_(0, lanes, dy_LN)
    return g_TBN


class _LinearScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, a: Tensor, b_TBN: Tensor, reset_TB: Tensor, stop_TB: Tensor, h_BN: Tensor, initial_N: Tensor
    ) -> tuple[Tensor, Tensor]:
        h_SBN = _forward(a, b_TBN, reset_TB, h_BN, initial_N)
        ctx.save_for_backward(a, reset_TB, stop_TB, initial_N, h_SBN)
        return h_SBN[1:], h_SBN[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_TBN: Tensor, dlast_BN: Tensor) -> tuple[Tensor | None, ...]:
        a, reset_TB, stop_TB, initial_N, h_SBN = ctx.saved_tensors
        a = a.conj().resolve_conj()
        g_TBN = _backward(a, dy_TBN, stop_TB, dlast_BN)
        dh_BN = (a[0] if a.dim() == 3 else a) * g_TBN[0].masked_fill(stop_TB[0].unsqueeze(1), 0)
        dinitial_N = ((a[reset_TB] if a.dim() == 3 else a) * g_TBN[reset_TB]).sum(0)
        return _factor_gradient(a, h_SBN, reset_TB, initial_N, g_TBN), g_TBN, None, None, dh_BN, dinitial_N


def _factor_gradient(a: Tensor, h_SBN: Tensor, reset_TB: Tensor, initial_N: Tensor, g_TBN: Tensor) -> Tensor:
    """dL/da: g times the conjugate of the state before the step, summed over steps and rows if `a` is constant."""
    T, B, N = g_TBN.shape
    da = torch.zeros_like(a) if a.dim() == 1 else torch.empty_like(g_TBN)
    for start, stop in blocks_on(a.device, T, B):
        rows_reset = reset_TB[start:stop].reshape(-1).nonzero()[:, 0]
        h_RN, g_RN = h_SBN[start:stop].view(-1, N), g_TBN[start:stop].view(-1, N)
        if a.dim() == 1:
            da += torch.linalg.vecdot(with_rows(h_RN, rows_reset, initial_N), g_RN, dim=0)
        else:
            da_RN = da[start:stop].view(-1, N)
            torch.mul(g_RN, h_RN.conj(), out=da_RN)
            da_RN[rows_reset] = g_RN[rows_reset] * initial_N.conj()
    return da
