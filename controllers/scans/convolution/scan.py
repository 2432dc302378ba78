"""The convolution over T steps and the silu after it, by whichever implementation is asked for."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mneme.controllers.precision import in_float32
from mneme.controllers.scans.convolution.cell import silu_convolution_cell
from mneme.controllers.scans.convolution.torch import convolution_scan


def silu_convolution_step(
    x_BC: Tensor, window_BWC: Tensor, weight_CK: Tensor, bias_C: Tensor, backend: str = "torch"
) -> tuple[Tensor, Tensor]:
    """One step without resets and without autograd: `silu_convolution_cell`."""
    if backend == "numba":
        reset_1B = torch.zeros(1, len(x_BC), dtype=torch.bool)
        arguments = reset_1B, window_BWC, window_BWC[0], weight_CK, bias_C
        y_1BC, window_BWC = silu_convolution(x_BC.unsqueeze(0), *arguments, backend)
        return y_1BC[0], window_BWC
    return silu_convolution_cell(x_BC, window_BWC, weight_CK, bias_C)


@in_float32
def silu_convolution(
    x_TBC: Tensor,
    reset_TB: Tensor,
    window_BWC: Tensor,
    initial_WC: Tensor,
    weight_CK: Tensor,
    bias_C: Tensor,
    backend: str = "torch",
    cut_TB: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Every output [T, B, C], and the last window [B, W, C].

    Where `reset_TB` is true, the environment's window before that step is `initial_WC`. The result can be
    differentiated once, in every tensor but the flags.

    Args:
        x_TBC: the inputs.
        reset_TB: bool.
        window_BWC: the inputs before the first step.
        initial_WC: the window at the start of an episode.
        weight_CK: a weight for each channel and tap.
        bias_C: a bias for each channel.
        backend: "torch" or "numba".
        cut_TB: bool, where no gradient goes back to the window before the step.
    """
    arguments = x_TBC, reset_TB, window_BWC, initial_WC, weight_CK, bias_C, cut_TB
    if backend == "numba":
        from mneme.controllers.scans.convolution.numba import numba_silu_convolution  # here, as numba may be missing

        return numba_silu_convolution(*arguments)
    y_TBC, last_BWC = convolution_scan(*arguments)
    return F.silu(y_TBC), last_BWC
