"""The GRU over time in PyTorch, with a gradient derived by hand; `scans.gru.cell` has the equations.

The four sums of a step, of n, r, z and m = U_n h + c_n, lie side by side in one buffer. The input's product with all
steps of a block is added to the first three at once; at each step the state's product is added to the last three. tanh
is computed as tanh(a) = 2 sigmoid(2a) - 1, which is several times as fast on CPUs; the inner 2 is in the weights.

The way back is that of `scans.back_in_time`.

Axis letters: T steps (K of one block, S = T + 1 states), B environments, D input features, H hidden units,
G = 4H sums (n, r, z, m).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mneme.controllers.precision import add_product
from mneme.controllers.scans.back_in_time import back_in_time
from mneme.controllers.scans.blocks import blocks
from mneme.controllers.scans.gru.cell import GruParameters
from mneme.controllers.scans.resets import lanes_to_reset, of_steps, scan_with_stops
from mneme.controllers.scans.weight_gradients import WeightGradients


def torch_gru_scan(
    x_TBD: Tensor, reset_TB: Tensor, h_BH: Tensor, initial_H: Tensor, p: GruParameters, cut_TB: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`scans.gru.scan.gru_scan`."""
    return scan_with_stops(_GruScan, _forward, x_TBD, reset_TB, h_BH, initial_H, p, cut_TB)


def gru_step(x_BD: Tensor, h_BH: Tensor, p: GruParameters) -> Tensor:
    """The next state without autograd, in the fewest operations.

    It adds and rounds in the order of `torch_gru_scan`, so that both agree to the last bit where the matrix products
    do. The scan in numba adds in another order and differs from it by a few units in the last place.
    """
    H = h_BH.shape[1]
    x_bias = p.b_ih.clone()
    x_bias[: 2 * H] += p.b_hh[: 2 * H]
    gates = torch.addmm(x_bias, x_BD, p.w_ih.t())
    r, z = gates[:, : 2 * H].addmm_(h_BH, p.w_hh[: 2 * H].t()).sigmoid_().chunk(2, 1)
    m = torch.addmm(p.b_hh[2 * H :], h_BH, p.w_hh[2 * H :].t())
    n = gates[:, 2 * H :].addcmul_(r, m).mul_(2).sigmoid_().mul_(2).sub_(1)
    return torch.lerp(n, h_BH, z)


def _forward(
    x_TBD: Tensor,
    reset_TB: Tensor,
    h_BH: Tensor,
    initial_H: Tensor,
    p: GruParameters,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """States [T + 1, B, H], the incoming one first, and gates [T, B, G], which are scratch unless `keep`."""
    T, B, D = x_TBD.shape
    H = h_BH.shape[1]
    spans = blocks(T, B)
    w_in = torch.cat([2 * p.w_ih[2 * H :], p.w_ih[: 2 * H]]).t().contiguous()
    b_G = torch.cat([2 * p.b_ih[2 * H :], p.b_ih[: 2 * H] + p.b_hh[: 2 * H], p.b_hh[2 * H :]])
    w_rec = p.w_hh.t()
    minus_one = h_BH.new_full((), -1.0)
    h_SBH = h_BH.new_empty(T + 1, B, H)
    h_SBH[0] = h_BH
    outputs = h_SBH[1:].unbind()
    resets = lanes_to_reset(reset_TB)
    initial_rows = of_steps(initial_H.expand(sum(map(len, resets)), -1), resets)
    h_in = torch.empty_like(h_BH)
    gates_TBG = h_BH.new_empty(T if keep else spans[0][1], B, 4 * H)
    h = h_SBH[0]
    for start, stop in spans:
        gates = gates_TBG[start:stop] if keep else gates_TBG[: stop - start]
        gates.copy_(b_G)
        sums_RX = gates.view(-1, 4 * H)[:, : 3 * H]
        add_product(sums_RX, sums_RX, x_TBD[start:stop].reshape(-1, D), w_in)
        n_KBH, r_KBH, z_KBH, m_KBH = gates.split(H, -1)
        rows = zip(
            range(start, stop),
            n_KBH.unbind(),
            r_KBH.unbind(),
            z_KBH.unbind(),
            m_KBH.unbind(),
            gates[..., H : 3 * H].unbind(),
            gates[..., H:].unbind(),
            strict=True,
        )
        for t, n, r, z, m, rz, rzm in rows:
            if len(lanes := resets[t]):
                h = torch.index_copy(h, 0, lanes, initial_rows[t], out=h_in)
            rzm.addmm_(h, w_rec)
            rz.sigmoid_()
            n.addcmul_(r, m, value=2).sigmoid_()
            torch.add(minus_one, n, alpha=2, out=n)
            h = torch.lerp(n, h, z, out=outputs[t])
    return h_SBH, gates_TBG


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
        H = len(initial_H)
        # in the order n, r, z that the gates have here
        shared = WeightGradients(x_TBD, reset_TB, initial_H, w_ih.roll(H, 0), w_hh, ctx.needs_input_grad[0])

        def derivatives(start: int, stop: int, out: Tensor) -> Tensor:
            return _derivatives(gates_TBG[start:stop], h_SBH[start + 1 : stop + 1], out)

        dh, dinitial_H = back_in_time(
            derivatives, shared, slice(3 * H), slice(H, 4 * H), w_hh, h_SBH,
            reset_TB, stop_TB, dy_TBH, dlast_BH, ctx.needs_input_grad[4],
        )  # fmt: skip
        dw_in, dw_hh, db_in, db_hh = shared.of_parameters()
        return shared.dx_TBD, None, None, dh, dinitial_H, dw_in.roll(-H, 0), dw_hh, db_in.roll(-H), db_hh


def _derivatives(gates_KBG: Tensor, h_KBH: Tensor, out: Tensor) -> Tensor:
    """Fill `out` with the derivatives of h' in the sums of n, r, z and m; return that in h past the gates, z."""
    n, r, z, m = gates_KBG.chunk(4, -1)
    s_n, s_r, s_z, s_m = out.chunk(4, -1)
    write = torch.sub(z.new_ones(()), z, out=s_z)
    torch.ops.aten.tanh_backward.grad_input(write, n, grad_input=s_n)
    write.mul_(torch.sub(h_KBH, n, out=s_m))  # h' - n = z (h - n)
    torch.mul(s_n, r, out=s_m)
    torch.ops.aten.sigmoid_backward.grad_input(s_n, r, grad_input=s_r).mul_(m)
    return z
