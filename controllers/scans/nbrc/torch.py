"""Bistable cells over time in PyTorch, with a gradient derived by hand; `scans.nbrc.cell` has the equations.

The three sums of a step, of a, c and n, lie side by side in one buffer. The input's product with all steps of a block
is there at once; at each step the state's is added to the first two. As in `scans.gru.torch`, tanh(s) is
2 sigmoid(2s) - 1, so that a = 2 k with k = sigmoid(2 s_a), which is kept in its place. The way back is that of
`scans.back_in_time`; where a unit's gates read its own state alone, their part of dL/dh is a factor of dL/dh' too.

Axis letters: T steps (K of one block, S = T + 1 states), B environments, D input features, H hidden units,
G = 3H sums (a, c, n).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mneme.controllers.precision import add_product
from mneme.controllers.scans.back_in_time import back_in_time
from mneme.controllers.scans.blocks import blocks
from mneme.controllers.scans.nbrc.cell import NbrcParameters
from mneme.controllers.scans.resets import lanes_to_reset, of_steps, scan_with_stops
from mneme.controllers.scans.weight_gradients import WeightGradients


def torch_nbrc_scan(
    x_TBD: Tensor, reset_TB: Tensor, h_BH: Tensor, initial_H: Tensor, p: NbrcParameters, cut_TB: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`scans.nbrc.scan.nbrc_scan`."""
    return scan_with_stops(_NbrcScan, _forward, x_TBD, reset_TB, h_BH, initial_H, p, cut_TB)


def _forward(
    x_TBD: Tensor, reset_TB: Tensor, h_BH: Tensor, initial_H: Tensor, p: NbrcParameters, keep: bool
) -> tuple[Tensor, Tensor]:
    """States [T + 1, B, H], the incoming one first, and k, c, n [T, B, G], which are scratch unless `keep`."""
    T, B, D = x_TBD.shape
    H = h_BH.shape[1]
    spans = blocks(T, B)
    scale_G = p.bias.new_full((3 * H,), 2.0)
    scale_G[H : 2 * H] = 1
    w_in = (p.w_ih * scale_G.unsqueeze(1)).t().contiguous()
    b_G = torch.cat([p.bias, p.bias.new_zeros(H)]) * scale_G
    w_own = (p.w_hh * scale_G[: 2 * H]).view(2, H) if p.cellular else None
    w_rec = None if p.cellular else (p.w_hh * scale_G[: 2 * H].unsqueeze(1)).t()
    minus_one = h_BH.new_full((), -1.0)
    h_SBH = h_BH.new_empty(T + 1, B, H)
    h_SBH[0] = h_BH
    outputs = h_SBH[1:].unbind()
    resets = lanes_to_reset(reset_TB)
    initial_rows = of_steps(initial_H.expand(sum(map(len, resets)), -1), resets)
    h_in = torch.empty_like(h_BH)
    sums_TBG = h_BH.new_empty(T if keep else spans[0][1], B, 3 * H)
    h = h_SBH[0]
    for start, stop in spans:
        sums = sums_TBG[start:stop] if keep else sums_TBG[: stop - start]
        add_product(sums.view(-1, 3 * H), b_G, x_TBD[start:stop].reshape(-1, D), w_in)
        k_KBH, c_KBH, n_KBH = sums.split(H, -1)
        rows = zip(
            range(start, stop),
            k_KBH.unbind(),
            c_KBH.unbind(),
            n_KBH.unbind(),
            sums[..., : 2 * H].unbind(),
            strict=True,
        )
        for t, k, c, n, kc in rows:
            if len(lanes := resets[t]):
                h = torch.index_copy(h, 0, lanes, initial_rows[t], out=h_in)
            if w_own is not None:
                kc.unflatten(1, (2, H)).addcmul_(h.unsqueeze(1), w_own)
            elif w_rec is not None:
                kc.addmm_(h, w_rec)
            kc.sigmoid_()
            n.addcmul_(k, h, value=4).sigmoid_()
            torch.add(minus_one, n, alpha=2, out=n)
            h = torch.lerp(n, h, c, out=outputs[t])
    return h_SBH, sums_TBG


