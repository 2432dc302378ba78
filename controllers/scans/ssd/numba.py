"""The recurrence of Mamba-2 on CPUs, compiled by numba; `scans.ssd.cell` has the equations.

An update of the preset for delayed cue, collecting and learning, is 1.64 times as fast with it, the convolution's and
the gated norm's kernel as with PyTorch (`python -m benchmarks.backends`, two threads of an Intel Xeon).

On CPUs the plain recurrence takes less time than its matrix form: a chunk of L steps costs L times as much a step as
there are states. Environments, blocks and states are looped over as in `scans.selective.numba`. Backward, with g the
gradient of h' from later steps,

    g' = g + C dy      dC = sum over channels of dy h'      dB = sum over channels of g' dt x
    d(dt x) = sum over states of B g'

and g = g' exp(a dt) goes on to the step before. As in `scans.ssd.torch`, the gradient of the log decay a dt is that of
the step after it, plus dy y - (dt x) d(dt x), summed over a head's channels; at a block's end it is g' h'.

Axis letters: T steps (K of one block), B environments, C = I + 2 N convolved channels, H heads of size P, I inner
features, N state size, Q blocks.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mneme.controllers.scans.machine_code import (
    LOG2_E,
    add_product,
    arrays,
    compiled,
    copy,
    dot,
    exp2,
    fma,
    in_arrays,
    kernel,
    scratch,
    sum_of,
    sums,
    times,
)
from mneme.controllers.scans.resets import gradient_stops

STEPS = 8
"""Steps of a block. The rows of a block take STEPS I numbers each, and backward there are seven of them."""


class SsdInputs(NamedTuple):
    """Inputs of all steps."""

    xbc: Any  # [T, B, C] x, B and C side by side
    dt: Any  # [T, B, H] lengths of the steps


class SsdParameters(NamedTuple):
    """Parameters of a layer."""

    a: Any  # [H] rates, negative
    skip: Any  # [H] D


class _Gradients(NamedTuple):
    """Gradients that the backward kernel writes, replaces or adds to."""

    x: SsdInputs
    p: SsdParameters  # added to
    h: Any  # [B, N, I] of the state after the last step, replaced by that before the first
    initial: Any  # [N, I] added to


def numba_ssd_scan(
    x: SsdInputs,
    reset_TB: Tensor,
    h_BNI: Tensor,
    initial_NI: Tensor,
    p: SsdParameters,
    cut_TB: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`scans.ssd.scan.ssd_scan`."""
    if torch.is_grad_enabled():
        y_TBI, last_BNI = _SsdScan.apply(reset_TB, gradient_stops(reset_TB, cut_TB), h_BNI, initial_NI, *x, *p)
        return y_TBI, last_BNI
    return _run(x, reset_TB, h_BNI, initial_NI, p, keep=False)[:2]


def numba_ssd_step(x: SsdInputs, h_BNI: Tensor, p: SsdParameters) -> Tensor:
    """`scans.ssd.scan.ssd_step`: the output of one step [B, I], without autograd; `h_BNI` becomes the next state."""
    reset_1B = torch.zeros(1, len(h_BNI), dtype=torch.bool)
    inputs = SsdInputs(*(value.unsqueeze(0) for value in x))
    y_1BI, last_BNI, _ = _run(inputs, reset_1B, h_BNI, h_BNI[0], p, keep=False, in_place=h_BNI.is_contiguous())
    if last_BNI is not h_BNI:
        h_BNI.copy_(last_BNI)
    return y_1BI[0]


