"""The selective scan over T steps, by whichever implementation is asked for."""

from torch import Tensor

from mneme.controllers.precision import in_float32
from mneme.controllers.scans.selective.cell import SelectiveInputs, SelectiveParameters
from mneme.controllers.scans.selective.torch import torch_selective_scan, torch_selective_step


def selective_step(x: SelectiveInputs, h_BNI: Tensor, p: SelectiveParameters, backend: str = "torch") -> Tensor:
    """One step without resets and without autograd: the output [B, I]; `h_BNI` becomes the next state."""
    if backend == "numba":
        from mneme.controllers.scans.selective.numba import numba_selective_step  # here, as numba may be missing

        return numba_selective_step(x, h_BNI, p)
    return torch_selective_step(x, h_BNI, p)


@in_float32
def selective_scan(
    x: SelectiveInputs,
    reset_TB: Tensor,
    h_BNI: Tensor,
    initial_NI: Tensor,
    p: SelectiveParameters,
    backend: str = "torch",
    cut_TB: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Every output [T, B, I], and the last state [B, N, I].

    Where `reset_TB` is true, the environment's state before that step is `initial_NI`. The result can be differentiated
    once, in every tensor but the flags. mamba_ssm's CUDA kernel is not used: it takes no initial state, ignores the
    gradient of the last state, and has no resets.

    Args:
        x: the inputs of all steps.
        reset_TB: bool.
        h_BNI: the states before the first step.
        initial_NI: the state at the start of an episode.
        p: rates and skip weights.
        backend: "torch", "numba" or "triton".
        cut_TB: bool, where no gradient goes back to the state before the step.
    """
    if backend == "numba":
        from mneme.controllers.scans.selective.numba import numba_selective_scan  # here, as numba may be missing

        return numba_selective_scan(x, reset_TB, h_BNI, initial_NI, p, cut_TB)
    if backend == "triton":
        from mneme.controllers.scans.selective.triton import triton_selective_scan  # here, as triton may be missing

        return triton_selective_scan(x, reset_TB, h_BNI, initial_NI, p, cut_TB)
    return torch_selective_scan(x, reset_TB, h_BNI, initial_NI, p, cut_TB)
