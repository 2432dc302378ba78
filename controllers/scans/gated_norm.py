"""Mamba-2's gated norm: the root mean square taken out of y silu(z)."""

import torch.nn.functional as F
from torch import Tensor

from mneme.controllers.layer_norm import damped


def gated_norm(y: Tensor, z: Tensor, weight_I: Tensor, eps: float) -> Tensor:
    """weight g / sqrt(mean(g^2) + eps) with g = y silu(z), damped where g is next to nothing: [..., I] -> [..., I].

    mamba_ssm's is without `damped`, which lets a gate that is shut, as by a blank observation, magnify gradients.
    """
    return damped(F.rms_norm(y * F.silu(z), weight_I.shape, eps=eps), eps) * weight_I
