"""A recurrence with constant factors in log2(T) steps over all of time, each of a few launches: for GPUs.

After the step of width k a state holds what the last 2k inputs gave it (Hillis & Steele 1986), as

    sum over the last 2k inputs = sum over the last k + a^k (the same, k steps earlier)

The powers of a only shrink, so nothing overflows. What came before a reset is left out by its age.

Axis letters: T time, B lanes, N channels.
"""

import torch
from torch import Tensor


def ages(reset_TB: Tensor) -> Tensor:
    """How many steps ago each lane's last reset was, [T, B]: 0 at the reset itself, above T where there was none."""
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
