"""GRU over time with resets anywhere: the cell as one reads it, and a fast scan with a hand-derived gradient.

    r = sigmoid(W_r x + U_r h + b_r)        z = sigmoid(W_z x + U_z h + b_z)
    m = U_n h + c_n      n = tanh(W_n x + b_n + r m)      h' = (1 - z) n + z h

How the scan is fast. All four gates of a step lie side by side in one buffer, ordered (n, r, z, m): the last
three take the recurrent product in place, as one matrix product, and the first three the input's. tanh(a) is
computed as 2 sigmoid(2a) - 1, several times faster on CPUs; the inner 2 is folded into a. Backward, every
pre-activation's gradient is dL/dh' times a slope that does not depend on dL/dh', so slopes are computed for a
block of steps at once, and the loop over time is left with two multiplications and one matrix product.

Axis letters: T time (K of one block), B lanes, D input features, H hidden, G = 4H gates.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mneme.controllers.scans.blocks import blocks
from mneme.controllers.scans.resets import lanes_to_reset, of_step_before, of_steps
from mneme.controllers.scans.weight_gradients import WeightGradients


class GruParameters(NamedTuple):
    """Laid out as in `torch.nn.GRUCell`: rows are the gates r, z, n."""

    w_ih: Tensor  # [3H, D]
    w_hh: Tensor  # [3H, H]
    b_ih: Tensor  # [3H]
    b_hh: Tensor  # [3H]


def gru_cell(x_BD: Tensor, h_BH: Tensor, p: GruParameters) -> Tensor:
    """One step: [B, D], [B, H] -> [B, H]."""
    return gru_update(x_BD @ p.w_ih.t() + p.b_ih, h_BH @ p.w_hh.t() + p.b_hh, h_BH)


def gru_update(of_x_BG: Tensor, of_h_BG: Tensor, h_BH: Tensor) -> Tensor:
    """The state after a step from what its input and the state before say to the gates r, z, n, [B, 3H] each."""
    x_r, x_z, x_n = of_x_BG.chunk(3, -1)
    h_r, h_z, h_n = of_h_BG.chunk(3, -1)
    z = torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)
    return (1 - z) * n + z * h_BH


def gru_scan(
    x_TBD: Tensor, reset_TB: Tensor, h_BH: Tensor, initial_H: Tensor, p: GruParameters, backend: str = "torch"
) -> tuple[Tensor, Tensor]:
    """All steps: every state [T, B, H], and the last one, [B, H].

    Where `reset_TB` is true the lane takes `initial_H` for its state before that step. Differentiable, once, in
    every tensor but the flags.
    """
    if len(x_TBD) == 1 and not torch.is_grad_enabled():
        h_BH = _step(x_TBD[0], torch.where(reset_TB.view(-1, 1), initial_H, h_BH), p)
        return h_BH.unsqueeze(0), h_BH.clone()
    if backend == "numba":
        from mneme.controllers.scans.compiled_gru import compiled_gru_scan  # here, as not all have numba

        return compiled_gru_scan(x_TBD, reset_TB, h_BH, initial_H, p)
    if backend == "triton":
        from mneme.controllers.scans.triton_gru import triton_gru_scan  # here, as triton is not installed everywhere

        return triton_gru_scan(x_TBD, reset_TB, h_BH, initial_H, p)
    if torch.is_grad_enabled():
        y_TBH, last_BH = _GruScan.apply(x_TBD, reset_TB, h_BH, initial_H, *p)
        return y_TBH, last_BH
    h_SBH, _ = _forward(x_TBD, lanes_to_reset(reset_TB), h_BH, initial_H, p, keep=False)
    return h_SBH[1:], h_SBH[-1].clone()


def _step(x_BD: Tensor, h_BH: Tensor, p: GruParameters) -> Tensor:
    """`_forward` for one step in the fewest operations: what acting spends its time in.

    It adds and rounds in the order of `_forward`, so that acting and training agree to the last bit wherever the
    matrix products do; LayerNorm would magnify any difference where states are small. The compiled form, which adds in
    another order, differs by 6e-8 in float32 on delayed cue at the start of training, and by 2e-5 after a LayerNorm.
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
    resets: Sequence[Tensor],
    h_BH: Tensor,
    initial_H: Tensor,
    p: GruParameters,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """States [T + 1, B, H], the incoming one first, and gates [T, B, G], which unless `keep` are scratch."""
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
    initial_rows = of_steps(initial_H.expand(sum(map(len, resets)), -1), resets)
    h_in = torch.empty_like(h_BH)
    gates_TBG = h_BH.new_empty(T if keep else spans[0][1], B, 4 * H)
    h = h_SBH[0]
    for start, stop in spans:
        gates = gates_TBG[start:stop] if keep else gates_TBG[: stop - start]
        gates.copy_(b_G)
        gates.view(-1, 4 * H)[:, : 3 * H].addmm_(x_TBD[start:stop].reshape(-1, D), w_in)
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
        ctx: Any, x_TBD: Tensor, reset_TB: Tensor, h_BH: Tensor, initial_H: Tensor, *p: Tensor
    ) -> tuple[Tensor, Tensor]:
        parameters = GruParameters(*p)
        ctx.resets = lanes_to_reset(reset_TB)
        h_SBH, gates_TBG = _forward(x_TBD, ctx.resets, h_BH, initial_H, parameters, keep=True)
        ctx.save_for_backward(x_TBD, reset_TB, initial_H, parameters.w_ih, parameters.w_hh, h_SBH, gates_TBG)
        return h_SBH[1:], h_SBH[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_TBH: Tensor, dlast_BH: Tensor) -> tuple[Tensor | None, ...]:
        x_TBD, reset_TB, initial_H, w_ih, w_hh, h_SBH, gates_TBG = ctx.saved_tensors
        _, B, H = h_SBH.shape
        spans = blocks(*reset_TB.shape)
        # of the gates n, r, z, as they lie here
        shared = WeightGradients(x_TBD, reset_TB, initial_H, w_ih.roll(H, 0), w_hh, ctx.needs_input_grad[0])
        dinitial_H = torch.zeros_like(initial_H) if ctx.needs_input_grad[3] else None
        slopes_KBG = w_hh.new_empty(spans[0][1], B, 4 * H)
        # dL/dy of the step before, which is where the loop below arrives
        dy_before = [dy_TBH.new_zeros(()), *dy_TBH[:-1].unbind()]
        dy_reset = of_steps(of_step_before(dy_TBH, reset_TB), ctx.resets)
        dh = dlast_BH + dy_TBH[-1]
        for start, stop in reversed(spans):
            d_KBG = slopes_KBG[: stop - start]
            z_KBH = _slopes(gates_TBG[start:stop], h_SBH[start + 1 : stop + 1], out=d_KBG)
            rows = zip(
                range(start, stop),
                d_KBG.view(-1, B, 4, H).unbind(),
                d_KBG[..., H:].unbind(),
                z_KBH.unbind(),
                strict=True,
            )
            for t, d, d_rec, z in reversed(list(rows)):
                d.mul_(dh.unsqueeze(1))
                lanes = ctx.resets[t]
                if dinitial_H is not None and len(lanes):  # what the gates pass on to it follows, a block at once
                    dinitial_H += (dh[lanes] * z[lanes]).sum(0)
                dh = torch.addcmul(dy_before[t], dh, z).addmm_(d_rec, w_hh)
                if len(lanes):
                    dh.index_copy_(0, lanes, dy_reset[t])
            if dinitial_H is not None:
                dinitial_H += d_KBG[reset_TB[start:stop]][:, H:].sum(0) @ w_hh
            shared.add(start, stop, h_SBH[start:stop], d_KBG[..., : 3 * H], d_KBG[..., H:])
        dw_in, dw_hh, db_in, db_hh = shared.of_parameters()
        return shared.dx_TBD, None, dh, dinitial_H, dw_in.roll(-H, 0), dw_hh, db_in.roll(-H), db_hh


def _slopes(gates_KBG: Tensor, h_KBH: Tensor, out: Tensor) -> Tensor:
    """Fill `out` with dh'/d(pre-activation) of n, r, z, m; return dh'/dh along the direct path, which is z."""
    n, r, z, m = gates_KBG.chunk(4, -1)
    s_n, s_r, s_z, s_m = out.chunk(4, -1)
    write = torch.sub(z.new_ones(()), z, out=s_z)
    torch.ops.aten.tanh_backward.grad_input(write, n, grad_input=s_n)
    write.mul_(torch.sub(h_KBH, n, out=s_m))  # h' - n = z (h - n)
    torch.mul(s_n, r, out=s_m)
    torch.ops.aten.sigmoid_backward.grad_input(s_n, r, grad_input=s_r).mul_(m)
    return z
