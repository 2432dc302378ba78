"""Gradients of what all steps of a recurrence share, from the slopes of its gates' sums, a block of steps at a time.

Axis letters: T time (K of one block), B lanes, R = K B rows, D input features, H hidden, G gates.
"""

import torch
from torch import Tensor

from mneme.controllers.products import product
from mneme.controllers.scans.resets import with_rows


class WeightGradients:
    """Of the weights and biases of `torch.nn.GRUCell` or `LSTMCell`, and if `with_dx` of the inputs."""

    def __init__(
        self, x_TBD: Tensor, reset_TB: Tensor, initial_H: Tensor, w_ih_GD: Tensor, w_hh_GH: Tensor, with_dx: bool
    ) -> None:
        self._x_TBD, self._reset_TB, self._initial_H, self._w_ih_GD = x_TBD, reset_TB, initial_H, w_ih_GD
        # transposed: with few inputs, [D, rows] x [rows, G] takes a fifth of the time of [G, rows] x [rows, D]
        self._dw_ih_DG, self._dw_hh_HG = (w_GI.new_zeros(w_GI.t().shape) for w_GI in (w_ih_GD, w_hh_GH))
        self._db_ih_G, self._db_hh_G = w_hh_GH.new_zeros(2, len(w_hh_GH))
        self.dx_TBD = torch.empty_like(x_TBD) if with_dx else None

    def add(self, start: int, stop: int, h_KBH: Tensor, d_x_KBG: Tensor, d_h_KBG: Tensor) -> None:
        """Add those of the steps from `start` to `stop`.

        Args:
            h_KBH: the states before them, as they are without resets.
            d_x_KBG: slopes of the gates' sums, as what the inputs add to them.
            d_h_KBG: as what the states add to them; the same tensor, where they are the same.
        """
        x_RD, h_RH = self._x_TBD[start:stop].flatten(0, 1), h_KBH.flatten(0, 1)
        d_x_RG, d_h_RG = d_x_KBG.flatten(0, 1), d_h_KBG.flatten(0, 1)
        h_RH = with_rows(h_RH, self._reset_TB[start:stop].flatten().nonzero()[:, 0], self._initial_H)
        self._dw_ih_DG += product(x_RD.t(), d_x_RG)
        self._dw_hh_HG += product(h_RH.t(), d_h_RG)
        db_G = d_x_RG.sum(0)
        self._db_ih_G += db_G
        self._db_hh_G += db_G if d_h_KBG is d_x_KBG else d_h_RG.sum(0)
        if self.dx_TBD is not None:
            self.dx_TBD[start:stop] = product(d_x_RG, self._w_ih_GD).view_as(self.dx_TBD[start:stop])

    def of_parameters(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """In the order of `GruParameters` and `LstmParameters`."""
        return self._dw_ih_DG.t(), self._dw_hh_HG.t(), self._db_ih_G, self._db_hh_G