class _NbrcScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_TBD: Tensor, reset_TB: Tensor, stop_TB: Tensor, h_BH: Tensor, initial_H: Tensor, *p: Tensor
    ) -> tuple[Tensor, Tensor]:
        h_SBH, sums_TBG = _forward(x_TBD, reset_TB, h_BH, initial_H, NbrcParameters(*p), keep=True)
        ctx.save_for_backward(x_TBD, reset_TB, stop_TB, initial_H, h_SBH, sums_TBG, *p)
        return h_SBH[1:], h_SBH[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_TBH: Tensor, dlast_BH: Tensor) -> tuple[Tensor | None, ...]:
        x_TBD, reset_TB, stop_TB, initial_H, h_SBH, sums_TBG, *rest = ctx.saved_tensors
        p, H = NbrcParameters(*rest), len(initial_H)
        shared_GH = p.w_hh.new_empty(0, H) if p.cellular else p.w_hh
        kind = _OwnGradients if p.cellular else WeightGradients
        weights = kind(x_TBD, reset_TB, initial_H, p.w_ih, shared_GH, ctx.needs_input_grad[0])

        def derivatives(start: int, stop: int, out: Tensor) -> Tensor:
            before = torch.where(reset_TB[start:stop].unsqueeze(-1), initial_H, h_SBH[start:stop])
            past = _derivatives(sums_TBG[start:stop], before, h_SBH[start + 1 : stop + 1], out)
            if p.cellular:
                past += (out[..., : 2 * H] * p.w_hh).unflatten(-1, (2, H)).sum(-2)
            return past

        dh, dinitial_H = back_in_time(
            derivatives, weights, slice(3 * H), slice(len(shared_GH)), shared_GH, h_SBH,
            reset_TB, stop_TB, dy_TBH, dlast_BH, ctx.needs_input_grad[4],
        )  # fmt: skip
        dw_ih, dw_hh, db, _ = weights.of_parameters()
        return weights.dx_TBD, None, None, dh, dinitial_H, dw_ih, dw_hh, db[: 2 * H]


class _OwnGradients(WeightGradients):
    """`WeightGradients` where a unit's gates a and c read its own state alone."""

    _dw_2H: Tensor | None = None

    def add(self, start: int, stop: int, h_KBH: Tensor, d_x_KBG: Tensor, d_h_KBG: Tensor) -> None:
        super().add(start, stop, h_KBH, d_x_KBG, d_h_KBG)
        before_KBH = torch.where(self._reset_TB[start:stop].unsqueeze(-1), self._initial_H, h_KBH)
        d_KBgH = d_x_KBG.unflatten(-1, (3, -1))[..., :2, :]
        dw_2H = (d_KBgH * before_KBH.unsqueeze(-2)).sum((0, 1))
        self._dw_2H = dw_2H if self._dw_2H is None else self._dw_2H + dw_2H

    def of_parameters(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """With [2H] for the states' weights."""
        dw_ih, dw_hh, db_ih, db_hh = super().of_parameters()
        return dw_ih, dw_hh if self._dw_2H is None else self._dw_2H.flatten(), db_ih, db_hh


def _derivatives(sums_KBG: Tensor, before_KBH: Tensor, after_KBH: Tensor, out: Tensor) -> Tensor:
    """Fill `out` with the derivatives of h' in the sums of a, c and n; return that in h past the sums of a and c."""
    k, c, n = sums_KBG.chunk(3, -1)
    s_a, s_c, s_n = out.chunk(3, -1)
    fresh = torch.sub(c.new_ones(()), c, out=s_c)
    torch.ops.aten.tanh_backward.grad_input(fresh, n, grad_input=s_n)
    fresh.mul_(torch.sub(after_KBH, n, out=s_a))  # h' - n = c (h - n)
    torch.ops.aten.sigmoid_backward.grad_input(s_n, k, grad_input=s_a).mul_(before_KBH).mul_(4)  # a (2 - a)
    return torch.addcmul(c, s_n, k, value=2)
