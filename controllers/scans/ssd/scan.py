"""The recurrence of Mamba-2 over T steps, by whichever implementation is asked for.

Axis letters: T steps, B environments, C = I + 2 N convolved channels, H heads of size P, I = H P inner features,
N state size.
"""

import torch
from torch import Tensor

from mneme.controllers.precision import in_float32
from mneme.controllers.scans.ssd.mamba_ssm import mamba_ssm_scan
from mneme.controllers.scans.ssd.torch import chunked_scan, torch_ssd_step


def ssd_step(
    xbc_BC: Tensor, dt_BH: Tensor, h_BNI: Tensor, a_H: Tensor, skip_H: Tensor, backend: str = "torch"
) -> Tensor:
    """One step without resets and without autograd: the output of `ssd_cell` [B, I]; `h_BNI` becomes the next state."""
    if backend == "numba":
        from mneme.controllers.scans.ssd.numba import (  # here, as numba may be missing
            SsdInputs,
            SsdParameters,
            numba_ssd_step,
        )

        return numba_ssd_step(SsdInputs(xbc_BC, dt_BH), h_BNI, SsdParameters(a_H, skip_H))
    return torch_ssd_step(xbc_BC, dt_BH, h_BNI, a_H, skip_H)


@in_float32
def ssd_scan(
    xbc_TBC: Tensor,
    dt_TBH: Tensor,
    reset_TB: Tensor,
    h_BNI: Tensor,
    initial_NI: Tensor,
    a_H: Tensor,
    skip_H: Tensor,
    chunk: int,
    backend: str = "torch",
    cut_TB: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Every output of `ssd_cell` [T, B, I], and the last state [B, N, I].

    Where `reset_TB` is true, the environment's state before that step is `initial_NI`. The result can be differentiated
    once, in every tensor but the flags.

    Args:
        xbc_TBC: x, B and C side by side.
        dt_TBH: lengths of the steps.
        reset_TB: bool.
        h_BNI: the states before the first step.
        initial_NI: the state at the start of an episode.
        a_H: the rates, negative.
        skip_H: D.
        chunk: how many steps "torch" and "mamba_ssm" compute at once.
        backend: "torch", "numba", or "mamba_ssm", which runs on GPUs and needs an initial state of zeros and no cuts.
        cut_TB: bool, where no gradient goes back to the state before the step.
    """
    if backend == "numba":
        from mneme.controllers.scans.ssd.numba import (  # here, as numba may be missing
            SsdInputs,
            SsdParameters,
            numba_ssd_scan,
        )

        inputs, parameters = SsdInputs(xbc_TBC, dt_TBH), SsdParameters(a_H, skip_H)
        return numba_ssd_scan(inputs, reset_TB, h_BNI, initial_NI, parameters, cut_TB)
    (N, I), H = initial_NI.shape, len(a_H)
    x_TBI, write_TBN, read_TBN = xbc_TBC.split([I, N, N], -1)
    x_TBHP, h_BHPN = x_TBI.unflatten(-1, (H, -1)), h_BNI.mT.unflatten(1, (H, -1))
    if backend == "mamba_ssm" and cut_TB is None:
        y_TBHP, h_BHPN = mamba_ssm_scan(x_TBHP, dt_TBH, -a_H, write_TBN, read_TBN, reset_TB, h_BHPN, chunk)
    else:
        initial_HPN = initial_NI.t().unflatten(0, (H, -1)) if initial_NI.requires_grad else None
        written_TBHP, log_decay_TBH = x_TBHP * dt_TBH.unsqueeze(-1), a_H * dt_TBH
        y_TBHP, h_BHPN = chunked_scan(
            written_TBHP, log_decay_TBH, write_TBN, read_TBN, reset_TB, h_BHPN, initial_HPN, chunk, cut_TB
        )
    return torch.addcmul(y_TBHP, x_TBHP, skip_H.unsqueeze(1)).flatten(-2), h_BHPN.flatten(1, 2).mT
