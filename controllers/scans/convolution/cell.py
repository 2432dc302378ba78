"""One step of a causal depthwise convolution and of the silu after it.

    y[t] = silu(bias + sum_k weight[k] x[t - (K - 1) + k])

Axis letters: B environments, C channels, K taps, W = K - 1 steps of the window that is carried, oldest first.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def silu_convolution_cell(x_BC: Tensor, window_BWC: Tensor, weight_CK: Tensor, bias_C: Tensor) -> tuple[Tensor, Tensor]:
    """One step: ([B, C], [B, W, C]) -> ([B, C], the next window [B, W, C])."""
    seen_BKC = torch.cat([window_BWC, x_BC.unsqueeze(1)], 1)
    return F.silu((seen_BKC * weight_CK.t()).sum(1) + bias_C), seen_BKC[:, 1:]
