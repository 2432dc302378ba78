"""A linear recurrence with constant factors in log2(T) passes over all steps, for GPUs (Hillis & Steele 1986).

After the pass of width k, each state holds the contributions of the last 2k inputs, as

    sum over the last 2k inputs = sum over the last k + a^k (the same, k steps earlier)

|a| < 1, so that its powers do not overflow. Contributions from before a reset are left out by their age.

Axis letters: T steps, B environments, N channels.
"""

import torch
from torch import Tensor


def ages(reset_TB: Tensor) -> Tensor:
    """Steps since each environment's last reset, [T, B]: 0 at the reset itself, more than T if there was none."""
    T = len(reset_TB)
    t_T1 = torch.arange(T, device=reset_TB.device).unsqueeze(1)
    return t_T1 - torch.where(reset_TB, t_T1, -T - 1).cummax(0).values


def accumulate(a_N: Tensor, b_TBN: Tensor, ages_TB: Tensor, backwards: bool = False) -> Tensor:
    """h_t = b_t + a h_{t-1} from h = 0, the second term only where t is no reset, [T, B, N].

    `backwards` it is the transpose, g_t = b_t + a g_{t+1}, the second term only where t + 1 is no reset.
    """
    width = 1
    while width < len(b_TBN):
        reaches_TB1 = (ages_TB[width:] >= width).unsqueeze(-1)
        further = b_TBN[width:] if backwards else b_TBN[:-width]
        further = a_N * torch.where(reaches_TB1, further, 0)
        if backwards:
            b_TBN = torch.cat([b_TBN[:-width] + further, b_TBN[-width:]])
        else:
            b_TBN = torch.cat([b_TBN[:width], b_TBN[width:] + further])
        a_N, width = a_N * a_N, 2 * width
    return b_TBN
