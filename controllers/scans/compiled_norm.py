"""Mamba-2's gated norm on a CPU, compiled: RMSNorm(y silu(z)) in two passes over a row that stays in the cache.

    g = y silu(z)        out = weight g / sqrt(mean(g^2) + eps)

Axis letters: R rows, I features.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from controllers.scans.compiled import arrays, kernel, sigmoid


def compiled_gated_norm(y: Tensor, z: Tensor, weight_I: Tensor, eps: float) -> Tensor:
    """[..., I], [..., I] -> [..., I]; differentiable, once."""
    if torch.is_grad_enabled():
        out: Tensor = _GatedNorm.apply(y, z, weight_I, eps)
        return out
    return _run(y, z, weight_I, eps)


def _run(y: Tensor, z: Tensor, weight_I: Tensor, eps: float) -> Tensor:
    out = y.new_empty(y.shape)
    _forward(*_rows(y, z, out), *arrays(weight_I), eps)
    return out


class _GatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, z: Tensor, weight_I: Tensor, eps: float) -> Tensor:
        ctx.eps = eps
        ctx.save_for_backward(y, z, weight_I)
        return _run(y, z, weight_I, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        y, z, weight_I = ctx.saved_tensors
        dy, dz, dweight_I = y.new_empty(y.shape), z.new_empty(z.shape), weight_I.new_zeros(weight_I.shape)
        _backward(*_rows(y, z, dout, dy, dz), *arrays(weight_I, dweight_I), ctx.eps)
        return dy, dz, dweight_I, None


def _rows(*values: Tensor) -> tuple[np.ndarray, ...]:
    return tuple(rows.reshape(-1, rows.shape[-1]) for rows in arrays(*values))


@kernel
def _forward(y, z, out, weight, eps):
    R, I = y.shape
    for row in range(R):
        y_r, z_r, out_r = y[row], z[row], out[row]
        total = y.dtype.type(0)
        for i in range(I):
            gated = y_r[i] * z_r[i] * sigmoid(z_r[i])
            out_r[i] = gated
            total += gated * gated
        scale = y.dtype.type(1 / math.sqrt(total / I + eps))
        for i in range(I):
            out_r[i] *= scale * weight[i]


@kernel
def _backward(y, z, dout, dy, dz, weight, dweight, eps):
    R, I = y.shape
    gates, gated, one = np.empty(I, y.dtype), np.empty(I, y.dtype), y.dtype.type(1)
    for row in range(R):
        y_r, z_r, dout_r, dy_r, dz_r = y[row], z[row], dout[row], dy[row], dz[row]
        total, product = y.dtype.type(0), y.dtype.type(0)
        for i in range(I):
            gate = sigmoid(z_r[i])
            gates[i] = gate
            gated[i] = y_r[i] * z_r[i] * gate
            total += gated[i] * gated[i]
            product += dout_r[i] * weight[i] * gated[i]
        scale = y.dtype.type(1 / math.sqrt(total / I + eps))
        shrink = y.dtype.type(product * scale * scale * scale / I)
        for i in range(I):
            dweight[i] += dout_r[i] * gated[i] * scale
        for i in range(I):
            gate = gates[i]
            slope = dout_r[i] * weight[i] * scale - gated[i] * shrink
            dy_r[i] = slope * z_r[i] * gate
            dz_r[i] = slope * y_r[i] * gate * (one + z_r[i] * (one - gate))
