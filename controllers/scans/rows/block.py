"""What stands around the mixer of a layer, inside compiled kernels that take many lanes one step on.

Axis letters: B lanes, D input features, H hidden, M outputs of the mixer.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from mneme.controllers.layer_norm import LayerNorm
from mneme.controllers.scans.machine_code import add, arrays, compiled, copy
from mneme.controllers.scans.norm_row import normalised
from mneme.controllers.scans.products import multiply, padded, panels
from mneme.controllers.scans.rows.gelu import gelu_each
from mneme.controllers.scans.rows.glu import glu_row


class Entrance(NamedTuple):
    """Weights before a mixer."""

    project: Any  # panels of [D, H], or none where inputs are as wide as the stream
    bias: Any  # [H], or none
    gain: Any  # [H] of the norm
    shift: Any  # [H] of the norm


class Block(NamedTuple):
    """Weights of a residual block around its mixer."""

    entrance: Entrance
    mix: Any  # panels of [M, 2H], gate by gate
    bias: Any  # [2H], each gate as wide as its panels


def entrance(project: nn.Module, norm: LayerNorm) -> Entrance:
    """The weights of a projection, or of none, and of the norm after it."""
    none, parameters = norm.weight.new_empty(0), dict(project.named_parameters())
    weight, bias = parameters.get("weight", none.view(0, 0)), parameters.get("bias", none)
    shift = torch.zeros_like(norm.weight) if norm.bias is None else norm.bias
    return Entrance(panels(weight.detach().numpy().T), *arrays(bias, norm.weight, shift))


def block(project: nn.Module, norm: LayerNorm, mix: nn.Linear) -> Block:
    """The weights of these layers; the last one's outputs are a GLU's halves."""
    return Block(entrance(project, norm), *halves(mix))


def halves(layer: nn.Linear) -> tuple[np.ndarray, np.ndarray]:
    """Panels of a layer's weights and its biases, the outputs in two halves that begin at panels."""
    weight, bias = arrays(layer.weight, layer.bias)
    size = len(bias) // 2
    biases = np.zeros((2, padded(size, bias.dtype)), bias.dtype)
    biases[:, :size] = bias.reshape(2, size)
    return panels(weight.T, (0, 1)), biases.ravel()


@compiled
def enter(x, entrance, stream, n, u):
    """Fill in the residual stream [B, H or more] of inputs [B, D], and its norm u [B, H]; n [H] is room."""
    H, P = len(entrance.gain), len(entrance.project)
    if P > 0:
        multiply(x, 0, x.shape[1], entrance.project, 0, P, stream, 0, False)
    for b in range(len(x)):
        if P == 0:
            copy(stream[b, :H], x[b])
        add(stream[b, : len(entrance.bias)], entrance.bias)
        normalised(stream[b, :H], entrance.gain, entrance.shift, n, u[b])


@compiled
def connect(stream, mixed, weight, out, y):
    """Fill in the stream and a product of a mixer's outputs [B, M], [B, H]; `out` [B, H or more] is room."""
    (B, H), M = y.shape, mixed.shape[1]
    multiply(mixed, 0, M, weight, 0, len(weight), out, 0, False)
    for b in range(B):
        copy(y[b], stream[b, :H])
        add(y[b], out[b, :H])


@compiled
def leave(stream, mixed, block, wide, y):
    """Fill in the stream and what a GLU makes of a mixer's outputs [B, M], [B, H]; these become their GELU, and `wide`
    [B, as the bias] is room."""
    (B, H), half = y.shape, len(block.bias) // 2
    for b in range(B):
        gelu_each(mixed[b])
    multiply(mixed, 0, block.mix.shape[1], block.mix, 0, len(block.mix), wide, 0, False)
    for b in range(B):
        add(wide[b], block.bias)
        glu_row(stream[b, :H], wide[b, :H], wide[b, half : half + H], y[b])
