"""Diagonal linear recurrences over time on CPUs, compiled by numba with what stands next to them.

    gated        h' = n + k (h - n), k = sigmoid(s)              real, a factor for every step: a minGRU's
    constant     h' = a h + b                                     complex, one factor for all: an LRU's

Backward, with g[t] the whole gradient of h[t], both run the other way, and stop where an episode begins or the gradient
is cut; the gradient of what stands before an episode's first step is that of the initial state.

Axis letters: T steps, B environments, N channels, M = 2N: s, then n, or real parts, then imaginary ones.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mneme.controllers.precision import in_float32
from mneme.controllers.scans.machine_code import add, arrays, compiled, copy, fma, kernel, scratch, sigmoid
from mneme.controllers.scans.resets import gradient_stops


@in_float32
def numba_gated_scan(
    sn_TBM: Tensor, reset_TB: Tensor, h_BN: Tensor, initial_N: Tensor, cut_TB: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Every state [T, B, N], and the last one [B, N], of the gated recurrence. It can be differentiated once.

    Args:
        sn_TBM: s, then n, [T, B, 2N].
        reset_TB: bool, where the state before the step is `initial_N`.
        h_BN: the states before the first step.
        initial_N: the state at the start of an episode.
        cut_TB: bool, where no gradient goes back to the state before the step.
    """
    if torch.is_grad_enabled():
        y_TBN, last_BN = _GatedScan.apply(sn_TBM, reset_TB, gradient_stops(reset_TB, cut_TB), h_BN, initial_N)
        return y_TBN, last_BN
    h_SBN = _run(_gated, h_BN, sn_TBM, reset_TB, initial_N)
    return h_SBN[1:], h_SBN[-1].clone()


