"""A GRU over time on a CPU, compiled: the loop over steps between the products that all steps share.

The equations are those of `scans.gru`, with b_r, b_z and b_n for the sums of what torch has as two biases,
and c_n for the one that r multiplies. Backward, dL/dh' alone goes from step to step: with h' - n = z (h - n),

    dn = dh' (1 - z) (1 - n^2)     dm = r dn     dr = dn m r (1 - r)     dz = dh' (h' - n) (1 - z)
    dh = z dh' + U_r^T dr + U_z^T dz + U_n^T dm

Axis letters: T time (K of one block), B lanes, D input features, H hidden, G = 3H gates.
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
from mneme.controllers.scans.gru import GruParameters
from mneme.controllers.scans.tiles import product_tiles
from mneme.controllers.scans.weight_gradients import WeightGradients


def compiled_gru_scan(
    x_TBD: Tensor, reset_TB: Tensor, h_BH: Tensor, initial_H: Tensor, p: GruParameters
) -> tuple[Tensor, Tensor]:
    """`gru_scan` on a CPU."""
    if torch.is_grad_enabled():
        y_TBH, last_BH = _CompiledGru.apply(x_TBD, reset_TB, h_BH, initial_H, *p)
        return y_TBH, last_BH
    h_SBH, _ = _run(x_TBD, reset_TB, h_BH, initial_H, p, keep=False)
    return h_SBH[1:], h_SBH[-1].clone()


def _run(
    x_TBD: Tensor, reset_TB: Tensor, h_BH: Tensor, initial_H: Tensor, p: GruParameters, keep: bool
) -> tuple[Tensor, list[Tensor]]:
    """States [T + 1, B, H], the incoming one first; and if `keep` for each block r, z, n [K, B, G] and m [K, B, H]."""
    T, B, D = x_TBD.shape
    H = h_BH.shape[1]
    tiles = product_tiles(B, H, h_BH.dtype)
    b_G = torch.cat([p.b_ih[: 2 * H] + p.b_hh[: 2 * H], p.b_ih[2 * H :]])
    given = arrays(initial_H, panels(p.w_hh.t(), tiles), b_G, p.b_hh[2 * H :])
    h_SBH, kept = h_BH.new_empty(T + 1, B, H), []
    h_SBH[0] = h_BH
    for start, stop in blocks(T, B):
        gates_KBG = product(x_TBD[start:stop].reshape(-1, D), p.w_ih.t()).view(-1, B, 3 * H)
        m_KBH = h_BH.new_empty(len(gates_KBG) if keep else 0, B, H)
        reset, gates, m, h = arrays(reset_TB[start:stop], gates_KBG, m_KBH, h_SBH[start : stop + 1])
        _forward(reset, *given, gates, m, h, tiles)
        kept += [gates_KBG, m_KBH] if keep else []
    return h_SBH, kept


class _CompiledGru(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_TBD: Tensor, reset_TB: Tensor, h_BH: Tensor, initial_H: Tensor, *p: Tensor
    ) -> tuple[Tensor, Tensor]:
        h_SBH, kept = _run(x_TBD, reset_TB, h_BH, initial_H, GruParameters(*p), keep=True)
        ctx.save_for_backward(x_TBD, reset_TB, initial_H, *p[:2], h_SBH, *kept)
        return h_SBH[1:], h_SBH[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_TBH: Tensor, dlast_BH: Tensor) -> tuple[Tensor | None, ...]:
        x_TBD, reset_TB, initial_H, w_ih, w_hh, h_SBH, *kept = ctx.saved_tensors
        _, B, H = h_SBH.shape
        tiles, spans = product_tiles(B, H, w_hh.dtype), blocks(*reset_TB.shape)
        shared = WeightGradients(x_TBD, reset_TB, initial_H, w_ih, w_hh, ctx.needs_input_grad[0])
        room_KBG, other_room_KBG = w_hh.new_empty(2, spans[0][1], B, 3 * H)
        dh_BH, dinitial_H = dlast_BH.clone(memory_format=torch.contiguous_format), torch.zeros_like(initial_H)
        back = panels(w_hh, tiles)
        for (start, stop), gates_KBG, m_KBH in reversed(list(zip(spans, kept[::2], kept[1::2], strict=True))):
            d_x_KBG, d_h_KBG = room_KBG[: stop - start], other_room_KBG[: stop - start]
            _backward(
                *arrays(reset_TB[start:stop], back, gates_KBG, m_KBH, h_SBH[start + 1 : stop + 1], dy_TBH[start:stop]),
                *arrays(d_x_KBG, d_h_KBG, dh_BH, dinitial_H),
                tiles,
            )
            shared.add(start, stop, h_SBH[start:stop], d_x_KBG, d_h_KBG)
        return shared.dx_TBD, None, dh_BH, dinitial_H, *shared.of_parameters()


@compiled
def _update(h, of_h, bias, bias_m, gates, m, keep, out):
    """A lane's step: gates [G] go in as what the input says, and come out as r, z, n."""
    H = len(h)
    one, two = h.dtype.type(1), h.dtype.type(2)
    for i in range(H):
        r = sigmoid(gates[i] + bias[i] + of_h[i])
        z = sigmoid(gates[H + i] + bias[H + i] + of_h[H + i])
        m_i = of_h[2 * H + i] + bias_m[i]
        n = two * sigmoid(two * (gates[2 * H + i] + bias[2 * H + i] + r * m_i)) - one
        gates[i], gates[H + i], gates[2 * H + i] = r, z, n
        if keep:
            m[i] = m_i
        out[i] = n + z * (h[i] - n)


