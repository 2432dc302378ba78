"""Mamba-2's gated norm: division of y silu(z) by its root mean square."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mneme.controllers.precision import wide


def torch_gated_norm(y: Tensor, z: Tensor, weight_I: Tensor, eps: float) -> Tensor:
    """weight n sqrt(1 - (1 - eps) (1 - mean(n^2))^2) with n = g / sqrt(mean(g^2) + eps), g = y silu(z): [..., I].

    mamba_ssm has weight n, which multiplies gradients by up to 1 / sqrt(eps) where the gate is shut, as by a blank
    observation. The square root damps that, as in `controllers.layer_norm`, where mean(n^2) comes near to 0.
    """
    g = y * F.silu(z)
    variance = torch.linalg.vecdot(wide(g), wide(g)).unsqueeze(-1) / g.shape[-1] + eps
    damping = 1 - (1 - eps) * (eps / variance).square()
    return g * (damping / variance).sqrt().to(g.dtype) * weight_I
