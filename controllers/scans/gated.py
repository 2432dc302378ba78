"""What the compiled scans of GRU, LSTM and nBRC share: gradients of weights, added up some steps at a time, going back.

Inside the kernel, turned on their side, the states before some steps, ones for the biases and the steps' inputs are the
left factor; the gradients of the sums before the nonlinearities, in panels, are the right one. Inputs in bfloat16 are
left to torch: their products with all steps of a block, and those of the weights' gradients.

Axis letters: T steps, S of them at once, B environments, R = S B rows, D input features, H hidden units, G sums of all
gates, P panels of width W.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mneme.controllers.precision import wide
from mneme.controllers.scans.blocks import blocks
from mneme.controllers.scans.machine_code import arrays, compiled, copy
from mneme.controllers.scans.products import multiply, padded, panels, put_column, put_row
from mneme.controllers.scans.weight_gradients import WeightGradients

_ROWS = 128  # at once; their gradients, turned states and the sums of both fit half a megabyte at hidden size 128


def inputs_apart(x_TBD: Tensor, w_ih_GD: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """The inputs whose products the kernel makes, [T, B, D], and those that are made already, [T, B, G]; the other is
    empty."""
    T, B, D = x_TBD.shape
    if x_TBD.dtype == like.dtype:
        return x_TBD, like.new_empty(T, B, 0)
    return like.new_empty(T, B, 0), wide(x_TBD.reshape(-1, D) @ w_ih_GD.to(x_TBD.dtype).t()).view(T, B, -1)


class Adding(NamedTuple):
    """Arrays of `add_weight_gradients`."""

    x: Any  # [T, B, D], or with D = 0 if nothing is to be added up
    of_h: int  # panels of the sums that the states contribute to, which come first
    before_x: int  # panels before those of the sums that the inputs contribute to, which come last
    h: Any  # [H + 1, R] states and ones
    ones_x: Any  # [1 + D, R] ones and inputs
    right: Any  # [P, R, W]
    dh: Any  # [H + 1, W of_h] gradients of the states' weights, and of the biases of these sums
    dx: Any  # [1 + D, W (P - before_x)] of the biases of the other sums, and of the inputs' weights
    through: Any  # panels of [G, D], the weights through which the inputs' gradients come, or none
    from_x: Any  # [B, W P'] room for a step of them
    inputs: Any  # [T, B, D] the inputs' gradients, or empty


class WeightSums:
    """Gradients of the weights of a gated recurrence, as `WeightGradients` has them, in the order of the sums.

    Args:
        x_TBD: the inputs.
        reset_TB: the flags.
        initial_H: the state at the start of an episode.
        w_ih_GD: the inputs' weights, in the order of the sums.
        w_hh_GH: the states' weights, likewise.
        sums: G / H of all; states contribute to the first of them, and inputs to the last.
        with_dx: whether the inputs have gradients too.
    """

    def __init__(
        self,
        x_TBD: Tensor,
        reset_TB: Tensor,
        initial_H: Tensor,
        w_ih_GD: Tensor,
        w_hh_GH: Tensor,
        *,
        sums: int,
        with_dx: bool,
    ) -> None:
        (T, B), (G_x, D), (G_h, H) = reset_TB.shape, w_ih_GD.shape, w_hh_GH.shape
        a_gate = padded(H, w_hh_GH.dtype)
        self._hidden, self._of_h, self._of_x = H, G_h, G_x
        self._apart: WeightGradients | None = None
        self.spans = [(0, T)]
        """Steps from and to which the kernel is to be called, in order."""
        self.at_once = min(T, max(1, _ROWS // max(B, 1)))
        """S."""
        if x_TBD.dtype != w_hh_GH.dtype:
            self._apart = WeightGradients(x_TBD, reset_TB, initial_H, w_ih_GD, w_hh_GH, with_dx)
            self.spans = blocks(T, B)
            self.at_once = self.spans[0][1]
            x_TBD, with_dx = w_hh_GH.new_empty(T, B, 0), False
        rows = 0 if self._apart else self.at_once * B
        self._inputs = torch.empty_like(x_TBD, memory_format=torch.contiguous_format) if with_dx else None
        x, w_ih, inputs = arrays(x_TBD, w_ih_GD, x_TBD.new_empty(0, 0, 0) if self._inputs is None else self._inputs)
        through = panels(w_ih if with_dx else w_ih[:0, :0])
        dtype, width = w_ih.dtype, through.shape[2]
        self._dh_MG = np.zeros((H + 1, G_h // H * a_gate), dtype)
        self._dx_MG = np.zeros((1 + D, G_x // H * a_gate), dtype)
        right = np.zeros((sums * a_gate // width, rows, width), dtype)
        self.arrays = Adding(
            x, self._dh_MG.shape[1] // width, len(right) - self._dx_MG.shape[1] // width,
            np.ones((H + 1, rows), dtype), np.ones((1 + D, rows), dtype), right, self._dh_MG, self._dx_MG,
            through, np.empty((B, len(through) * width), dtype), inputs,
        )  # fmt: skip

    def add_apart(self, start: int, stop: int, h_KBH: Tensor, d_KBG: Tensor) -> None:
        """Add the gradients of a span's steps, where the kernel has not.

        Args:
            start: first step.
            stop: the step after the last.
            h_KBH: the states before each step, resets not applied.
            d_KBG: gradients of the sums.
        """
        if self._apart is None:
            return
        G, of_h, of_x = d_KBG.shape[2], self._of_h, self._of_x
        d_x_KBG = d_KBG[..., G - of_x :]
        self._apart.add(start, stop, h_KBH, d_x_KBG, d_x_KBG if of_h == of_x == G else d_KBG[..., :of_h])

    @property
    def dx_TBD(self) -> Tensor | None:
        """The inputs' gradients, if they have any."""
        return self._apart.dx_TBD if self._apart else self._inputs

    def of_parameters(self, first_gate: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As `WeightGradients.of_parameters`; of the sums that states contribute to, this one comes first there."""
        if self._apart:
            dw_ih_GD, dw_hh_GH, db_ih_G, db_hh_G = self._apart.of_parameters()
            shift = -first_gate * self._hidden
            return dw_ih_GD, dw_hh_GH.roll(shift, 0), db_ih_G, db_hh_G.roll(shift)
        dh_MG, dx_MG = self._unpadded(self._dh_MG, first_gate), self._unpadded(self._dx_MG, 0)
        return dx_MG[1:].t(), dh_MG[:-1].t(), dx_MG[0], dh_MG[-1]

    def _unpadded(self, x_MG: np.ndarray, first_gate: int) -> Tensor:
        x_MgH = x_MG.reshape(len(x_MG), -1, padded(self._hidden, x_MG.dtype))[..., : self._hidden]
        if first_gate:
            x_MgH = np.concatenate([x_MgH[:, first_gate:], x_MgH[:, :first_gate]], 1)
        return torch.from_numpy(x_MgH.reshape(len(x_MG), -1))


@compiled
def add_weight_gradients(start, stop, reset, initial, h, d, to):
    """Add the gradients of the steps from `start` to `stop`.

    Args:
        start: first step.
        stop: the step after the last.
        reset: [T, B].
        initial: [H].
        h: [T + 1, B, H] states, those before each step first.
        d: [S, B, G] gradients of the sums of these steps.
        to: see `Adding`.
    """
    B, H, P, R = reset.shape[1], len(initial), len(to.right), (stop - start) * reset.shape[1]
    for t in range(start, stop):
        for b in range(B):
            row = (t - start) * B + b
            put_column(to.h, 0, row, initial if reset[t, b] else h[t, b])
            put_column(to.ones_x, 1, row, to.x[t, b])
            put_row(to.right, row, d[t - start, b], H)
    multiply(to.h, 0, R, to.right, 0, to.of_h, to.dh, 0, True)
    multiply(to.ones_x, 0, R, to.right, to.before_x, P, to.dx, 0, True)
    if len(to.inputs):
        weights = to.through
        first = d.shape[2] - weights.shape[1]
        for t in range(start, stop):
            multiply(d[t - start], first, weights.shape[1], weights, 0, len(weights), to.from_x, 0, False)
            for b in range(B):
                copy(to.inputs[t, b], to.from_x[b, : to.x.shape[2]])
