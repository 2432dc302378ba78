"""One step of Mamba-2's state space (Dao & Gu 2024), with one decay a head.

    h' = exp(a dt) h + B (dt x)^T        y = C h' + D x

Axis letters: B environments, C = I + 2 N convolved channels, H heads, I inner features, N state size.
"""

import torch
from torch import Tensor


def ssd_cell(xbc_BC: Tensor, dt_BH: Tensor, h_BNI: Tensor, a_H: Tensor, skip_H: Tensor) -> tuple[Tensor, Tensor]:
    """The output [B, I], and the next state [B, N, I].

    Args:
        xbc_BC: x, B and C side by side, C = I + 2 N.
        dt_BH: length of the step.
        h_BNI: the state.
        a_H: the rates, negative.
        skip_H: D.
    """
    N, I = h_BNI.shape[1:]
    x_BI, write_BN, read_BN = xbc_BC.split([I, N, N], -1)
    size = I // len(a_H)
    dt_BI = dt_BH.repeat_interleave(size, -1)
    decay_BI = torch.exp(a_H * dt_BH).repeat_interleave(size, -1)
    h_BNI = torch.addcmul(decay_BI.unsqueeze(1) * h_BNI, write_BN.unsqueeze(2), (dt_BI * x_BI).unsqueeze(1))
    y_BI = (read_BN.unsqueeze(1) @ h_BNI).squeeze(1)
    return torch.addcmul(y_BI, x_BI, skip_H.repeat_interleave(size)), h_BNI
