"""What the compiled scans of gru and nbrc share, whose output is their only state: running their kernels.

Axis letters: T steps (K of one span, S at once), B environments, D input features, H hidden units, G sums of all gates.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mneme.controllers.scans.gated import WeightSums, inputs_apart
from mneme.controllers.scans.machine_code import arrays, scratch
from mneme.controllers.scans.products import padded

Forward = Callable[..., None]
"""A kernel of x [T, B, D], what inputs gave already [T, B, G] (one of the two with no numbers), reset flags, weights,
`Trace`, and room: sums [B, G padded], states [B, H], and sums that are not kept [G]."""


class Trace(NamedTuple):
    """Values that the forward kernel keeps for the backward kernel."""

    sums: Any  # [K, B, G] past their nonlinearities, or empty if nothing is to be kept
    h: Any  # [K + 1, B, H] states, the one before the span first


class Gradients(NamedTuple):
    """Gradients that the backward kernel writes, replaces or adds to."""

    sums: Any  # [S, B, G] of the sums before their nonlinearities
    h: Any  # [B, H] of the state after the span, replaced by that before it
    initial: Any  # [H] added to


class Saved(NamedTuple):
    """Tensors that a scan saves for its way back."""

    x_TBD: Tensor
    reset_TB: Tensor
    stop_TB: Tensor
    initial_H: Tensor
    w_ih: Tensor
    w_hh: Tensor
    h_SBH: Tensor
    sums_TBG: Tensor


def run(
    forward: Forward, weights: Any, x_TBD: Tensor, reset_TB: Tensor, h_BH: Tensor, w_ih: Tensor, sums: int, keep: bool
) -> tuple[Tensor, Tensor]:
    """States [T + 1, B, H], the incoming one first; if `keep`, the sums [T, B, G] past their nonlinearities.

    Args:
        forward: the kernel.
        weights: as the kernel takes them.
        x_TBD: the inputs.
        reset_TB: the flags.
        h_BH: the states before the first step.
        w_ih: the inputs' weights.
        sums: G / H.
        keep: whether there is a way back.
    """
    (T, B), H = reset_TB.shape, h_BH.shape[1]
    h_SBH, sums_TBG = h_BH.new_empty(T + 1, B, H), h_BH.new_empty(T if keep else 0, B, sums * H)
    h_SBH[0] = h_BH
    inputs = arrays(*inputs_apart(x_TBD, w_ih, h_BH), reset_TB)
    forward(*inputs, weights, Trace(*arrays(sums_TBG, h_SBH)), *_room(h_BH, sums))
    return h_SBH, sums_TBG


def run_back(
    backward: Callable[..., None], saved: Saved, recurrent: np.ndarray, dy_TBH: Tensor, dlast_BH: Tensor, with_dx: bool,
    *own: np.ndarray,
) -> tuple[WeightSums, Tensor, Tensor]:  # fmt: skip
    """Gradients of the weights, of the states before the first step, [B, H], and of the initial state, [H].

    Args:
        backward: the kernel.
        saved: from the way forward.
        recurrent: panels of the states' weights, [G of states, H].
        dy_TBH: gradients of the outputs.
        dlast_BH: gradients of the last state besides.
        with_dx: whether the inputs have gradients too.
        own: what this kernel takes last.
    """
    w_hh, sums_TBG, initial_H = saved.w_hh, saved.sums_TBG, saved.initial_H
    sums = sums_TBG.shape[2] // len(initial_H)
    weights = WeightSums(saved.x_TBD, saved.reset_TB, initial_H, saved.w_ih, w_hh, sums=sums, with_dx=with_dx)
    dh_BH, dinitial_H = dlast_BH.clone(memory_format=torch.contiguous_format), torch.zeros_like(initial_H)
    d_SBG = w_hh.new_empty(weights.at_once, *sums_TBG.shape[1:])
    d, (initial,) = Gradients(*arrays(d_SBG, dh_BH, dinitial_H)), arrays(initial_H)
    (through_gates,) = scratch(w_hh, (len(dh_BH), padded(len(initial), w_hh.dtype)))
    for start, stop in reversed(weights.spans):
        flags = arrays(saved.reset_TB[start:stop], saved.stop_TB[start:stop])
        kept, h, dy = arrays(sums_TBG[start:stop], saved.h_SBH[start : stop + 1], dy_TBH[start:stop])
        backward(*flags, initial, recurrent, Trace(kept, h), dy, d, weights.arrays, through_gates, *own)
        weights.add_apart(start, stop, saved.h_SBH[start:stop], d_SBG[: stop - start])
    return weights, dh_BH, dinitial_H


class Stepper:
    """Steps without autograd, with weights that were laid out once; they must not change meanwhile.

    Args:
        forward: the kernel.
        weights: as the kernel takes them.
        sums: G / H.
    """

    def __init__(self, forward: Forward, weights: Any, sums: int) -> None:
        self._forward, self._weights, self._sums, self._lanes = forward, weights, sums, -1

    def __call__(self, x_BD: Tensor, reset_B: Tensor, h_BH: Tensor) -> Tensor:
        """The next states, [B, D], bool [B], [B, H] -> [B, H], which are good until the next call."""
        if len(h_BH) != self._lanes:
            self._lanes, h_SBH = len(h_BH), h_BH.new_empty(2, *h_BH.shape)
            self._before_BH, self._after_BH = h_SBH
            (self._given,), self._room = scratch(h_BH, (1, len(h_BH), 0)), _room(h_BH, self._sums)
            self._trace = Trace(*arrays(h_BH.new_empty(0, 0, 0), h_SBH))
        self._before_BH.copy_(h_BH)
        x, reset = arrays(x_BD, reset_B)
        self._forward(x[None], self._given, reset[None], self._weights, self._trace, *self._room)
        return self._after_BH


def _room(h_BH: Tensor, sums: int) -> tuple[np.ndarray, ...]:
    """Room for the forward kernel to work in."""
    B, H = h_BH.shape
    return scratch(h_BH, (B, sums * padded(H, h_BH.dtype)), (B, H), (sums * H,))
