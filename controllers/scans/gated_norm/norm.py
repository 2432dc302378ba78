"""Mamba-2's gated norm, by whichever implementation is asked for."""

from torch import Tensor

from mneme.controllers.precision import in_float32
from mneme.controllers.scans.gated_norm.torch import torch_gated_norm


@in_float32
def gated_norm(y: Tensor, z: Tensor, weight_I: Tensor, eps: float, backend: str = "torch") -> Tensor:
    """The norm of y under the gate z, [..., I], by the equation of `torch_gated_norm`. It can be differentiated once.

    Args:
        y, z: [..., I].
        weight_I: a factor for each channel.
        eps: added to the mean square.
        backend: "torch" or "numba".
    """
    if backend == "numba":
        from mneme.controllers.scans.gated_norm.numba import numba_gated_norm  # here, as numba may be missing

        return numba_gated_norm(y, z, weight_I, eps)
    return torch_gated_norm(y, z, weight_I, eps)