def _run(
    x: SsdInputs,
    reset_TB: Tensor,
    h_BNI: Tensor,
    initial_NI: Tensor,
    p: SsdParameters,
    keep: bool,
    in_place: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, last state, and the states before each block [Q, B, N, I], none of them unless `keep`."""
    T, B = reset_TB.shape
    last_BNI = h_BNI if in_place else h_BNI.clone(memory_format=torch.contiguous_format)
    y_TBI = h_BNI.new_empty(T, B, h_BNI.shape[2])
    before_QBNI = h_BNI.new_empty(-(-T // STEPS) if keep else 0, *h_BNI.shape)
    room = scratch(h_BNI, *[(STEPS, h_BNI.shape[2])] * 2)
    _forward(in_arrays(x), *arrays(reset_TB, initial_NI), in_arrays(p), *arrays(y_TBI, last_BNI, before_QBNI), *room)
    return y_TBI, last_BNI, before_QBNI


class _SsdScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, reset_TB: Tensor, stop_TB: Tensor, h_BNI: Tensor, initial_NI: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        x, p = SsdInputs(*tensors[:2]), SsdParameters(*tensors[2:])
        y_TBI, last_BNI, before_QBNI = _run(x, reset_TB, h_BNI, initial_NI, p, keep=True)
        ctx.save_for_backward(reset_TB, stop_TB, initial_NI, y_TBI, before_QBNI, *tensors)
        return y_TBI, last_BNI

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_TBI: Tensor, dlast_BNI: Tensor) -> tuple[Tensor | None, ...]:
        reset_TB, stop_TB, initial_NI, y_TBI, before_QBNI, *tensors = ctx.saved_tensors
        x, p = SsdInputs(*tensors[:2]), SsdParameters(*tensors[2:])
        dx = SsdInputs(*(value.new_empty(value.shape) for value in x))
        dp = SsdParameters(*(value.new_zeros(value.shape) for value in p))
        dh_BNI = dlast_BNI.clone(memory_format=torch.contiguous_format)
        dinitial_NI = initial_NI.new_zeros(initial_NI.shape)
        d = _Gradients(in_arrays(dx), in_arrays(dp), *arrays(dh_BNI, dinitial_NI))
        flags, I = arrays(reset_TB, stop_TB, initial_NI), initial_NI.shape[1]
        room = scratch(dy_TBI, *[(STEPS, I)] * 3, (I,), (I,), (len(p.a),))
        _backward(in_arrays(x), *flags, in_arrays(p), *arrays(y_TBI, before_QBNI, dy_TBI), d, *room)
        return None, None, dh_BNI, dinitial_NI, *dx, *dp


@kernel
def _forward(x, reset, initial, p, y, h, before, decay, written):
    """Fill y [T, B, I] and `before`; h [B, N, I] goes from before the first step to after the last."""
    (T, B, _), (N, I), H = x.xbc.shape, initial.shape, len(p.a)
    by_heads = STEPS, H, I // H
    decay_KHP, written_KHP = decay.reshape(by_heads), written.reshape(by_heads)
    for b in range(B):
        for start in range(0, T, STEPS):
            steps = min(STEPS, T - start)
            if len(before) > 0:
                copy(before[start // STEPS, b], h[b])
            for k in range(steps):
                decay_and_written(x.xbc[start + k, b], x.dt[start + k, b], p.a, decay_KHP[k], written_KHP[k])
                skip_heads(x.xbc[start + k, b], p.skip, y[start + k, b])
            for n in range(N):
                for k in range(steps):
                    t = start + k
                    if reset[t, b]:
                        copy(h[b, n], initial[n])
                    state_step(h[b, n], decay[k], written[k], x.xbc[t, b, I + n], x.xbc[t, b, I + N + n], y[t, b])


@compiled
def decay_and_written(xbc, dt, a, decay, written):
    """Fill exp(a dt) and dt x, [H, P] each."""
    H, P = decay.shape
    for head in range(H):
        factor = exp2(a[head] * dt[head] * a.dtype.type(LOG2_E))
        for p in range(P):
            decay[head, p] = factor
            written[head, p] = dt[head] * xbc[head * P + p]


@compiled
def skip_heads(xbc, skip, y):
    """Fill y [I] with D x."""
    P = len(y) // len(skip)
    for head in range(len(skip)):
        for p in range(P):
            y[head * P + p] = skip[head] * xbc[head * P + p]


@compiled
def state_step(h, decay, written, write, read, y):
    """One state of all channels, h [I], goes one step on and is added to what is read, y [I]."""
    for i in range(len(h)):
        h[i] = fma(decay[i], h[i], write * written[i])
        y[i] += read * h[i]


@kernel
def _backward(x, reset, stop, initial, p, y, before, dy, d, decay, written, dwritten, h, at_end, of_decay):
    (T, B, _), (N, I), H, dtype = x.xbc.shape, initial.shape, len(p.a), dy.dtype
    by_heads = STEPS, H, I // H
    decay_KHP, written_KHP, dwritten_KHP = (
        decay.reshape(by_heads),
        written.reshape(by_heads),
        dwritten.reshape(by_heads),
    )
    for b in range(B):
        for block in range(len(before) - 1, -1, -1):
            start = block * STEPS
            steps = min(STEPS, T - start)
            for i in range(I):
                at_end[i] = dtype.type(0)
            for k in range(steps):
                decay_and_written(x.xbc[start + k, b], x.dt[start + k, b], p.a, decay_KHP[k], written_KHP[k])
                for i in range(I):
                    dwritten[k, i] = dtype.type(0)
            for n in range(N):
                copy(h, before[block, b, n])
                for k in range(steps):
                    t = start + k
                    if reset[t, b]:
                        copy(h, initial[n])
                    _step_again(h, decay[k], written[k], x.xbc[t, b, I + n])
                    d.x.xbc[t, b, I + N + n] = dot(dy[t, b], h)
                dh = d.h[b, n]
                add_product(at_end, dh, h)
                for k in range(steps - 1, -1, -1):
                    t = start + k
                    read, write = x.xbc[t, b, I + N + n], x.xbc[t, b, I + n]
                    _step_back(dh, dy[t, b], read, write, dwritten[k])
                    d.x.xbc[t, b, I + n] = dot(dh, written[k])
                    times(dh, decay[k])
                    if reset[t, b]:
                        for i in range(I):
                            d.initial[n, i] += dh[i]
                    if stop[t, b]:
                        for i in range(I):
                            dh[i] = dtype.type(0)
            _sum_heads(at_end, of_decay)
            for k in range(steps - 1, -1, -1):
                t = start + k
                _inputs_back(
                    x.xbc[t, b], x.dt[t, b], p, y[t, b], dy[t, b], dwritten_KHP[k], of_decay, d.x.xbc[t, b],
                    d.x.dt[t, b], d.p,
                )  # fmt: skip
                if stop[t, b]:
                    for head in range(H):
                        of_decay[head] = dtype.type(0)


@compiled
def _step_again(h, decay, written, write):
    """Take one state of all channels, h [I], a step on."""
    for i in range(len(h)):
        h[i] = fma(decay[i], h[i], write * written[i])


@compiled
def _step_back(dh, dy, read, write, dwritten):
    """Add what the step itself gives to the gradient of a state after it, dh [I]."""
    for i in range(len(dh)):
        dh[i] += read * dy[i]
        dwritten[i] += write * dh[i]


@compiled
def _sum_heads(x, of_head):
    H = len(of_head)
    P = len(x) // H
    for head in range(H):
        of_head[head] = sum_of(x[head * P : (head + 1) * P])


@sums
def _head_sums(xbc, y, dy, dwritten, skip, dt, head):
    """Sums over a head's channels: the change in the gradient of log decays, and the gradients of dt and D."""
    zero, P = dy.dtype.type(0), dwritten.shape[1]
    of_log, of_dt, of_skip = zero, zero, zero
    for p in range(P):
        i = head * P + p
        dx = dwritten[head, p] * xbc[i]
        of_log += fma(dy[i], y[i] - skip * xbc[i], -dt * dx)
        of_dt += dx
        of_skip += dy[i] * xbc[i]
    return of_log, of_dt, of_skip


@compiled
def _inputs_back(xbc, dt, p, y, dy, dwritten, of_decay, dxbc, ddt, dp):
    """One environment's step; `of_decay` [H] goes from the gradient of later log decays to that of this step's."""
    H, P = dwritten.shape
    for head in range(H):
        of_log, of_dt, of_skip = _head_sums(xbc, y, dy, dwritten, p.skip[head], dt[head], head)
        of_decay[head] += of_log
        ddt[head] = of_decay[head] * p.a[head] + of_dt
        dp.a[head] += of_decay[head] * dt[head]
        dp.skip[head] += of_skip
        for q in range(P):
            dxbc[head * P + q] = fma(dy[head * P + q], p.skip[head], dwritten[head, q] * dt[head])
