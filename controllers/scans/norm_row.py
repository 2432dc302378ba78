"""LayerNorm of one row, and back through it, inside compiled kernels.

The norm is that of `controllers.layer_norm`, y = n s(i) gain + shift with n = (x - mean) i and i the row's own
1 / sqrt(variance + epsilon). Backward, with g = dy gain,

    dx = i s (g - mean(g)) + n (s' - i s) sum(g n) / H

A row's own numbers are in double precision, whatever the arrays are. Legend: H features.
"""

import numpy as np

from mneme.controllers.layer_norm import EPSILON
from mneme.controllers.scans.machine_code import add, add_product, compiled, copy, dot, fma, scale, sum_of, sums, times


@compiled
def normalised(x, gain, shift, n, y):
    """Fill in n and y, [H] each; returns i, s and 1 - m. With an empty gain y is x, and n is left alone."""
    if len(gain) == 0:
        copy(y, x)
        return 1.0, 1.0, 0.0
    number, H = x.dtype.type, len(x)
    mean = sum_of(x) / H
    inverse = 1 / np.sqrt(_squares(x, number(mean)) / H + EPSILON)
    rest = EPSILON * inverse * inverse
    damping = np.sqrt(1 - (1 - EPSILON) * (rest * rest))
    _normalise(x, number(mean), number(inverse), n)
    _scale_and_shift(n, number(damping), gain, shift, y)
    return inverse, damping, rest


@compiled
def back_through_norm(dy, gain, n, numbers, dx, d_gain, d_shift, room):
    """Fill in dx [H], which may be dy itself, and add to the gradients of gain and shift.

    Args:
        dy, gain, n: [H].
        numbers: i, s and 1 - m, of `normalised`.
        dx: [H].
        d_gain, d_shift: [H] added to.
        room: [H] to work in.
    """
    (inverse, damping, rest), number, H = numbers, dy.dtype.type, len(dy)
    add(d_shift, dy)
    scale(room, number(damping), n)
    add_product(d_gain, dy, room)
    copy(room, dy)
    times(room, gain)
    of_damping = (1 - EPSILON) * rest / damping * 2 * EPSILON * (inverse * inverse * inverse)
    of_n = (of_damping - inverse * damping) * dot(room, n) / H
    _combine(room, number(inverse * damping), number(sum_of(room) / H), n, number(of_n), dx)


@sums
def _squares(x, mean):
    """The sum of the squared deviations of [H] from their mean."""
    total = x.dtype.type(0)
    for i in range(len(x)):
        off = x[i] - mean
        total += off * off
    return total


@compiled
def _normalise(x, mean, inverse, n):
    for i in range(len(x)):
        n[i] = (x[i] - mean) * inverse


@compiled
def _scale_and_shift(n, scale, gain, shift, y):
    for i in range(len(n)):
        y[i] = n[i] * scale * gain[i] + shift[i]


@compiled
def _combine(g, along_g, mean, n, along_n, dx):
    for i in range(len(g)):
        dx[i] = fma(along_n, n[i], along_g * (g[i] - mean))
