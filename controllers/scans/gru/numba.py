"""The GRU over time on CPUs, compiled by numba; `scans.gru.cell` has the equations.

An update of the preset for delayed cue, collecting and learning, is 1.32 times as fast with it as with
`scans.gru.torch` (`python -m benchmarks.backends`, two threads of a Zen 3).

The products of the inputs and of the weights' gradients with all steps of a block are torch's; the kernels have the
loop over its steps. Backward, with h' - n = z (h - n), it computes

    dn = dh' (1 - z) (1 - n^2)     dm = r dn     dr = dn m r (1 - r)     dz = dh' (h' - n) (1 - z)
    dh = z dh' + U_r^T dr + U_z^T dz + U_n^T dm

Axis letters: T steps (K of one block, S = T + 1 states), B environments, D input features, H hidden units,
G = 3H gates.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mneme.controllers.precision import wide
from mneme.controllers.scans.blocks import blocks
from mneme.controllers.scans.gru.cell import GruParameters
from mneme.controllers.scans.machine_code import add, arrays, compiled, copy, kernel, scratch, sigmoid
from mneme.controllers.scans.products import multiply, panels
from mneme.controllers.scans.resets import gradient_stops
from mneme.controllers.scans.weight_gradients import WeightGradients


class _Weights(NamedTuple):
    """Weights that all steps of the forward kernel share."""

    initial: Any  # [H]
    recurrent: Any  # [P, H, W] panels of [H, G]
    bias: Any  # [G] b_r, b_z, b_n
    bias_m: Any  # [H]


class _Trace(NamedTuple):
    """Values of a block that the forward kernel keeps for the backward kernel."""

    gates: Any  # [K, B, G] the input's contribution before the kernel, r, z and n after it
    m: Any  # [K, B, H] or empty, if nothing is to be kept
    h: Any  # [K + 1, B, H] states, the one before the block first


class _Gradients(NamedTuple):
    """Gradients that the backward kernel writes, replaces or adds to."""

    from_x: Any  # [K, B, G] of the sums r, z, n as what the inputs contribute to
    from_h: Any  # [K, B, G] of the sums r, z, m as what the states contribute to
    h: Any  # [B, H] of the state after the block, replaced by that before it
    initial: Any  # [H] added to


def numba_gru_scan(
    x_TBD: Tensor, reset_TB: Tensor, h_BH: Tensor, initial_H: Tensor, p: GruParameters, cut_TB: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`scans.gru.scan.gru_scan`."""
    if torch.is_grad_enabled():
        y_TBH, last_BH = _GruScan.apply(x_TBD, reset_TB, gradient_stops(reset_TB, cut_TB), h_BH, initial_H, *p)
        return y_TBH, last_BH
    h_SBH, _ = _run(x_TBD, reset_TB, h_BH, initial_H, p, keep=False)
    return h_SBH[1:], h_SBH[-1].clone()


def _run(
    x_TBD: Tensor, reset_TB: Tensor, h_BH: Tensor, initial_H: Tensor, p: GruParameters, keep: bool
) -> tuple[Tensor, list[Tensor]]:
    """States [T + 1, B, H], the incoming one first; if `keep`, r, z, n [K, B, G] and m [K, B, H] of each block."""
    T, B, D = x_TBD.shape
    H = h_BH.shape[1]
    bias_G = torch.cat([p.b_ih[: 2 * H] + p.b_hh[: 2 * H], p.b_ih[2 * H :]])
    w_ih = p.w_ih.to(x_TBD.dtype)
    weights = _Weights(*arrays(initial_H, panels(p.w_hh.t()), bias_G, p.b_hh[2 * H :]))
    h_SBH, kept = h_BH.new_empty(T + 1, B, H), []
    h_SBH[0] = h_BH
    P, _, W = weights.recurrent.shape
    room = scratch(h_BH, (B, P * W), (B, H), (H,))
    for start, stop in blocks(T, B):
        gates_KBG = wide(x_TBD[start:stop].reshape(-1, D) @ w_ih.t()).view(-1, B, 3 * H)
        m_KBH = h_BH.new_empty(len(gates_KBG) if keep else 0, B, H)
        (reset,) = arrays(reset_TB[start:stop])
        _forward(reset, weights, _Trace(*arrays(gates_KBG, m_KBH, h_SBH[start : stop + 1])), *room)
        kept += [gates_KBG, m_KBH] if keep else []
    return h_SBH, kept


