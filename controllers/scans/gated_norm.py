"""Mamba-2's gated norm: the root mean square taken out of y silu(z)."""

import torch.nn.functional as F
from torch import Tensor


def gated_norm(y: Tensor, z: Tensor, weight_I: Tensor, eps: float, backend: str = "torch") -> Tensor:
    """weight g / sqrt(mean(g^2) + eps) with g = y silu(z): [..., I], [..., I] -> [..., I].

    `backend` is "torch", or "numba" on a CPU, where the gradient can be taken once.
    """
    if backend == "numba":
        from controllers.scans.compiled_norm import compiled_gated_norm  # here, as not all have numba

        return compiled_gated_norm(y, z, weight_I, eps)
    return F.rms_norm(y * F.silu(z), weight_I.shape, weight_I, eps)
