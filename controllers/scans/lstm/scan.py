"""The LSTM over T steps, by whichever implementation is asked for."""

from torch import Tensor

from mneme.controllers.precision import autocast, factor
from mneme.controllers.scans.lstm.cell import LstmParameters, LstmState
from mneme.controllers.scans.lstm.torch import torch_lstm_scan


def lstm_scan(
    x_TBD: Tensor,
    reset_TB: Tensor,
    state: LstmState,
    initial: LstmState,
    p: LstmParameters,
    backend: str = "torch",
    cut_TB: Tensor | None = None,
) -> tuple[Tensor, LstmState]:
    """Every output [T, B, H], and the last state.

    Where `reset_TB` is true, the environment's state before that step is `initial`. The result can be differentiated
    once, in every tensor but the flags.

    Args:
        x_TBD: the inputs; in bfloat16, so are their products and those of all steps that the weights' gradients are,
            but in triton.
        reset_TB: bool.
        state: before the first step.
        initial: at the start of an episode.
        p: weights and biases.
        backend: "torch", "numba" or "triton".
        cut_TB: bool, where no gradient goes back to the state before the step.
    """
    x_TBD = factor(x_TBD)
    with autocast(x_TBD.device, enabled=False):
        if backend == "numba":
            from mneme.controllers.scans.lstm.numba import numba_lstm_scan  # here, as numba may be missing

            return numba_lstm_scan(x_TBD, reset_TB, state, initial, p, cut_TB)
        if backend == "triton":
            from mneme.controllers.scans.lstm.triton import triton_lstm_scan  # here, as triton may be missing

            return triton_lstm_scan(x_TBD.to(state.h.dtype), reset_TB, state, initial, p, cut_TB)
        return torch_lstm_scan(x_TBD, reset_TB, state, initial, p, cut_TB)
