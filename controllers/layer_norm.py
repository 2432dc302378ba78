"""LayerNorm (Ba et al. 2016) that leaves alone what is next to nothing.

LayerNorm divides by sqrt(variance + epsilon), so where a vector has none, as after a blank observation, it multiplies
every gradient by 1 / sqrt(epsilon), 316, and a few norms above one another by millions. Here

    n = LayerNorm(x)        m = mean(n^2) = variance / (variance + epsilon)        y = n sqrt(m (2 - m) + epsilon)

which is LayerNorm for all that is above sqrt(epsilon), where m goes to 1, and x less its mean where x vanishes.

Axis letters: H features.
"""

from torch import Tensor, nn
from torch.nn import functional

EPSILON = 1e-5


def damped(n: Tensor, epsilon: float) -> Tensor:
    """What a norm over the last axis makes of its input, [..., H], as a norm of which nothing stays nothing."""
    m = n.square().mean(-1, keepdim=True)
    return n * (m * (2 - m) + epsilon).sqrt()


def layer_norm(x: Tensor, gain_H: Tensor | None = None, bias_H: Tensor | None = None) -> Tensor:
    """Over the last axis: [..., H] -> [..., H]."""
    y = damped(functional.layer_norm(x, x.shape[-1:], eps=EPSILON), EPSILON)
    if gain_H is not None:
        y = y * gain_H
    return y if bias_H is None else y + bias_H


class LayerNorm(nn.LayerNorm):
    """`layer_norm` with torch's parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight, self.bias)
