"""The GRU over T steps, by whichever implementation is asked for."""

from torch import Tensor

from mneme.controllers.precision import autocast, factor
from mneme.controllers.scans.gru.cell import GruParameters
from mneme.controllers.scans.gru.torch import torch_gru_scan


def gru_scan(
    x_TBD: Tensor,
    reset_TB: Tensor,
    h_BH: Tensor,
    initial_H: Tensor,
    p: GruParameters,
    backend: str = "torch",
    cut_TB: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Every state [T, B, H], and the last one [B, H].

    Where `reset_TB` is true, the environment's state before that step is `initial_H`. The result can be differentiated
    once, in every tensor but the flags.

    Args:
        x_TBD: the inputs; in bfloat16, so are their products and those of all steps that the weights' gradients are,
            but in triton.
        reset_TB: bool.
        h_BH: the states before the first step.
        initial_H: the state at the start of an episode.
        p: weights and biases.
        backend: "torch", "numba" or "triton".
        cut_TB: bool, where no gradient goes back to the state before the step.
    """
    x_TBD = factor(x_TBD)
    with autocast(x_TBD.device, enabled=False):
        if backend == "numba":
            from mneme.controllers.scans.gru.numba import numba_gru_scan  # here, as numba may be missing

            return numba_gru_scan(x_TBD, reset_TB, h_BH, initial_H, p, cut_TB)
        if backend == "triton":
            from mneme.controllers.scans.gru.triton import triton_gru_scan  # here, as triton may be missing

            return triton_gru_scan(x_TBD.to(h_BH.dtype), reset_TB, h_BH, initial_H, p, cut_TB)
        return torch_gru_scan(x_TBD, reset_TB, h_BH, initial_H, p, cut_TB)
