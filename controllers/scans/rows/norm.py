"""LayerNorm (`controllers.layer_norm`) compiled by numba: a pass over the rows each way, blank ones included.

Axis letters: R rows, H features.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mneme.controllers.scans.machine_code import arrays, kernel, scratch
from mneme.controllers.scans.norm_row import back_through_norm, normalised


def numba_layer_norm(x: Tensor, gain_H: Tensor, shift_H: Tensor | None = None) -> Tensor:
    """`controllers.layer_norm.layer_norm`. It can be differentiated once."""
    shift_H = torch.zeros_like(gain_H) if shift_H is None else shift_H
    x_RH = x.reshape(-1, x.shape[-1])
    y_RH: Tensor = _LayerNorm.apply(x_RH, gain_H, shift_H) if torch.is_grad_enabled() else _run(x_RH, gain_H, shift_H)
    return y_RH.view(x.shape)


def _run(x_RH: Tensor, gain_H: Tensor, shift_H: Tensor) -> Tensor:
    y_RH = x_RH.new_empty(x_RH.shape)
    norm_rows(*arrays(x_RH, gain_H, shift_H, y_RH), *scratch(x_RH, gain_H.shape))
    return y_RH


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_RH: Tensor, gain_H: Tensor, shift_H: Tensor) -> Tensor:
        ctx.save_for_backward(x_RH, gain_H, shift_H)
        return _run(x_RH, gain_H, shift_H)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_RH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x_RH, gain_H, shift_H = ctx.saved_tensors
        gradients = x_RH.new_empty(x_RH.shape), torch.zeros_like(gain_H), torch.zeros_like(gain_H)
        _backward(*arrays(x_RH, gain_H, shift_H, dy_RH, *gradients), *scratch(x_RH, *[gain_H.shape] * 2))
        return gradients


@kernel
def norm_rows(x, gain, shift, y, n):
    """Fill in the norms y of the rows x, [R, H] each; n [H] is room."""
    for r in range(len(x)):
        normalised(x[r], gain, shift, n, y[r])


@kernel
def _backward(x, gain, shift, dy, dx, d_gain, d_shift, n, room):
    for r in range(len(x)):
        numbers = normalised(x[r], gain, shift, n, room)
        back_through_norm(dy[r], gain, n, numbers, dx[r], d_gain, d_shift, room)
