"""Gradients of the weights of a gated recurrence from the gradients of its gates, a block of steps at a time.

Axis letters: T steps (K of one block), B environments, R = K B rows, D input features, H hidden units, G gates.
"""

import torch
from torch import Tensor

from mneme.controllers.scans.resets import with_rows


class WeightGradients:
    """Gradients of weights and biases as in `torch.nn.GRUCell` or `LSTMCell`; if `with_dx`, of the inputs too.

    Products are of the type of the inputs, their sums over blocks of the type of the weights."""

    def __init__(
        self, x_TBD: Tensor, reset_TB: Tensor, initial_H: Tensor, w_ih_GD: Tensor, w_hh_GH: Tensor, with_dx: bool
    ) -> None:
        self._x_TBD, self._reset_TB, self._initial_H = x_TBD, reset_TB, initial_H
        self._w_ih_GD = w_ih_GD.to(x_TBD.dtype)
        # transposed: with few inputs, [D, rows] x [rows, G] takes a fifth of the time of [G, rows] x [rows, D]
        self._dw_ih_DG, self._dw_hh_HG = (w_GI.new_zeros(w_GI.t().shape) for w_GI in (w_ih_GD, w_hh_GH))
        self._db_ih_G, self._db_hh_G = (w_hh_GH.new_zeros(len(w_GI)) for w_GI in (w_ih_GD, w_hh_GH))
        self.dx_TBD = torch.empty_like(x_TBD) if with_dx else None

    def add(self, start: int, stop: int, h_KBH: Tensor, d_x_KBG: Tensor, d_h_KBG: Tensor) -> None:
        """Add the gradients of the steps from `start` to `stop`.

        Args:
            start: first step.
            stop: the step after the last.
            h_KBH: the states before each step, resets not applied.
            d_x_KBG: gradients of what the inputs contribute to the gates.
            d_h_KBG: gradients of what the states contribute; the same tensor where they are equal.
        """
        x_RD, h_RH = self._x_TBD[start:stop].flatten(0, 1), h_KBH.flatten(0, 1)
        d_x_RG, d_h_RG = d_x_KBG.flatten(0, 1), d_h_KBG.flatten(0, 1)
        h_RH = with_rows(h_RH, self._reset_TB[start:stop].flatten().nonzero()[:, 0], self._initial_H)
        of_x_RG = d_x_RG.to(x_RD.dtype)
        of_h_RG = of_x_RG if d_h_KBG is d_x_KBG else d_h_RG.to(x_RD.dtype)
        self._dw_ih_DG += x_RD.t() @ of_x_RG
        self._dw_hh_HG += h_RH.to(x_RD.dtype).t() @ of_h_RG
        db_G = d_x_RG.sum(0)
        self._db_ih_G += db_G
        self._db_hh_G += db_G if d_h_KBG is d_x_KBG else d_h_RG.sum(0)
        if self.dx_TBD is not None:
            self.dx_TBD[start:stop] = (of_x_RG @ self._w_ih_GD).view_as(self.dx_TBD[start:stop])

    def of_parameters(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """In the order of `GruParameters` and `LstmParameters`."""
        return self._dw_ih_DG.t(), self._dw_hh_HG.t(), self._db_ih_G, self._db_hh_G