class _GruScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_TBD: Tensor, reset_TB: Tensor, stop_TB: Tensor, h_BH: Tensor, initial_H: Tensor, *p: Tensor
    ) -> tuple[Tensor, Tensor]:
        h_SBH, kept = _run(x_TBD, reset_TB, h_BH, initial_H, GruParameters(*p), keep=True)
        ctx.save_for_backward(x_TBD, reset_TB, stop_TB, initial_H, *p[:2], h_SBH, *kept)
        return h_SBH[1:], h_SBH[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_TBH: Tensor, dlast_BH: Tensor) -> tuple[Tensor | None, ...]:
        x_TBD, reset_TB, stop_TB, initial_H, w_ih, w_hh, h_SBH, *kept = ctx.saved_tensors
        _, B, H = h_SBH.shape
        spans = blocks(*reset_TB.shape)
        shared = WeightGradients(x_TBD, reset_TB, initial_H, w_ih, w_hh, ctx.needs_input_grad[0])
        from_x_KBG, from_h_KBG = w_hh.new_empty(2, spans[0][1], B, 3 * H)
        dh_BH, dinitial_H = dlast_BH.clone(memory_format=torch.contiguous_format), torch.zeros_like(initial_H)
        (recurrent,) = arrays(panels(w_hh))
        (through_gates,) = scratch(w_hh, (B, recurrent.shape[0] * recurrent.shape[2]))
        for (start, stop), gates_KBG, m_KBH in reversed(list(zip(spans, kept[::2], kept[1::2], strict=True))):
            d_x_KBG, d_h_KBG = from_x_KBG[: stop - start], from_h_KBG[: stop - start]
            reset, stops, dy = arrays(reset_TB[start:stop], stop_TB[start:stop], dy_TBH[start:stop])
            trace = _Trace(*arrays(gates_KBG, m_KBH, h_SBH[start : stop + 1]))
            d = _Gradients(*arrays(d_x_KBG, d_h_KBG, dh_BH, dinitial_H))
            _backward(reset, stops, recurrent, trace, dy, d, through_gates)
            shared.add(start, stop, h_SBH[start:stop], d_x_KBG, d_h_KBG)
        return shared.dx_TBD, None, None, dh_BH, dinitial_H, *shared.of_parameters()


@kernel
def _forward(reset, weights, trace, from_h, before, unkept):
    (K, B, _), keep = trace.gates.shape, len(trace.m) > 0
    for t in range(K):
        for b in range(B):
            copy(before[b], weights.initial if reset[t, b] else trace.h[t, b])
        multiply(before, weights.recurrent, from_h)
        for b in range(B):
            m = trace.m[t, b] if keep else unkept
            _update(before[b], from_h[b], weights.bias, weights.bias_m, trace.gates[t, b], m, trace.h[t + 1, b])


@compiled
def _update(before, from_h, bias, bias_m, gates, m, after):
    """One environment's step: `gates` [G] is the input's contribution, and becomes r, z, n."""
    H = len(before)
    one, two = before.dtype.type(1), before.dtype.type(2)
    for i in range(H):
        r = sigmoid(gates[i] + bias[i] + from_h[i])
        z = sigmoid(gates[H + i] + bias[H + i] + from_h[H + i])
        m_i = from_h[2 * H + i] + bias_m[i]
        n = two * sigmoid(two * (gates[2 * H + i] + bias[2 * H + i] + r * m_i)) - one
        gates[i], gates[H + i], gates[2 * H + i] = r, z, n
        m[i] = m_i
        after[i] = n + z * (before[i] - n)


@kernel
def _backward(reset, stop, recurrent, trace, dy, d, through_gates):
    K, B, _ = trace.gates.shape
    for t in range(K - 1, -1, -1):
        for b in range(B):
            add(d.h[b], dy[t, b])
            _update_back(d.h[b], trace.gates[t, b], trace.m[t, b], trace.h[t + 1, b], d.from_x[t, b], d.from_h[t, b])
        if not stop[t].all() or reset[t].any():
            multiply(d.from_h[t], recurrent, through_gates)
        for b in range(B):
            if reset[t, b] or not stop[t, b]:
                add(d.h[b], through_gates[b])
            if reset[t, b]:
                add(d.initial, d.h[b])
            if stop[t, b]:
                d.h[b] = d.h.dtype.type(0)


@compiled
def _update_back(dh, gates, m, after, from_x, from_h):
    """Back through one environment's step: dh [H] is the gradient of h', and becomes that of h past the gates."""
    H = len(dh)
    one = dh.dtype.type(1)
    for i in range(H):
        r, z, n = gates[i], gates[H + i], gates[2 * H + i]
        fresh = one - z
        d_n = dh[i] * fresh * (one - n * n)
        d_r = d_n * m[i] * r * (one - r)
        d_z = dh[i] * (after[i] - n) * fresh
        from_x[i], from_x[H + i], from_x[2 * H + i] = d_r, d_z, d_n
        from_h[i], from_h[H + i], from_h[2 * H + i] = d_r, d_z, d_n * r
        dh[i] *= z
