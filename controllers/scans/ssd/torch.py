"""State-space duality in PyTorch (Dao & Gu 2024): the recurrence as matrix products over chunks of steps.

    h[t] = exp(a[t]) h[t-1] + x[t] B[t]^T        y[t] = h[t] C[t]

Within a chunk this is attention without softmax: y[l] = sum_m exp(s[l] - s[m]) (C[l] . B[m]) x[m] over m <= l, where
s sums the log decays a. Between two steps that are separated by a reset the weight is exactly 0; s is summed, and
pairs are chosen, by segments between resets, so that infinities do not meet. The state before the chunk adds
exp(s[l]) h C[l].

The gradient is derived by hand. Every term of y[l] and of the last state grows with exp(s[l]) and every term of x[m]'s
gradient with exp(-s[m]), so that ds[l] = dy[l] . y[l] - x[l] . dx[l], and no product of two [L, L] matrices is kept.

Axis letters: T steps, L steps of a chunk (M for its second axis), B environments, H heads, P head size, N state size,
I = H P. B[t] and C[t] of the paper are `write_TBN` and `read_TBN`.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mneme.controllers.scans.resets import gradient_stops


def torch_ssd_step(xbc_BC: Tensor, dt_BH: Tensor, h_BNI: Tensor, a_H: Tensor, skip_H: Tensor) -> Tensor:
    """The output of `ssd_cell` [B, I], without autograd; `h_BNI` becomes the next state."""
    N, I = h_BNI.shape[1:]
    x_BI, write_BN, read_BN = xbc_BC.split([I, N, N], -1)
    size = I // len(a_H)
    dt_BI = dt_BH.repeat_interleave(size, -1)
    decay_BI = torch.exp(a_H * dt_BH).repeat_interleave(size, -1)
    h_BNI.mul_(decay_BI.unsqueeze(1)).addcmul_(write_BN.unsqueeze(2), (dt_BI * x_BI).unsqueeze(1))
    y_BI = torch.bmm(read_BN.unsqueeze(1), h_BNI).squeeze(1)
    return y_BI.addcmul_(x_BI, skip_H.repeat_interleave(size))


def chunked_scan(
    x_TBHP: Tensor,
    log_decay_TBH: Tensor,
    write_TBN: Tensor,
    read_TBN: Tensor,
    reset_TB: Tensor,
    h_BHPN: Tensor,
    initial_HPN: Tensor | None,
    chunk: int,
    cut_TB: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The products of states and `read` [T, B, H, P], and the last state [B, H, P, N].

    Where `reset_TB` is true, the environment's state before that step is `initial_HPN`, or zeros if that is None. Log
    decays are at most 0. All numbers must be finite, because a reset multiplies by 0. `chunk` steps are computed at
    once, which affects speed and rounding only. The result can be differentiated once, in every tensor but the flags;
    one state a chunk is kept for it.
    """
    y_TBHP, last_BHPN = _SsdScan.apply(
        x_TBHP.contiguous(), log_decay_TBH, write_TBN, read_TBN, reset_TB, cut_TB, h_BHPN, initial_HPN, chunk
    )
    return y_TBHP, last_BHPN


class _Chunk(NamedTuple):
    """Shares of earlier steps and states that are left at each step of a chunk."""

    same_BLM: Tensor  # [B, L, L] 1 if step M is not after step L and no reset lies between them
    before_BLH: Tensor  # [B, L, H] share left of the state before the chunk
    initial_BLH: Tensor  # [B, L, H] share left of the initial state, 0 if the chunk had no reset yet
    last_BLH1: Tensor  # [B, L, H, 1] share left of a step at the chunk's end
    pair_BHLM: Tensor  # [B, H, L, L] share left of step M at step L, 0 if a reset lies between them


