"""One step of a gated recurrent unit (Cho et al. 2014), with the gates of `torch.nn.GRUCell`.

    r = sigmoid(W_r x + U_r h + b_r)        z = sigmoid(W_z x + U_z h + b_z)
    n = tanh(W_n x + b_n + r (U_n h + c_n))                h' = (1 - z) n + z h

Axis letters: B environments, D input features, H hidden units, G = 3H gates.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class GruParameters(NamedTuple):
    """Laid out as in `torch.nn.GRUCell`: rows are the gates r, z, n."""

    w_ih: Tensor  # [3H, D]
    w_hh: Tensor  # [3H, H]
    b_ih: Tensor  # [3H]
    b_hh: Tensor  # [3H]


def gru_cell(x_BD: Tensor, h_BH: Tensor, p: GruParameters) -> Tensor:
    """The next state: [B, D], [B, H] -> [B, H]."""
    return gru_update(x_BD @ p.w_ih.t() + p.b_ih, h_BH @ p.w_hh.t() + p.b_hh, h_BH)


def gru_update(from_x_BG: Tensor, from_h_BG: Tensor, h_BH: Tensor) -> Tensor:
    """The next state from what the input and the state contribute to the gates r, z, n before their nonlinearities."""
    x_r, x_z, x_n = from_x_BG.chunk(3, -1)
    h_r, h_z, h_n = from_h_BG.chunk(3, -1)
    z = torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)
    return (1 - z) * n + z * h_BH
