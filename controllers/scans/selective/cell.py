"""One step of Mamba's selective state space (Gu & Dao 2023, algorithm 2).

    d = softplus(dt)      h' = exp(d A) h + d B u      y = (C h' + D u) silu(z)      A = -exp(a_log)

Every channel has N states, each with its own rate. dt, B ("write") and C ("read") are computed from the input.

Axis letters: B environments, I inner channels, N states a channel.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class SelectiveInputs(NamedTuple):
    """The inputs of a step or of all steps; the leading axes are [B] or [T, B]."""

    u: Tensor  # [..., I] what is written to the states
    dt: Tensor  # [..., I] the step's length before softplus
    z: Tensor  # [..., I] the output's gate before silu
    write: Tensor  # [..., N] B, how much u adds to each state
    read: Tensor  # [..., N] C, the weight of each state in the output


class SelectiveParameters(NamedTuple):
    """Laid out as in `mamba_ssm.Mamba`."""

    a_log: Tensor  # [I, N] logarithms of the rates
    skip: Tensor  # [I] D, the weight of u in the output


def selective_cell(x: SelectiveInputs, h_BNI: Tensor, p: SelectiveParameters) -> tuple[Tensor, Tensor]:
    """The output [B, I] and the next state [B, N, I]."""
    d_B1I = F.softplus(x.dt).unsqueeze(1)
    decay_BNI = torch.exp(-d_B1I * p.a_log.exp().t())
    h_BNI = decay_BNI * h_BNI + x.write.unsqueeze(2) * (d_B1I * x.u.unsqueeze(1))
    y_BI = (x.read.unsqueeze(2) * h_BNI).sum(1)
    return (y_BI + p.skip * x.u) * F.silu(x.z), h_BNI
