"""Mamba-2's gated norm on CPUs, compiled by numba; `scans.gated_norm.torch` has the equation.

It is a part of what makes Mamba-2's update 1.64 times as fast as with PyTorch; see `scans.ssd.numba`.

With g = y silu(z), m = mean(g^2), v = m + eps and e = (eps / v)^2, the output is weight g s, s = sqrt((1 - (1 - eps) e)
/ v). Backward, with f = weight dout,

    dg = f s + g (2 ds/dm / I) sum(f g)        2 ds/dm = -(s / v) (1 - 2 (1 - eps) e / (1 - (1 - eps) e))

Axis letters: R rows, I channels.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mneme.controllers.scans.machine_code import arrays, compiled, dot, fma, kernel, scratch, sigmoid


def numba_gated_norm(y: Tensor, z: Tensor, weight_I: Tensor, eps: float) -> Tensor:
    """`scans.gated_norm.norm.gated_norm`."""
    rows = y.reshape(-1, y.shape[-1]), z.reshape(-1, y.shape[-1])
    if torch.is_grad_enabled():
        out_RI: Tensor = _GatedNorm.apply(*rows, weight_I, eps)
    else:
        out_RI = _run(*rows, weight_I, eps)
    return out_RI.view(y.shape)


def _run(y_RI: Tensor, z_RI: Tensor, weight_I: Tensor, eps: float) -> Tensor:
    out_RI = y_RI.new_empty(y_RI.shape)
    _forward(*arrays(y_RI, z_RI, weight_I), eps, *arrays(out_RI))
    return out_RI


class _GatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y_RI: Tensor, z_RI: Tensor, weight_I: Tensor, eps: float) -> Tensor:
        ctx.eps = eps
        ctx.save_for_backward(y_RI, z_RI, weight_I)
        return _run(y_RI, z_RI, weight_I, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout_RI: Tensor) -> tuple[Tensor | None, ...]:
        y_RI, z_RI, weight_I = ctx.saved_tensors
        dy_RI, dz_RI, dweight_I = y_RI.new_empty(y_RI.shape), z_RI.new_empty(z_RI.shape), torch.zeros_like(weight_I)
        room = scratch(dy_RI, *[(y_RI.shape[1],)] * 2)
        _backward(*arrays(y_RI, z_RI, weight_I, dout_RI), ctx.eps, *arrays(dy_RI, dz_RI, dweight_I), *room)
        return dy_RI, dz_RI, dweight_I, None


@compiled
def _scale(square, eps):
    """The factor s of a row with this mean square, and -2 ds/dm."""
    variance = square + eps
    e = (eps / variance) ** 2
    damping = 1 - (1 - eps) * e
    scale = math.sqrt(damping / variance)
    return scale, scale / variance * (1 - 2 * (1 - eps) * e / damping)


@compiled
def _gated(y, z, g):
    for i in range(len(y)):
        g[i] = y[i] * z[i] * sigmoid(z[i])


@kernel
def _forward(y, z, weight, eps, out):
    for r in range(len(y)):
        gated_norm_row(y[r], z[r], weight, eps, out[r])


@compiled
def gated_norm_row(y, z, weight, eps, out):
    """Fill in the norm of y under the gate z, [I] each."""
    _gated(y, z, out)
    scale = out.dtype.type(_scale(dot(out, out) / len(out), eps)[0])
    for i in range(len(out)):
        out[i] *= scale * weight[i]


@kernel
def _backward(y, z, weight, dout, eps, dy, dz, dweight, g, f):
    R, I = y.shape
    dtype = y.dtype.type
    for r in range(R):
        _gated(y[r], z[r], g)
        exact, falling = _scale(dot(g, g) / I, eps)
        scale = dtype(exact)
        for i in range(I):
            f[i] = dout[r, i] * weight[i]
            dweight[i] += dout[r, i] * g[i] * scale
        _inputs_back(y[r], z[r], g, f, scale, dtype(dot(f, g) * falling / I), dy[r], dz[r])


@compiled
def _inputs_back(y, z, g, f, scale, shrink, dy, dz):
    one = y.dtype.type(1)
    for i in range(len(y)):
        dg = fma(f[i], scale, -g[i] * shrink)
        gate = sigmoid(z[i])
        silu = z[i] * gate
        dy[i] = dg * silu
        dz[i] = dg * y[i] * (gate + silu * (one - gate))