@in_float32
def numba_constant_scan(
    a_2N: Tensor, b_TBM: Tensor, reset_TB: Tensor, h_BM: Tensor, initial_M: Tensor, cut_TB: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Every state [T, B, 2N], and the last one [B, 2N], of the recurrence with constant factors; the rest as in
    `numba_gated_scan`.

    Args:
        a_2N: the factors, [2, N].
        b_TBM: what is added.
        reset_TB, h_BM, initial_M, cut_TB: as there.
    """
    if torch.is_grad_enabled():
        y_TBM, last_BM = _ConstantScan.apply(
            a_2N, b_TBM, reset_TB, gradient_stops(reset_TB, cut_TB), h_BM, initial_M
        )  # fmt: skip
        return y_TBM, last_BM
    h_SBM = _run(_constant, h_BM, b_TBM, reset_TB, initial_M, a_2N)
    return h_SBM[1:], h_SBM[-1].clone()


def _run(forward: Any, h_BN: Tensor, *given: Tensor) -> Tensor:
    """States [T + 1, B, N], the incoming one first."""
    h_SBN = h_BN.new_empty(len(given[0]) + 1, *h_BN.shape)
    h_SBN[0] = h_BN
    forward(*arrays(*given, h_SBN), *scratch(h_BN, (h_BN.shape[1],)))
    return h_SBN


class _GatedScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, sn_TBM: Tensor, reset_TB: Tensor, stop_TB: Tensor, h_BN: Tensor, initial_N: Tensor
    ) -> tuple[Tensor, Tensor]:
        h_SBN = _run(_gated, h_BN, sn_TBM, reset_TB, initial_N)
        ctx.save_for_backward(sn_TBM, reset_TB, stop_TB, initial_N, h_SBN)
        return h_SBN[1:], h_SBN[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_TBN: Tensor, dlast_BN: Tensor) -> tuple[Tensor | None, ...]:
        sn_TBM, _, _, initial_N, h_SBN = ctx.saved_tensors
        dsn_TBM, dinitial_N = torch.empty_like(sn_TBM), torch.zeros_like(initial_N)
        dh_BN = dlast_BN.clone(memory_format=torch.contiguous_format)
        room = scratch(h_SBN, initial_N.shape)
        _gated_back(*arrays(*ctx.saved_tensors, dy_TBN, dsn_TBM, dh_BN, dinitial_N), *room)
        return dsn_TBM, None, None, dh_BN, dinitial_N


class _ConstantScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, a_2N: Tensor, b_TBM: Tensor, reset_TB: Tensor, stop_TB: Tensor, h_BM: Tensor, initial_M: Tensor
    ) -> tuple[Tensor, Tensor]:
        h_SBM = _run(_constant, h_BM, b_TBM, reset_TB, initial_M, a_2N)
        ctx.save_for_backward(a_2N, reset_TB, stop_TB, initial_M, h_SBM)
        return h_SBM[1:], h_SBM[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_TBM: Tensor, dlast_BM: Tensor) -> tuple[Tensor | None, ...]:
        a_2N, _, _, initial_M, h_SBM = ctx.saved_tensors
        db_TBM, da_2N, dinitial_M = torch.empty_like(h_SBM[1:]), torch.zeros_like(a_2N), torch.zeros_like(initial_M)
        dh_BM = dlast_BM.clone(memory_format=torch.contiguous_format)
        room = scratch(dh_BM, initial_M.shape)
        _constant_back(*arrays(*ctx.saved_tensors, dy_TBM, da_2N, db_TBM, dh_BM, dinitial_M), *room)
        return da_2N, db_TBM, None, None, dh_BM, dinitial_M


@kernel
def _gated(sn, reset, initial, h, before):
    (T, B), N = reset.shape, len(initial)
    for t in range(T):
        for b in range(B):
            copy(before, initial if reset[t, b] else h[t, b])
            gated_step(sn[t, b, :N], sn[t, b, N:], before, h[t + 1, b])


@kernel
def _gated_back(sn, reset, stop, initial, h, dy, dsn, dh, dinitial, before):
    (T, B), N = reset.shape, len(initial)
    for t in range(T - 1, -1, -1):
        for b in range(B):
            copy(before, initial if reset[t, b] else h[t, b])
            add(dh[b], dy[t, b])
            _gated_step_back(sn[t, b, :N], sn[t, b, N:], before, dh[b], dsn[t, b, :N], dsn[t, b, N:])
            _stop_at(t, b, reset, stop, dh, dinitial)


@kernel
def _constant(b_, reset, initial, a, h, before):
    (T, B), N = reset.shape, a.shape[1]
    for t in range(T):
        for b in range(B):
            copy(before, initial if reset[t, b] else h[t, b])
            real, imag, added, after = before[:N], before[N:], b_[t, b], h[t + 1, b]
            real_part(a[0], a[1], real, imag, added[:N], after[:N])
            imaginary_part(a[0], a[1], real, imag, added[N:], after[N:])


@kernel
def _constant_back(a, reset, stop, initial, h, dy, da, db, dh, dinitial, before):
    (T, B), N = reset.shape, a.shape[1]
    for t in range(T - 1, -1, -1):
        for b in range(B):
            copy(before, initial if reset[t, b] else h[t, b])
            add(dh[b], dy[t, b])
            copy(db[t, b], dh[b])
            real, imag = db[t, b, :N], db[t, b, N:]
            _add_real(real, imag, before[:N], before[N:], da[0])
            _add_imag(real, imag, before[:N], before[N:], da[1])
            _real_back(a[0], a[1], real, imag, dh[b, :N])
            _imag_back(a[0], a[1], real, imag, dh[b, N:])
            _stop_at(t, b, reset, stop, dh, dinitial)


@compiled
def _stop_at(t, b, reset, stop, dh, dinitial):
    """dh[b], of the state before a step, is the initial state's gradient at a reset, and goes no further at a stop."""
    if reset[t, b]:
        add(dinitial, dh[b])
    if stop[t, b]:
        dh[b] = dh.dtype.type(0)


@compiled
def gated_step(s, n, before, after):
    """Fill in n + sigmoid(s) (before - n), [N]."""
    for i in range(len(s)):
        after[i] = sigmoid(s[i]) * (before[i] - n[i]) + n[i]


@compiled
def _gated_step_back(s, n, before, dh, ds, dn):
    one = dh.dtype.type(1)
    for i in range(len(s)):
        keep = sigmoid(s[i])
        dn[i] = dh[i] * (one - keep)
        dh[i] *= keep
        ds[i] = dh[i] * (one - keep) * (before[i] - n[i])


@compiled
def real_part(a, a_i, h, h_i, b, to):
    """Re(a h) + b."""
    for i in range(len(to)):
        to[i] = fma(a[i], h[i], fma(-a_i[i], h_i[i], b[i]))


@compiled
def imaginary_part(a, a_i, h, h_i, b, to):
    """Im(a h) + b."""
    for i in range(len(to)):
        to[i] = fma(a[i], h_i[i], fma(a_i[i], h[i], b[i]))


@compiled
def _add_real(g, g_i, h, h_i, to):
    """Add Re(g conj(h))."""
    for i in range(len(to)):
        to[i] += fma(g[i], h[i], g_i[i] * h_i[i])


@compiled
def _add_imag(g, g_i, h, h_i, to):
    """Add Im(g conj(h))."""
    for i in range(len(to)):
        to[i] += fma(g_i[i], h[i], -g[i] * h_i[i])


@compiled
def _real_back(a, a_i, g, g_i, to):
    """Re(conj(a) g)."""
    for i in range(len(to)):
        to[i] = fma(a[i], g[i], a_i[i] * g_i[i])


@compiled
def _imag_back(a, a_i, g, g_i, to):
    """Im(conj(a) g)."""
    for i in range(len(to)):
        to[i] = fma(a[i], g_i[i], -a_i[i] * g[i])
