"""Mamba-2's gated norm: the root mean square taken out of y silu(z)."""

import torch.nn.functional as F
from torch import Tensor


def gated_norm(y: Tensor, z: Tensor, weight_I: Tensor, eps: float) -> Tensor:
    """weight g / sqrt(mean(g^2) + eps) with g = y silu(z): [..., I], [..., I] -> [..., I]."""
    return F.rms_norm(y * F.silu(z), weight_I.shape, weight_I, eps)
