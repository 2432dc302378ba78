"""The end of a residual block, x + GLU(m), compiled by numba.

GLU (Dauphin et al. 2017): of the two halves of m, a sigmoid(b).

Axis letters: R rows, H features.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mneme.controllers.precision import in_float32
from mneme.controllers.scans.machine_code import arrays, compiled, kernel, sigmoid


@in_float32
def numba_glu_beside(x: Tensor, m: Tensor) -> Tensor:
    """x + GLU(m), [..., H], [..., 2H] -> [..., H]. It can be differentiated once."""
    rows = x.reshape(-1, x.shape[-1]), m.reshape(-1, m.shape[-1])
    y_RH: Tensor = _GluBeside.apply(*rows) if torch.is_grad_enabled() else _run(*rows)
    return y_RH.view(x.shape)


def _run(x_RH: Tensor, m_RM: Tensor) -> Tensor:
    y_RH = x_RH.new_empty(x_RH.shape)
    _forward(*arrays(x_RH, m_RM, y_RH))
    return y_RH


class _GluBeside(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_RH: Tensor, m_RM: Tensor) -> Tensor:
        ctx.save_for_backward(m_RM)
        return _run(x_RH, m_RM)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_RH: Tensor) -> tuple[Tensor, Tensor]:
        (m_RM,) = ctx.saved_tensors
        dm_RM = m_RM.new_empty(m_RM.shape)
        _backward(*arrays(m_RM, dy_RH, dm_RM))
        return dy_RH, dm_RM


@kernel
def _forward(x, m, y):
    H = x.shape[1]
    for r in range(len(x)):
        glu_row(x[r], m[r, :H], m[r, H:], y[r])


@kernel
def _backward(m, dy, dm):
    H = dy.shape[1]
    for r in range(len(m)):
        _row_back(m[r, :H], m[r, H:], dy[r], dm[r, :H], dm[r, H:])


@compiled
def glu_row(x, a, b, y):
    """Fill in y = x + a sigmoid(b), [H] each."""
    for i in range(len(x)):
        y[i] = a[i] * sigmoid(b[i]) + x[i]


@compiled
def _row_back(a, b, dy, da, db):
    one = dy.dtype.type(1)
    for i in range(len(dy)):
        gate = sigmoid(b[i])
        da[i] = dy[i] * gate
        db[i] = dy[i] * a[i] * gate * (one - gate)