@kernel
def _forward(reset, initial, weight, bias, bias_m, gates, m, h, tiles):
    (K, B, G), H, keep = gates.shape, len(initial), len(m) > 0
    of_h, h_in, unused = np.empty((B, G), h.dtype), np.empty((B, H), h.dtype), np.empty(H, h.dtype)
    for t in range(K):
        for b in range(B):
            copy(h_in[b], initial if reset[t, b] else h[t, b])
        multiply(h_in, weight, of_h, tiles)
        for b in range(B):
            m_t = m[t, b] if keep else unused
            _update(h_in[b], of_h[b], bias, bias_m, gates[t, b], m_t, keep, h[t + 1, b])


@compiled
def _slopes(dh, gates, m, h, d_x, d_h):
    """A lane's slopes of the gates' sums, what the input adds to, d_x [G], and what the state adds to, d_h [G]; dh [H]
    goes in as the slope of the step's state, and comes out as what passes the gates by."""
    H = len(dh)
    one = dh.dtype.type(1)
    for i in range(H):
        r, z, n = gates[i], gates[H + i], gates[2 * H + i]
        fresh = one - z
        d_n = dh[i] * fresh * (one - n * n)
        d_r = d_n * m[i] * r * (one - r)
        d_z = dh[i] * (h[i] - n) * fresh
        d_x[i], d_x[H + i], d_x[2 * H + i] = d_r, d_z, d_n
        d_h[i], d_h[H + i], d_h[2 * H + i] = d_r, d_z, d_n * r
        dh[i] *= z


@kernel
def _backward(reset, weight, gates, m, h, dy, d_x, d_h, dh, dinitial, tiles):
    (K, B, _), H = gates.shape, len(dinitial)
    of_gates = np.empty((B, H), dh.dtype)
    for t in range(K - 1, -1, -1):
        for b in range(B):
            add(dh[b], dy[t, b])
            _slopes(dh[b], gates[t, b], m[t, b], h[t, b], d_x[t, b], d_h[t, b])
        multiply(d_h[t], weight, of_gates, tiles)
        for b in range(B):
            add(dh[b], of_gates[b])
            if reset[t, b]:
                add(dinitial, dh[b])
                dh[b] = dh.dtype.type(0)
