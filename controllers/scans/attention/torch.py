"""Causal attention over a sliding window: one step, and all steps in chunks of queries.

    score_n(t, s) = q_n(t) . k(s) / sqrt(E) + bias_n(t - s)        0 <= t - s < W, and s not before t's last reset
    y_n(t) = sum over s of softmax_s(score_n(t, s)) v(s)

All N heads share their keys and values (multi-query attention, Shazeer 2019), so that the memory is N times smaller and
the heads of an environment are rows of one matrix product. Positions enter as a learned number for each head and
distance (T5, Raffel et al. 2020, without its buckets), which is added to the scores.

A chunk of C queries reads P + C keys, so that time and memory grow with T (W + C) rather than T^2.

Axis letters: T steps (C of one chunk), B environments, N heads, E width of a head, W steps in the window, the present
one included, P = W - 1 steps before the present, S = P + T (P + C of one chunk), M = 2 E numbers remembered of a step,
R = N C rows.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from mneme.controllers.precision import in_float32

NEVER = 1 << 40
"""More steps than any scan or window has."""

CHUNK = 32
"""Queries at a time. With W = 65, 16 and 32 are equally fast, and 64 leaves the cache: 1.5 times the time."""


def attention_step(q_BNE: Tensor, memory_BWM: Tensor, past_B: Tensor, bias_NW: Tensor) -> Tensor:
    """Attention of one query an environment over the last W steps, the present one last: [B, N, E].

    Args:
        q_BNE: queries.
        memory_BWM: keys and values side by side.
        past_B: how many steps before the present are attended to; the others must be finite, too.
        bias_NW: added to the scores of each head, by distance.
    """
    W, E = memory_BWM.shape[1], q_BNE.shape[2]
    k_BWE, v_BWE = memory_BWM.chunk(2, -1)
    scores_BNW = torch.baddbmm(bias_NW.flip(1), q_BNE, k_BWE.transpose(1, 2), alpha=1 / math.sqrt(E))
    distance_W = torch.arange(W - 1, -1, -1, device=past_B.device)
    unseen_BW = distance_W > past_B.clamp(min=0).unsqueeze(1)
    return torch.bmm(scores_BNW.masked_fill(unseen_BW.unsqueeze(1), -math.inf).softmax(-1), v_BWE)


@in_float32
def attention_scan(
    q_TBNE: Tensor, memory_BSM: Tensor, past_TB: Tensor, bias_NW: Tensor, cut_TB: Tensor | None = None
) -> Tensor:
    """`attention_step` for T steps: [T, B, N, E]; `memory_BSM` is that of the P steps before them, then theirs.

    Where `cut_TB` is true, no gradient goes back to what is remembered of the steps before.
    """
    T, B, N, E = q_TBNE.shape
    P, C = bias_NW.shape[1] - 1, min(CHUNK, T)
    bias_NCS = banded(bias_NW, C)
    q_BNTE = q_TBNE.permute(1, 2, 0, 3)
    place_S = torch.arange(P + T, device=past_TB.device)
    first_BT1 = (place_S[P:] - past_TB.clamp(min=0).t()).unsqueeze(-1)
    since_BT1 = None if cut_TB is None else (P + last_cut(cut_TB)).t().unsqueeze(-1)
    chunks = []
    for start in range(0, T, C):
        stop = min(start + C, T)
        queries, keys, size = slice(start, stop), slice(start, stop + P), stop - start
        k_BSE, v_BSE = memory_BSM[:, keys].chunk(2, -1)
        mask_BCS = _mask(place_S[keys] >= first_BT1[:, queries], q_TBNE.dtype)
        q_BRE, bias_RS = q_BNTE[:, :, queries].reshape(B, -1, E), bias_NCS[:, :size, : P + size].flatten(0, 1)
        if since_BT1 is None:
            scores_BRS = torch.baddbmm(bias_RS, q_BRE, k_BSE.transpose(1, 2), alpha=1 / math.sqrt(E))
            scores_BRS.view(B, N, size, -1).add_(mask_BCS.unsqueeze(1))
            read_BRE = torch.bmm(scores_BRS.softmax(-1), v_BSE)
        else:
            flows_B1CS = (place_S[keys] >= since_BT1[:, queries]).unsqueeze(1)
            scores_BRS = _CutScores.apply(bias_RS, q_BRE, k_BSE, mask_BCS, flows_B1CS)
            read_BRE = _CutRead.apply(scores_BRS.softmax(-1), v_BSE, flows_B1CS)
        chunks.append(read_BRE.view(B, N, size, E).permute(2, 0, 1, 3))
    return torch.cat(chunks)


class _CutScores(torch.autograd.Function):
    """The scores, whose gradient in k passes only where `flows_B1CS` is true."""

    @staticmethod
    def forward(
        ctx: Any, bias_RS: Tensor, q_BRE: Tensor, k_BSE: Tensor, mask_BCS: Tensor, flows_B1CS: Tensor
    ) -> Tensor:
        ctx.save_for_backward(q_BRE, k_BSE, flows_B1CS)
        scores_BRS = torch.baddbmm(bias_RS, q_BRE, k_BSE.mT, alpha=1 / math.sqrt(q_BRE.shape[2]))
        scores_BRS.view(len(q_BRE), -1, *mask_BCS.shape[1:]).add_(mask_BCS.unsqueeze(1))
        return scores_BRS

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dscores_BRS: Tensor) -> tuple[Tensor | None, ...]:
        q_BRE, k_BSE, flows_B1CS = ctx.saved_tensors
        scale = 1 / math.sqrt(q_BRE.shape[2])
        dk_BSE = _flowing(dscores_BRS, flows_B1CS).mT @ q_BRE
        return dscores_BRS.sum(0), (dscores_BRS @ k_BSE).mul_(scale), dk_BSE.mul_(scale), None, None


class _CutRead(torch.autograd.Function):
    """a v, whose gradient in v passes only where `flows_B1CS` is true."""

    @staticmethod
    def forward(ctx: Any, a_BRS: Tensor, v_BSE: Tensor, flows_B1CS: Tensor) -> Tensor:
        ctx.save_for_backward(a_BRS, v_BSE, flows_B1CS)
        return torch.bmm(a_BRS, v_BSE)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dread_BRE: Tensor) -> tuple[Tensor | None, ...]:
        a_BRS, v_BSE, flows_B1CS = ctx.saved_tensors
        return dread_BRE @ v_BSE.mT, _flowing(a_BRS, flows_B1CS).mT @ dread_BRE, None


def _flowing(x_BRS: Tensor, flows_B1CS: Tensor) -> Tensor:
    """x where the gradient flows, in every head, and 0 elsewhere."""
    B, _, C, S = flows_B1CS.shape
    return (x_BRS.view(B, -1, C, S) * flows_B1CS).view_as(x_BRS)


def last_cut(cut_TB: Tensor) -> Tensor:
    """The step of the last cut up to each step [T, B]; less than -T where there was none."""
    t_T1 = torch.arange(len(cut_TB), device=cut_TB.device).unsqueeze(1)
    return torch.where(cut_TB, t_T1, -NEVER).cummax(0).values


def banded(bias_NW: Tensor, queries: int) -> Tensor:
    """The bias of each of C queries on each of P + C keys, [N, C, P + C]; -inf outside the window."""
    row = functional.pad(bias_NW.flip(1), (queries - 1, queries - 1), value=-math.inf)
    return row.unfold(1, bias_NW.shape[1] - 1 + queries, 1).flip(1)


def _mask(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a key is seen and -inf where it is not, to be added to scores."""
    return torch.where(seen, seen.new_zeros((), dtype=dtype), seen.new_full((), -math.inf, dtype=dtype))


def steps_since_reset(reset_TB: Tensor, past_B: Tensor) -> Tensor:
    """Steps of the episode before each step [T, B], given those before the first, `past_B`."""
    t_T1 = torch.arange(len(reset_TB), device=past_B.device).unsqueeze(1)
    last_TB = torch.where(reset_TB, t_T1, -1).cummax(0).values
    return torch.where(last_TB < 0, past_B + t_T1, t_T1 - last_TB)
