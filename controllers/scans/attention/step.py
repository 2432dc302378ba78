"""One step of many lanes through a transformer block, compiled by numba for acting.

A kernel has the whole block, and lanes go through it some at a time. `scans.attention.torch` has the scan. The window
moves on inside the carry, in the cache that attention has just read it into.

Axis letters: B lanes, D input features, H hidden, N heads, E width of a head, M = 2 E numbers remembered of a step, W
steps in the window, the present one included, P = W - 1 before it, F features inside the MLP.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from mneme.controllers.layer_norm import LayerNorm
from mneme.controllers.scans.layer_step import LANES, LayerStep
from mneme.controllers.scans.machine_code import LOG2_E, add, arrays, compiled, copy, dot, exp2, kernel, scale, scratch
from mneme.controllers.scans.norm_row import normalised
from mneme.controllers.scans.products import multiply, padded, panels
from mneme.controllers.scans.rows.block import Entrance, enter, entrance
from mneme.controllers.scans.rows.gelu import gelu_each


class TransformerLayers(NamedTuple):
    """The layers of a block, in the order in which a step goes through them."""

    embed: nn.Module  # D -> H, or none
    attention_norm: LayerNorm
    attention_in: nn.Linear  # H -> H + M
    bias: Tensor  # [N, W] of scores, by distance
    attention_out: nn.Linear  # H -> H
    mlp_norm: LayerNorm
    mlp_in: nn.Linear  # H -> F
    mlp_out: nn.Linear  # F -> H


class _Dense(NamedTuple):
    weight: Any  # panels of [inputs, outputs]
    bias: Any  # [outputs]


class _Block(NamedTuple):
    entrance: Entrance
    project: _Dense
    scores: Any  # [N, W] bias to the base 2
    factor: Any  # of scores before it
    join: _Dense
    gain: Any  # [H] of the norm before the MLP
    shift: Any  # [H] likewise
    widen: _Dense
    narrow: _Dense


def transformer_step(layers: TransformerLayers) -> LayerStep:
    """The step of a block without gates that carries `memory` [B, P, M] and `past` [B, 1]."""
    scores, gain, shift = arrays(layers.bias * LOG2_E, layers.mlp_norm.weight, layers.mlp_norm.bias)
    dtype, (N, W), H, F = layers.bias.dtype, scores.shape, len(gain), layers.mlp_in.out_features
    factor = scores.dtype.type(LOG2_E / math.sqrt(H // N))
    block = _Block(
        entrance(layers.embed, layers.attention_norm), _dense(layers.attention_in), scores, factor,
        _dense(layers.attention_out), gain, shift, _dense(layers.mlp_in), _dense(layers.mlp_out),
    )  # fmt: skip
    projected, hidden, wide = (padded(size, dtype) for size in (layers.attention_in.out_features, H, F))
    room = scratch(
        layers.bias, *((LANES, size) for size in (hidden, H, projected, H, wide, hidden)), (H,), (N, W),
    )  # fmt: skip
    return LayerStep(_transformer, block, ("memory", "past"), layers.bias, H, room)


def _dense(layer: nn.Linear) -> _Dense:
    weight, bias = arrays(layer.weight, layer.bias)
    return _Dense(panels(weight.T), bias)


@kernel
def _transformer(x, reset, block, memory, past, y, room):
    for start in range(0, len(x), LANES):
        stop = min(start + LANES, len(x))
        _lanes(x[start:stop], reset[start:stop], block, memory[start:stop], past[start:stop], y[start:stop], room)


@compiled
def _lanes(x, reset, block, memory, past, y, room):
    stream, normed, projected, read, wide, out, n, scores = room
    B, H = y.shape
    enter(x, block.entrance, stream, n, normed)
    _affine(normed[:B], block.project, projected)
    for b in range(B):
        if reset[b]:
            _clear(memory[b])
            past[b, 0] = 0
        window, present = memory[b], projected[b, H : len(block.project.bias)]
        seen = np.intp(min(max(past[b, 0], 0), len(window)))
        _attend(projected[b, :H], window[len(window) - seen :], present, block, scores, read[b])
        for p in range(len(window) - 1):
            copy(window[p], window[p + 1])
        copy(window[len(window) - 1], present)
        past[b, 0] += 1
    _affine(read[:B], block.join, out)
    for b in range(B):
        add(stream[b, :H], out[b, :H])
        normalised(stream[b, :H], block.gain, block.shift, n, normed[b])
    _affine(normed[:B], block.widen, wide)
    F = len(block.widen.bias)
    for b in range(B):
        gelu_each(wide[b, :F])
    _affine(wide[:B], block.narrow, out)
    for b in range(B):
        copy(y[b], stream[b, :H])
        add(y[b], out[b, :H])


@compiled
def _affine(x, layer, out):
    """Fill in the layer's outputs [B, outputs or more] of [B, inputs or more]; none are left of what is beyond."""
    inputs, outputs = layer.weight.shape[1], len(layer.bias)
    multiply(x, 0, inputs, layer.weight, 0, len(layer.weight), out, 0, False)
    for b in range(len(x)):
        add(out[b, :outputs], layer.bias)


@compiled
def _clear(window):
    for p in range(len(window)):
        for i in range(window.shape[1]):
            window[p, i] = 0


@compiled
def _attend(q, before, present, block, scores, read):
    """Fill in what the heads read [N E] of the steps `before` [S, M], the latest last, and of the present one [M]."""
    N, E, S = len(block.scores), len(present) // 2, len(before)
    for head in range(N):
        asked, own, row = q[head * E : (head + 1) * E], read[head * E : (head + 1) * E], scores[head]
        row[0] = dot(asked, present[:E]) * block.factor + block.scores[head, 0]
        for d in range(1, S + 1):
            row[d] = dot(asked, before[S - d, :E]) * block.factor + block.scores[head, d]
        total = _weigh(row[: S + 1])
        scale(own, row[0] / total, present[E:])
        for d in range(1, S + 1):
            _add_scaled(own, row[d] / total, before[S - d, E:])


@compiled
def _weigh(scores):
    """Turn scores to the base 2, [S], into weights, and return their sum."""
    most, total = scores[0], scores.dtype.type(0)
    for s in range(1, len(scores)):
        most = max(most, scores[s])
    for s in range(len(scores)):
        scores[s] = exp2(scores[s] - most)
    for s in range(len(scores)):
        total += scores[s]
    return total


@compiled
def _add_scaled(to, factor, x):
    for i in range(len(to)):
        to[i] += factor * x[i]