def _chunk(log_decay_LBH: Tensor, reset_LB: Tensor, cut_LB: Tensor | None = None) -> _Chunk:
    """The shares; with cuts, those by which gradients go back, which end at a cut as at a reset."""
    segment_BL = gradient_stops(reset_LB, cut_LB).cumsum(0).t()
    same = (segment_BL.unsqueeze(2) == segment_BL.unsqueeze(1)).tril()
    same_BLM = same.to(log_decay_LBH.dtype)
    s_BLH = same_BLM @ log_decay_LBH.transpose(0, 1)
    s_BHL = s_BLH.transpose(1, 2)
    never_BLM = torch.zeros_like(same_BLM).masked_fill_(~same, -torch.inf)
    pair_BHLM = (s_BHL.unsqueeze(3) - s_BHL.unsqueeze(2)).add_(never_BLM.unsqueeze(1)).exp_()
    last_BLH1 = pair_BHLM[:, :, -1].transpose(1, 2).unsqueeze(3)
    fresh_BL1, start_BLH = segment_BL.unsqueeze(2) > 0, s_BLH.exp()
    opened_BL1 = fresh_BL1
    if cut_LB is not None:  # a segment may begin without the initial state
        opened_BL1 = same_BLM @ reset_LB.t().unsqueeze(2).to(same_BLM.dtype)
    return _Chunk(same_BLM, start_BLH * ~fresh_BL1, start_BLH * opened_BL1, last_BLH1, pair_BHLM)


def _by_heads(x_BLHP: Tensor) -> Tensor:
    """A view [B H, L, P] of a tensor that lies in memory with time first."""
    B, L, H, P = x_BLHP.shape
    return x_BLHP.transpose(0, 1).view(L, B * H, P).transpose(0, 1)


def _scaled(h_BIN: Tensor, scale_BH: Tensor) -> Tensor:
    """[B, I, N] with each head multiplied by its number; h may be without the axis B."""
    return (h_BIN.unflatten(-2, (scale_BH.shape[1], -1)) * scale_BH[..., None, None]).flatten(1, 2)


