"""A diagonal linear recurrence over T steps, by whichever implementation is asked for.

    h[t] = a[t] h[t-1] + b[t]          real or complex, each channel on its own

Axis letters: T steps, B environments, N channels.
"""

from torch import Tensor

from mneme.controllers.precision import in_float32
from mneme.controllers.scans.linear.torch import torch_linear_scan


@in_float32
def linear_scan(
    a: Tensor,
    b_TBN: Tensor,
    reset_TB: Tensor,
    h_BN: Tensor,
    initial_N: Tensor,
    backend: str = "torch",
    cut_TB: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Every state [T, B, N], and the last one [B, N].

    Where `reset_TB` is true, the environment's state before that step is `initial_N`. The result can be differentiated
    once, in every tensor but the flags.

    Args:
        a: the factors, [T, B, N], or [N] if they are the same at every step.
        b_TBN: what is added.
        reset_TB: bool.
        h_BN: the states before the first step.
        initial_N: the state at the start of an episode.
        backend: "torch", or "triton" for real factors [T, B, N].
        cut_TB: bool, where no gradient goes back to the state before the step.
    """
    if backend == "triton":
        from mneme.controllers.scans.linear.triton import triton_linear_scan  # here, as triton may be missing

        return triton_linear_scan(a, b_TBN, reset_TB, h_BN, initial_N, cut_TB)
    return torch_linear_scan(a, b_TBN, reset_TB, h_BN, initial_N, cut_TB)
