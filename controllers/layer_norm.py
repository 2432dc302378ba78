"""LayerNorm (Ba et al. 2016) that leaves alone what is next to nothing.

LayerNorm divides by sqrt(variance + epsilon), so where a vector has none, as after a blank observation, it multiplies
every gradient by 1 / sqrt(epsilon), 316, and a few norms above one another by millions. Here

    n = LayerNorm(x)    m = mean(n^2) = variance / (variance + epsilon)    y = n sqrt(1 - (1 - epsilon) (1 - m)^2)

which is LayerNorm for all that is above sqrt(epsilon), where m goes to 1, and x less its mean where x vanishes.

Axis letters: H features.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mneme.controllers.precision import autocasting, wide

EPSILON = 1e-5


def layer_norm(x: Tensor, gain_H: Tensor | None = None, bias_H: Tensor | None = None) -> Tensor:
    """Over the last axis: [..., H] -> [..., H]; computed in single precision at least, as halves cannot hold
    1 - (1 - m)^2 where m is small."""
    arguments = [value if value is None else wide(value) for value in (x, gain_H, bias_H)]
    y: Tensor = _LayerNorm.apply(*arguments)
    return y if autocasting(x.device) else y.to(x.dtype)


class _LayerNorm(torch.autograd.Function):
    """Torch's kernel, and what damps its rows from the 1 / sqrt(variance + epsilon) that it gives besides. Taken from
    the rows themselves it would cost several times as much as the norm."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain_H: Tensor | None, bias_H: Tensor | None) -> Tensor:
        y, mean, inverse = torch.native_layer_norm(x, x.shape[-1:], gain_H, bias_H, EPSILON)
        if _damps(inverse):
            scale, _ = _damping(inverse)
            y.mul_(scale)
            if bias_H is not None:
                y.addcmul_(1 - scale, bias_H)  # the bias itself is not damped
        ctx.save_for_backward(x, gain_H, bias_H, mean, inverse)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, gain_H, bias_H, mean, inverse = ctx.saved_tensors
        damps, wanted = _damps(inverse), list(ctx.needs_input_grad)
        scale, derivative = _damping(inverse) if damps else (None, None)
        dn = dy if scale is None else dy * scale
        dx, dgain_H, dbias_H = torch.ops.aten.native_layer_norm_backward(
            dn, x, x.shape[-1:], mean, inverse, gain_H, bias_H, wanted
        )
        if derivative is not None:
            if dx is not None:
                n = (x - mean).mul_(inverse)
                dscale = ((dy if gain_H is None else dy * gain_H) * n).sum(-1, keepdim=True)
                dx.addcmul_(n, dscale * derivative / x.shape[-1])  # as the damping depends on x too
            if dbias_H is not None:
                dbias_H = dy.reshape(-1, dy.shape[-1]).sum(0)
        return dx, dgain_H, dbias_H


def _damps(inverse: Tensor) -> bool:
    """True if the damping of a row shows in this precision; assumed off the CPU, where checking is slow, and
    in what is exported, which cannot check."""
    if inverse.device.type != "cpu" or not inverse.numel() or torch.compiler.is_exporting():
        return True
    shows = 2 * (EPSILON * float(inverse.max()) ** 2) ** 2 > torch.finfo(inverse.dtype).eps
    return shows or bool(inverse.isnan().any())  # a row that is none must not speak for the others


def _damping(inverse: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(1 - (1 - epsilon) (1 - m)^2) and its derivative in x divided by n / H, of 1 / sqrt(variance + epsilon), all
    [..., 1]."""
    rest = EPSILON * inverse.square()  # 1 - m
    scale = (1 - (1 - EPSILON) * rest.square()).sqrt()
    return scale, (1 - EPSILON) * rest / scale * 2 * EPSILON * inverse.pow(3)


class LayerNorm(nn.LayerNorm):
    """`layer_norm` with torch's parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight, self.bias)
