"""One step of a bistable recurrent cell (Vecoven, Ernst & Drion 2021, PLoS ONE 16(6), e0252676).

    a = 1 + tanh(U_a x + W_a h + b_a)        c = sigmoid(U_c x + W_c h + b_c)
    n = tanh(U x + a h)                      h' = c h + (1 - c) n

With a < 1 a unit that is left alone goes to rest at 0; with a > 1 it has two states of rest, one of either sign, and
stays with the one that it is nearer to: a bit, for ever. Where W_a and W_c are full matrices the units set each other's
a and c, and the cell is the neuromodulated one (nBRC); where they are diagonal it is the cellular one (BRC).

The candidate has no bias, as published: a blank input leaves a state of zeros as it is.

Axis letters: B environments, D input features, H hidden units, G = 3H sums.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class NbrcParameters(NamedTuple):
    """Rows are of a, c, n, as far as each has them."""

    w_ih: Tensor  # [3H, D]
    w_hh: Tensor  # [2H, H]; or [2H] where a unit's gates read its own state alone
    bias: Tensor  # [2H]

    @property
    def cellular(self) -> bool:
        """True if a unit's gates read its own state alone."""
        return self.w_hh.dim() == 1


def nbrc_cell(x_BD: Tensor, h_BH: Tensor, p: NbrcParameters) -> Tensor:
    """The next state: [B, D], [B, H] -> [B, H]."""
    x_a, x_c, x_n = (x_BD @ p.w_ih.t()).chunk(3, -1)
    from_h_BG = h_BH.repeat(1, 2) * p.w_hh if p.cellular else h_BH @ p.w_hh.t()
    h_a, h_c = (from_h_BG + p.bias).chunk(2, -1)
    return next_state(x_a + h_a, x_c + h_c, x_n, h_BH)


def next_state(s_a: Tensor, s_c: Tensor, x_n: Tensor, h: Tensor) -> Tensor:
    """h' of the sums that a and c are of, and of the candidate's part of the input."""
    a, c = 1 + torch.tanh(s_a), torch.sigmoid(s_c)
    return c * h + (1 - c) * torch.tanh(x_n + a * h)
