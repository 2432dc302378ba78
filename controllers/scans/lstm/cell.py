"""One step of long short-term memory (Hochreiter & Schmidhuber 1997), with the gates of `torch.nn.LSTMCell`.

    i, f, o = sigmoid(W x + U h + b)     g = tanh(W_g x + U_g h + b_g)
    c' = f c + i g                       h' = o tanh(c')

Axis letters: B environments, D input features, H hidden units, G = 4H gates.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class LstmParameters(NamedTuple):
    """Laid out as in `torch.nn.LSTMCell`: rows are the gates i, f, g, o."""

    w_ih: Tensor  # [4H, D]
    w_hh: Tensor  # [4H, H]
    b_ih: Tensor  # [4H]
    b_hh: Tensor  # [4H]


class LstmState(NamedTuple):
    """The recurrent state; an initial state is [H] each."""

    h: Tensor  # [B, H] output
    c: Tensor  # [B, H] memory


def lstm_cell(x_BD: Tensor, state: LstmState, p: LstmParameters) -> LstmState:
    """The next state from the input [B, D] and the state before it."""
    return lstm_update(x_BD @ p.w_ih.t() + p.b_ih + state.h @ p.w_hh.t() + p.b_hh, state.c, torch.tanh)


def lstm_update(gates_BG: Tensor, c_BH: Tensor, squash: Callable[[Tensor], Tensor]) -> LstmState:
    """The next state from the gates before their nonlinearities; `squash` is applied to the memory that is put out."""
    i, f, g, o = gates_BG.chunk(4, -1)
    c_BH = torch.sigmoid(f) * c_BH + torch.sigmoid(i) * torch.tanh(g)
    return LstmState(torch.sigmoid(o) * squash(c_BH), c_BH)