class _SsdScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TBHP: Tensor,
        log_decay_TBH: Tensor,
        write_TBN: Tensor,
        read_TBN: Tensor,
        reset_TB: Tensor,
        cut_TB: Tensor | None,
        h_BHPN: Tensor,
        initial_HPN: Tensor | None,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        T, B, H, P = x_TBHP.shape
        initial_IN = None if initial_HPN is None else initial_HPN.flatten(0, 1)
        states = [h_BHPN.flatten(1, 2)]
        y_TBHP = torch.empty_like(x_TBHP)
        for t in range(0, T, chunk):
            steps, h_BIN = slice(t, t + chunk), states[-1]
            c = _chunk(log_decay_TBH[steps], reset_TB[steps])
            write_BLN, read_BLN = write_TBN[steps].transpose(0, 1), read_TBN[steps].transpose(0, 1)
            x_BLHP = x_TBHP[steps].transpose(0, 1)
            from_BLHP = (read_BLN @ h_BIN.mT).unflatten(2, (H, P)).mul_(c.before_BLH.unsqueeze(3))
            kept_BIN = _scaled(h_BIN, c.before_BLH[:, -1])
            if initial_IN is not None:
                fresh_BLHP = (read_BLN @ initial_IN.t()).unflatten(2, (H, P))
                from_BLHP.addcmul_(fresh_BLHP, c.initial_BLH.unsqueeze(3))
                kept_BIN += _scaled(initial_IN, c.initial_BLH[:, -1])
            weight_BHLM = (read_BLN @ write_BLN.mT).unsqueeze(1) * c.pair_BHLM
            inside_BHLP = (weight_BHLM.flatten(0, 1) @ _by_heads(x_BLHP)).view(B, H, -1, P)
            torch.add(from_BLHP, inside_BHLP.transpose(1, 2), out=y_TBHP[steps].transpose(0, 1))
            states.append(kept_BIN.baddbmm_((x_BLHP * c.last_BLH1).flatten(2).mT, write_BLN))
        ctx.chunk = chunk
        given = x_TBHP, log_decay_TBH, write_TBN, read_TBN, reset_TB, cut_TB, initial_IN
        ctx.save_for_backward(*given, y_TBHP, *states)
        return y_TBHP, states[-1].unflatten(1, (H, P))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_TBHP: Tensor, dlast_BHPN: Tensor) -> tuple[Tensor | None, ...]:
        x_TBHP, log_decay_TBH, write_TBN, read_TBN, reset_TB, cut_TB, initial_IN, y_TBHP, *states = ctx.saved_tensors
        T, B, H, P = x_TBHP.shape
        dy_TBHP, dh_BIN = dy_TBHP.contiguous(), dlast_BHPN.flatten(1, 2)
        dinitial_IN = None if initial_IN is None else torch.zeros_like(initial_IN)
        dx_TBHP, dlog_decay_TBH = torch.empty_like(x_TBHP), torch.empty_like(log_decay_TBH)
        dwrite_TBN, dread_TBN = (w.new_empty(w.shape) for w in (write_TBN, read_TBN))
        for i, t in reversed(list(enumerate(range(0, T, ctx.chunk)))):
            steps, h_BIN = slice(t, t + ctx.chunk), states[i]
            c = back = _chunk(log_decay_TBH[steps], reset_TB[steps])
            if cut_TB is not None:
                back = _chunk(log_decay_TBH[steps], reset_TB[steps], cut_TB[steps])
            write_BLN, read_BLN = write_TBN[steps].transpose(0, 1), read_TBN[steps].transpose(0, 1)
            x_BLHP, dy_BLHP, dx_BLHP = (z[steps].transpose(0, 1) for z in (x_TBHP, dy_TBHP, dx_TBHP))
            # through the last state, and from one step to another of this chunk
            dkept_BLHP = (write_BLN @ dh_BIN.mT).unflatten(2, (H, P)).mul_(back.last_BLH1)
            dwrite_BLN = (x_BLHP * back.last_BLH1).flatten(2) @ dh_BIN
            dpair_BHLM = (_by_heads(dy_BLHP) @ _by_heads(x_BLHP).mT).view_as(c.pair_BHLM)
            dscore_BLM = dscore_back_BLM = (dpair_BHLM * c.pair_BHLM).sum(1)
            if cut_TB is not None:
                dscore_back_BLM = (dpair_BHLM * back.pair_BHLM).sum(1)
            weight_BHLM = (read_BLN @ write_BLN.mT).unsqueeze(1) * back.pair_BHLM
            inside_BHLP = (weight_BHLM.flatten(0, 1).mT @ _by_heads(dy_BLHP)).view(B, H, -1, P)
            torch.add(dkept_BLHP, inside_BHLP.transpose(1, 2), out=dx_BLHP)
            dwrite_TBN[steps] = dwrite_BLN.baddbmm_(dscore_back_BLM.mT, read_BLN).transpose(0, 1)
            dread_BLN = dscore_BLM @ write_BLN
            # through the decays
            ds_BLH = (dy_BLHP * y_TBHP[steps].transpose(0, 1)).sum(3) - (x_BLHP * dx_BLHP).sum(3)
            ds_BLH[:, -1] += (dh_BIN * states[i + 1]).sum(2).unflatten(1, (H, P)).sum(2)
            dlog_decay_TBH[steps] = (back.same_BLM.mT @ ds_BLH).transpose(0, 1)
            # from the state before, or the initial one
            if dinitial_IN is not None:
                dfresh_BLI = (dy_BLHP * c.initial_BLH.unsqueeze(3)).flatten(2)
                dread_BLN += dfresh_BLI @ initial_IN
                if cut_TB is not None:
                    dfresh_BLI = (dy_BLHP * back.initial_BLH.unsqueeze(3)).flatten(2)
                dinitial_IN += dfresh_BLI.flatten(0, 1).t() @ read_BLN.flatten(0, 1)
                dinitial_IN += _scaled(dh_BIN, back.initial_BLH[:, -1]).sum(0)
            dfrom_BLI = (dy_BLHP * c.before_BLH.unsqueeze(3)).flatten(2)
            dread_TBN[steps] = dread_BLN.baddbmm_(dfrom_BLI, h_BIN).transpose(0, 1)
            if cut_TB is not None:
                dfrom_BLI = (dy_BLHP * back.before_BLH.unsqueeze(3)).flatten(2)
            dh_BIN = _scaled(dh_BIN, back.before_BLH[:, -1]).baddbmm_(dfrom_BLI.mT, read_BLN)
        dinitial_HPN = None if dinitial_IN is None else dinitial_IN.unflatten(0, (H, P))
        dh_BHPN = dh_BIN.unflatten(1, (H, P))
        return dx_TBHP, dlog_decay_TBH, dwrite_TBN, dread_TBN, None, None, dh_BHPN, dinitial_HPN, None
