"""The causal convolution and its silu on CPUs, compiled by numba; `scans.convolution.cell` has the equations.

It is a part of what makes Mamba's and Mamba-2's updates 2.06 and 1.64 times as fast as with PyTorch; see
`scans.selective.numba` and `scans.ssd.numba`.

An environment's last K inputs are rows of the inputs themselves, of the window before the first step, or after a reset
of the initial window. Backward, the gradients of these rows are added to in the same places.

Axis letters: T steps, B environments, C channels, K taps, W = K - 1 steps of a window.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mneme.controllers.scans.convolution.torch import gradient_reach
from mneme.controllers.scans.machine_code import (
    add,
    add_product,
    arrays,
    compiled,
    copy,
    in_arrays,
    kernel,
    scratch,
    sigmoid,
)


class _Seen(NamedTuple):
    """What taps see, or the gradients of that."""

    x: Any  # [T, B, C]
    window: Any  # [B, W, C]
    initial: Any  # [W, C]


class _Weights(NamedTuple):
    """The parameters, or their gradients."""

    weight: Any  # [C, K]
    bias: Any  # [C]


def numba_silu_convolution(
    x_TBC: Tensor,
    reset_TB: Tensor,
    window_BWC: Tensor,
    initial_WC: Tensor,
    weight_CK: Tensor,
    bias_C: Tensor,
    cut_TB: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`scans.convolution.scan.silu_convolution`."""
    given = _Seen(x_TBC, window_BWC, initial_WC), _Weights(weight_CK, bias_C)
    if torch.is_grad_enabled():
        y_TBC, last_BWC = _SiluConvolution.apply(reset_TB, cut_TB, *given[0], *given[1])
        return y_TBC, last_BWC
    return _run(reset_TB, *given, keep=False)[:2]


