"""The bistable recurrent cell over T steps, by whichever implementation is asked for."""

from torch import Tensor

from mneme.controllers.precision import autocast, factor
from mneme.controllers.scans.nbrc.cell import NbrcParameters
from mneme.controllers.scans.nbrc.torch import torch_nbrc_scan


def nbrc_scan(
    x_TBD: Tensor,
    reset_TB: Tensor,
    h_BH: Tensor,
    initial_H: Tensor,
    p: NbrcParameters,
    backend: str = "torch",
    cut_TB: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Every state [T, B, H], and the last one [B, H]; arguments and gradients as in `scans.gru.scan.gru_scan`.

    Args:
        x_TBD: the inputs.
        reset_TB: bool.
        h_BH: the states before the first step.
        initial_H: the state at the start of an episode.
        p: weights and biases.
        backend: "torch" or "numba".
        cut_TB: bool, where no gradient goes back to the state before the step.
    """
    x_TBD = factor(x_TBD)
    with autocast(x_TBD.device, enabled=False):
        if backend == "numba":
            from mneme.controllers.scans.nbrc.numba import numba_nbrc_scan  # here, as numba may be missing

            return numba_nbrc_scan(x_TBD, reset_TB, h_BH, initial_H, p, cut_TB)
        return torch_nbrc_scan(x_TBD, reset_TB, h_BH, initial_H, p, cut_TB)
