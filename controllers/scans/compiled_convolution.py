"""SiLU of the causal depthwise convolution of `controllers.scans.convolution` on a CPU, compiled.

A tap of age j sees the input j steps ago; where fewer steps lie behind, the incoming window, or after a reset the
initial one.

Axis letters: T time, B lanes, C channels, K taps, W = K - 1 steps of a window, oldest first.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from controllers.scans.compiled import arrays, compiled, copy, kernel, sigmoid


def compiled_silu_convolution(
    x_TBC: Tensor, reset_TB: Tensor, window_BWC: Tensor, initial_WC: Tensor, weight_CK: Tensor, bias_C: Tensor
) -> tuple[Tensor, Tensor]:
    """`controllers.scans.convolution.silu_convolution`: [T, B, C], and the last window, [B, W, C]."""
    inputs = x_TBC, reset_TB, window_BWC, initial_WC, weight_CK, bias_C
    if torch.is_grad_enabled():
        y_TBC, last_BWC = _SiluConvolution.apply(*inputs)
        return y_TBC, last_BWC
    return _run(*inputs)


def _run(
    x_TBC: Tensor, reset_TB: Tensor, window_BWC: Tensor, initial_WC: Tensor, weight_CK: Tensor, bias_C: Tensor
) -> tuple[Tensor, Tensor]:
    y_TBC, last_BWC = x_TBC.new_empty(x_TBC.shape), window_BWC.new_empty(window_BWC.shape)
    _forward(*arrays(x_TBC, reset_TB, window_BWC, initial_WC, weight_CK.t(), bias_C, y_TBC, last_BWC))
    return y_TBC, last_BWC


class _SiluConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(*inputs)
        return _run(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_TBC: Tensor, dlast_BWC: Tensor) -> tuple[Tensor | None, ...]:
        x_TBC, reset_TB, window_BWC, initial_WC, weight_CK, bias_C = ctx.saved_tensors
        given = x_TBC, reset_TB, window_BWC, initial_WC, weight_CK.t(), bias_C
        slopes = [value.new_zeros(value.shape) for value in (x_TBC, window_BWC, initial_WC, weight_CK.t(), bias_C)]
        _backward(*arrays(*given, dy_TBC, dlast_BWC, *slopes))
        dx, dwindow, dinitial, dweight, dbias = slopes
        return dx, None, dwindow, dinitial, dweight.t(), dbias


@compiled
def _seen(x, window, initial, t, b, age, since):
    """What lies `age` steps before step t of lane b, `since` steps after its last reset."""
    if age > since:
        return initial[len(initial) + since - age]
    if age > t:
        return window[b, window.shape[1] + t - age]
    return x[t - age, b]


@kernel
def _forward(x, reset, window, initial, weight, bias, y, last):
    T, B, C = x.shape
    W = window.shape[1]
    since = np.full(B, T + W)
    for t in range(T):
        for b in range(B):
            since[b] = 0 if reset[t, b] else since[b] + 1
            out, now, newest = y[t, b], x[t, b], weight[W]
            for c in range(C):
                out[c] = bias[c] + newest[c] * now[c]
            for age in range(1, W + 1):
                seen, tap = _seen(x, window, initial, t, b, age, since[b]), weight[W - age]
                for c in range(C):
                    out[c] += tap[c] * seen[c]
            for c in range(C):
                out[c] *= sigmoid(out[c])
    for b in range(B):
        for w in range(W):
            copy(last[b, w], _seen(x, window, initial, T, b, W - w, since[b] + 1))


@kernel
def _backward(x, reset, window, initial, weight, bias, dy, dlast, dx, dwindow, dinitial, dweight, dbias):
    T, B, C = x.shape
    W = window.shape[1]
    slope, one = np.empty(C, x.dtype), x.dtype.type(1)
    since = np.full(B, T + W)
    for t in range(T):
        for b in range(B):
            since[b] = 0 if reset[t, b] else since[b] + 1
            dout = dy[t, b]
            copy(slope, bias)
            for age in range(W + 1):
                seen, tap = _seen(x, window, initial, t, b, age, since[b]), weight[W - age]
                for c in range(C):
                    slope[c] += tap[c] * seen[c]
            for c in range(C):
                gate = sigmoid(slope[c])
                slope[c] = dout[c] * gate * (one + slope[c] * (one - gate))
                dbias[c] += slope[c]
            for age in range(W + 1):
                seen, tap = _seen(x, window, initial, t, b, age, since[b]), weight[W - age]
                dseen, dtap = _seen(dx, dwindow, dinitial, t, b, age, since[b]), dweight[W - age]
                for c in range(C):
                    dseen[c] += tap[c] * slope[c]
                    dtap[c] += seen[c] * slope[c]
    for b in range(B):
        for w in range(W):
            dseen, dleft = _seen(dx, dwindow, dinitial, T, b, W - w, since[b] + 1), dlast[b, w]
            for c in range(C):
                dseen[c] += dleft[c]