def _run(reset_TB: Tensor, seen: _Seen, p: _Weights, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, the last window, and if `keep` the sums before the silu [T, B, C]."""
    y_TBC, last_BWC = (value.new_empty(value.shape) for value in seen[:2])
    pre_TBC = y_TBC.new_empty(y_TBC.shape) if keep else y_TBC[:0]
    C = len(p.bias)
    given = arrays(p.weight.t(), p.bias, y_TBC, last_BWC, pre_TBC)
    _forward(*arrays(reset_TB), in_arrays(seen), *given, *scratch(y_TBC, (C,)), *arrays(y_TBC.new_ones(C)))
    return y_TBC, last_BWC, pre_TBC


class _SiluConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, reset_TB: Tensor, cut_TB: Tensor | None, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        y_TBC, last_BWC, pre_TBC = _run(reset_TB, _Seen(*tensors[:3]), _Weights(*tensors[3:]), keep=True)
        ctx.save_for_backward(reset_TB, cut_TB, pre_TBC, *tensors)
        return y_TBC, last_BWC

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_TBC: Tensor, dlast_BWC: Tensor) -> tuple[Tensor | None, ...]:
        reset_TB, cut_TB, pre_TBC, *tensors = ctx.saved_tensors
        B, W = dlast_BWC.shape[:2]
        reach_SB = reset_TB.new_full((0, B), 0, dtype=torch.int64)  # unbounded
        if cut_TB is not None:
            reach_SB = gradient_reach(reset_TB, cut_TB, W)
        dseen = _Seen(*(value.new_zeros(value.shape) for value in tensors[:3]))
        weight_KC, C = tensors[3].t().contiguous(), len(tensors[4])
        dweight_KC, dbias_C = torch.zeros_like(weight_KC), dy_TBC.new_zeros(C)
        given = arrays(reset_TB, reach_SB, pre_TBC, dy_TBC, dlast_BWC)
        parameters = arrays(weight_KC, dweight_KC, dbias_C)
        room = *scratch(dy_TBC, (C,)), np.empty(len(reset_TB), np.int64), *arrays(dy_TBC.new_ones(C))
        _backward(*given, in_arrays(_Seen(*tensors[:3])), in_arrays(dseen), *parameters, *room)
        return None, None, *dseen, dweight_KC.t(), dbias_C


@compiled
def _add_seen(to, weight, seen, t, b, since, age):
    """Add weight times the input [C] that lies `age` steps before step t, which is `since` steps after a reset."""
    W = len(seen.initial)
    if age > since:
        add_product(to, weight, seen.initial[W - (age - since)])
    elif age > t:
        add_product(to, weight, seen.window[b, W - (age - t)])
    else:
        add_product(to, weight, seen.x[t - age, b])


@compiled
def _add_to_seen(seen, t, b, since, age, weight, d):
    """Add weight times d to that input."""
    W = len(seen.initial)
    if age > since:
        add_product(seen.initial[W - (age - since)], weight, d)
    elif age > t:
        add_product(seen.window[b, W - (age - t)], weight, d)
    else:
        add_product(seen.x[t - age, b], weight, d)


@kernel
def _forward(reset, seen, weight, bias, y, last, pre, unkept, ones):
    """Fill the outputs, the last window, and unless it is empty `pre`."""
    (T, B, C), W, keep = seen.x.shape, len(seen.initial), len(pre) > 0
    for b in range(B):
        since = T + W
        for t in range(T):
            since = 0 if reset[t, b] else since + 1
            total = pre[t, b] if keep else unkept
            copy(total, bias)
            for k in range(W + 1):
                _add_seen(total, weight[k], seen, t, b, since, W - k)
            silu_each(total, y[t, b])
        for w in range(W):
            for c in range(C):
                last[b, w, c] = 0
            _add_seen(last[b, w], ones, seen, T, b, since + 1, W - w)


@compiled
def silu_each(x, y):
    """Fill in y = x sigmoid(x), [C] each."""
    for i in range(len(x)):
        y[i] = x[i] * sigmoid(x[i])


@compiled
def convolution_step(x, window, weight, bias, total, y):
    """Fill in the output y [C] of an input [C or more] after those of a window [W, C], which goes one step on.

    Args:
        x, window: the inputs.
        weight: [K, C], the present input's last.
        bias: [C].
        total: [C] room.
        y: [C].
    """
    W = len(window)
    copy(total, bias)
    for w in range(W):
        add_product(total, weight[w], window[w])
    add_product(total, weight[W], x)
    silu_each(total, y)
    for w in range(W):
        copy(window[w], window[w + 1] if w + 1 < W else x)


@kernel
def _backward(reset, reach, pre, dy, dlast, seen, dseen, weight, dweight, dbias, dpre, since, ones):
    """Add to the gradients; `reach` [T + 1, B] bounds how many steps they go back, unless it is empty."""
    (T, B, _), W = seen.x.shape, len(seen.initial)
    for b in range(B):
        steps = T + W
        for t in range(T):
            steps = 0 if reset[t, b] else steps + 1
            since[t] = steps
        furthest = reach[T, b] if len(reach) > 0 else W
        for w in range(W):
            if W - w <= furthest:
                _add_to_seen(dseen, T, b, steps + 1, W - w, ones, dlast[b, w])
        for t in range(T - 1, -1, -1):
            furthest = reach[t, b] if len(reach) > 0 else W
            _silu_back(pre[t, b], dy[t, b], dpre)
            add(dbias, dpre)
            for k in range(W + 1):
                _add_seen(dweight[k], dpre, seen, t, b, since[t], W - k)
                if W - k <= furthest:
                    _add_to_seen(dseen, t, b, since[t], W - k, weight[k], dpre)


@compiled
def _silu_back(x, dy, dx):
    one = x.dtype.type(1)
    for i in range(len(x)):
        gate = sigmoid(x[i])
        dx[i] = dy[i] * (gate + x[i] * gate * (one - gate))
