"""GRU and LSTM with LayerNorm inside the cell (Ba et al. 2016, section 3.1 and supplement).

The products of the input and of the state are normalised separately, over all gates together, then scaled by a gain
and shifted by the bias; the LSTM's output also reads the memory through a norm:

    GRU     as without norms, with LN(W x) and LN(U h) for W x and U h
    LSTM    i, f, g, o of LN(W x) + LN(U h)        c' = f c + i g        h' = o tanh(LN(c'))

Episodes start from a state of zeros, which stays zero while observations are blank. There a norm with the usual epsilon
would multiply gradients by 316 at every step. The norms inside the loop have so large an epsilon that gradients do not
grow from step to step at the start: the state's norm multiplies them by 2 at most, which the GRU's reset gate and the
LSTM's output gate halve, and the memory's norm by 1.

The input's products are normalised for all steps at once. The rest is a loop over time under autograd, because the
mean and variance of a step need the whole state before it.

Axis letters: T steps, B environments, D input features, H hidden units, G = 3H (GRU) or 4H (LSTM) gates.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from mneme.controllers.layer_norm import layer_norm
from mneme.controllers.precision import autocast
from mneme.controllers.scans.gru.cell import GruParameters, gru_update
from mneme.controllers.scans.lstm.cell import LstmParameters, LstmState, lstm_update
from mneme.controllers.scans.resets import lanes_to_reset, with_rows

STATE_EPSILON = 0.25
"""The epsilon of the state's norm, which multiplies gradients by 1 / sqrt(STATE_EPSILON) at most."""

MEMORY_EPSILON = 1.0
"""The epsilon of the norm through which the LSTM's output reads the memory."""


class GruNorm(NamedTuple):
    """Gains of the norms before the gates; their shifts are the cell's biases."""

    of_x: Tensor  # [3H]
    of_h: Tensor  # [3H]


class LstmNorm(NamedTuple):
    """As in `GruNorm`, with gain and shift of the norm through which the memory is read."""

    of_x: Tensor  # [4H]
    of_h: Tensor  # [4H]
    memory_gain: Tensor  # [H]
    memory_bias: Tensor  # [H]


def normed_gru_cell(x_BD: Tensor, h_BH: Tensor, p: GruParameters, norm: GruNorm) -> Tensor:
    """One step: [B, D], [B, H] -> [B, H]."""
    return _gru_step(layer_norm(x_BD @ p.w_ih.t(), norm.of_x, p.b_ih), h_BH, p, norm)


def normed_lstm_cell(x_BD: Tensor, state: LstmState, p: LstmParameters, norm: LstmNorm) -> LstmState:
    """One step: [B, D] and the state before it -> the state after it."""
    return _lstm_step(layer_norm(x_BD @ p.w_ih.t(), norm.of_x, p.b_ih), state, p, norm)


def normed_gru_scan(
    x_TBD: Tensor,
    reset_TB: Tensor,
    h_BH: Tensor,
    initial_H: Tensor,
    p: GruParameters,
    norm: GruNorm,
    cut_TB: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`gru_scan` for the cell with norms."""
    x_TBG = layer_norm(x_TBD @ p.w_ih.t(), norm.of_x, p.b_ih)
    outputs = []
    with autocast(x_TBD.device, enabled=False):
        for x_BG, lanes, cuts in zip(x_TBG.unbind(), lanes_to_reset(reset_TB), _cuts(reset_TB, cut_TB), strict=True):
            h_BH = _gru_step(x_BG, with_rows(_cut(h_BH, cuts), lanes, initial_H), p, norm)
            outputs.append(h_BH)
    return torch.stack(outputs), h_BH


def normed_lstm_scan(
    x_TBD: Tensor,
    reset_TB: Tensor,
    state: LstmState,
    initial: LstmState,
    p: LstmParameters,
    norm: LstmNorm,
    cut_TB: Tensor | None = None,
) -> tuple[Tensor, LstmState]:
    """`lstm_scan` for the cell with norms."""
    x_TBG = layer_norm(x_TBD @ p.w_ih.t(), norm.of_x, p.b_ih)
    outputs = []
    with autocast(x_TBD.device, enabled=False):
        for x_BG, lanes, cuts in zip(x_TBG.unbind(), lanes_to_reset(reset_TB), _cuts(reset_TB, cut_TB), strict=True):
            h_BH, c_BH = _cut(state.h, cuts), _cut(state.c, cuts)
            state = LstmState(with_rows(h_BH, lanes, initial.h), with_rows(c_BH, lanes, initial.c))
            state = _lstm_step(x_BG, state, p, norm)
            outputs.append(state.h)
    return torch.stack(outputs), state


def _cuts(reset_TB: Tensor, cut_TB: Tensor | None) -> Sequence[Tensor | None]:
    """For each step the environments [B, 1] whose gradient is cut before it, or None if there are none."""
    if cut_TB is None:
        return [None] * len(reset_TB)
    any_T = cut_TB.any(1).tolist()
    return [cut_B1 if some else None for cut_B1, some in zip(cut_TB.unsqueeze(2).unbind(), any_T, strict=True)]


def _cut(h_BH: Tensor, cut_B1: Tensor | None) -> Tensor:
    """The state, with no gradient back where it is cut."""
    return h_BH if cut_B1 is None else torch.where(cut_B1, h_BH.detach(), h_BH)


def _gru_step(x_BG: Tensor, h_BH: Tensor, p: GruParameters, norm: GruNorm) -> Tensor:
    return gru_update(x_BG, _norm(h_BH @ p.w_hh.t(), norm.of_h, p.b_hh, STATE_EPSILON), h_BH)


def _lstm_step(x_BG: Tensor, state: LstmState, p: LstmParameters, norm: LstmNorm) -> LstmState:
    gates_BG = x_BG + _norm(state.h @ p.w_hh.t(), norm.of_h, p.b_hh, STATE_EPSILON)

    def squash(c_BH: Tensor) -> Tensor:
        return torch.tanh(_norm(c_BH, norm.memory_gain, norm.memory_bias, MEMORY_EPSILON))

    return lstm_update(gates_BG, state.c, squash)


def _norm(a: Tensor, gain: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """LayerNorm over the last axis."""
    return functional.layer_norm(a, gain.shape, gain, bias, epsilon)
