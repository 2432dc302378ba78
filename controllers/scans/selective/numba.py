"""The selective scan on CPUs, compiled by numba; `scans.selective.cell` has the equations.

An update of the preset for delayed cue, collecting and learning, is 2.06 times as fast with it and the convolution's as
with PyTorch (`python -m benchmarks.backends`, two threads of an Intel Xeon).

Each environment runs through all steps by itself. Within a block of STEPS steps the loop over states is the outer one,
so that what the inner loops touch, rows of I channels for the steps of one block, stays in the nearest cache. The
forward pass keeps the states before each block; the backward pass computes a block's states again, then goes back
through its steps: with s = dy silu(z) and g the gradient of h' from later steps,

    g' = g + C s      dC = sum over channels of s h'      dB = sum over channels of g' d u
    w = g' exp(d A) h      dd = sum over states of (w A + B g' u)      g = g' exp(d A)

Axis letters: T steps (K of one block), B environments, I inner channels, N states a channel, Q blocks.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mneme.controllers.scans.machine_code import (
    LOG2_E,
    arrays,
    compiled,
    copy,
    dot,
    exp2,
    fma,
    in_arrays,
    kernel,
    scratch,
    sigmoid,
    softplus,
)
from mneme.controllers.scans.resets import gradient_stops
from mneme.controllers.scans.selective.cell import SelectiveInputs, SelectiveParameters

STEPS = 4
"""Steps of a block. The rows of a block take STEPS I numbers each, and backward there are eight of them."""


class _Trace(NamedTuple):
    """Values that the forward kernel keeps for the backward kernel; empty arrays if nothing is to be kept."""

    y: Any  # [T, B, I] the outputs before their gate
    before: Any  # [Q, B, N, I] the states before each block


class _Gradients(NamedTuple):
    """Gradients that the backward kernel writes, replaces or adds to."""

    x: SelectiveInputs  # [T, B, ...]
    a: Any  # [N, I] of the rates, added to
    skip: Any  # [I] added to
    h: Any  # [B, N, I] of the state after the last step, replaced by that before the first
    initial: Any  # [N, I] added to


def numba_selective_scan(
    x: SelectiveInputs,
    reset_TB: Tensor,
    h_BNI: Tensor,
    initial_NI: Tensor,
    p: SelectiveParameters,
    cut_TB: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`scans.selective.scan.selective_scan`."""
    if torch.is_grad_enabled():
        y_TBI, last_BNI = _SelectiveScan.apply(reset_TB, gradient_stops(reset_TB, cut_TB), h_BNI, initial_NI, *x, *p)
        return y_TBI, last_BNI
    y_TBI, last_BNI, _, _ = _run(x, reset_TB, h_BNI, initial_NI, p, keep=False)
    return y_TBI, last_BNI


def numba_selective_step(x: SelectiveInputs, h_BNI: Tensor, p: SelectiveParameters) -> Tensor:
    """`scans.selective.scan.selective_step`; `h_BNI` becomes the next state."""
    reset_1B = torch.zeros(1, len(h_BNI), dtype=torch.bool)
    inputs = SelectiveInputs(*(value.unsqueeze(0) for value in x))
    y_1BI, last_BNI, *_ = _run(inputs, reset_1B, h_BNI, h_BNI[0], p, keep=False, in_place=h_BNI.is_contiguous())
    if last_BNI is not h_BNI:
        h_BNI.copy_(last_BNI)
    return y_1BI[0]


def _run(
    x: SelectiveInputs,
    reset_TB: Tensor,
    h_BNI: Tensor,
    initial_NI: Tensor,
    p: SelectiveParameters,
    keep: bool,
    in_place: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Outputs, last state, and the two tensors of a `_Trace`."""
    T, B, I = x.u.shape
    last_BNI = h_BNI if in_place else h_BNI.clone(memory_format=torch.contiguous_format)
    y_TBI = x.u.new_empty(T, B, I)
    kept_TBI = x.u.new_empty(T if keep else 0, B, I)
    before_QBNI = h_BNI.new_empty(-(-T // STEPS) if keep else 0, *h_BNI.shape)
    trace = _Trace(*arrays(kept_TBI, before_QBNI))
    given = arrays(reset_TB, initial_NI, LOG2_E * rates(p), p.skip, y_TBI, last_BNI)
    _forward(in_arrays(x), *given, trace, *scratch(y_TBI, *[(STEPS, I)] * 3))
    return y_TBI, last_BNI, kept_TBI, before_QBNI


def rates(p: SelectiveParameters) -> Tensor:
    """A [N, I]."""
    return -p.a_log.t().contiguous().exp()


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, reset_TB: Tensor, stop_TB: Tensor, h_BNI: Tensor, initial_NI: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        x, p = SelectiveInputs(*tensors[:5]), SelectiveParameters(*tensors[5:])
        y_TBI, last_BNI, *kept = _run(x, reset_TB, h_BNI, initial_NI, p, keep=True)
        ctx.save_for_backward(reset_TB, stop_TB, initial_NI, *kept, *tensors)
        return y_TBI, last_BNI

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_TBI: Tensor, dlast_BNI: Tensor) -> tuple[Tensor | None, ...]:
        reset_TB, stop_TB, initial_NI, kept_TBI, before_QBNI, *tensors = ctx.saved_tensors
        x, p = SelectiveInputs(*tensors[:5]), SelectiveParameters(*tensors[5:])
        dx = SelectiveInputs(*(value.new_empty(value.shape) for value in x))
        a_NI = rates(p)
        da_NI, dskip_I = torch.zeros_like(a_NI), torch.zeros_like(p.skip)
        dh_BNI = dlast_BNI.clone(memory_format=torch.contiguous_format)
        dinitial_NI = initial_NI.new_zeros(initial_NI.shape)
        d = _Gradients(in_arrays(dx), *arrays(da_NI, dskip_I, dh_BNI, dinitial_NI))
        given = arrays(reset_TB, stop_TB, initial_NI, a_NI, LOG2_E * a_NI, p.skip)
        trace, (dy,) = _Trace(*arrays(kept_TBI, before_QBNI)), arrays(dy_TBI)
        I = len(p.skip)
        _backward(in_arrays(x), *given, trace, dy, d, *scratch(dy_TBI, *[(STEPS, I)] * 7, (I,)))
        return None, None, dh_BNI, dinitial_NI, *dx, (da_NI * a_NI).t(), dskip_I


@compiled
def lengths(dt, u, length, written):
    """Fill the step's length d and d u, [I] each."""
    for i in range(len(dt)):
        length[i] = softplus(dt[i])
    for i in range(len(dt)):
        written[i] = length[i] * u[i]


@kernel
def _forward(x, reset, initial, rate, skip, y, h, trace, length, written, total):
    """Fill y [T, B, I] and the trace; h [B, N, I] goes from before the first step to after the last."""
    (T, B, I), N = x.u.shape, len(initial)
    for b in range(B):
        for start in range(0, T, STEPS):
            steps = min(STEPS, T - start)
            if len(trace.before) > 0:
                copy(trace.before[start // STEPS, b], h[b])
            for k in range(steps):
                t = start + k
                lengths(x.dt[t, b], x.u[t, b], length[k], written[k])
                for i in range(I):
                    total[k, i] = skip[i] * x.u[t, b, i]
            for n in range(N):
                for k in range(steps):
                    t = start + k
                    if reset[t, b]:
                        copy(h[b, n], initial[n])
                    state_step(h[b, n], rate[n], length[k], written[k], x.write[t, b, n], x.read[t, b, n], total[k])
            for k in range(steps):
                t = start + k
                gate(total[k], x.z[t, b], y[t, b])
                if len(trace.y) > 0:
                    copy(trace.y[t, b], total[k])


@compiled
def state_step(h, rate, length, written, write, read, total):
    """One state of all channels, h [I], goes one step on and is added to what is read, total [I]."""
    for i in range(len(h)):
        h[i] = fma(exp2(rate[i] * length[i]), h[i], write * written[i])
        total[i] += read * h[i]


@compiled
def gate(total, z, y):
    """Fill in y = total silu(z), [I] each."""
    for i in range(len(y)):
        y[i] = total[i] * z[i] * sigmoid(z[i])


@kernel
def _backward(
    x, reset, stop, initial, a, rate, skip, trace, dy, d,
    length, written, s, decay, decayed, dlength, dwritten, h,
):  # fmt: skip
    (T, B, I), N, dtype = x.u.shape, len(initial), x.u.dtype
    for b in range(B):
        for block in range(len(trace.before) - 1, -1, -1):
            start = block * STEPS
            steps = min(STEPS, T - start)
            for k in range(steps):
                t = start + k
                lengths(x.dt[t, b], x.u[t, b], length[k], written[k])
                _gate_back(trace.y[t, b], x.z[t, b], dy[t, b], s[k], d.x.z[t, b])
                for i in range(I):
                    dlength[k, i] = dtype.type(0)
                    dwritten[k, i] = dtype.type(0)
            for n in range(N):
                copy(h, trace.before[block, b, n])
                for k in range(steps):
                    t = start + k
                    if reset[t, b]:
                        copy(h, initial[n])
                    _step_again(h, rate[n], length[k], written[k], x.write[t, b, n], decay[k], decayed[k])
                    d.x.read[t, b, n] = dot(s[k], h)
                dh = d.h[b, n]
                for k in range(steps - 1, -1, -1):
                    t = start + k
                    _step_back(dh, s[k], x.read[t, b, n], x.write[t, b, n], dwritten[k])
                    d.x.write[t, b, n] = dot(dh, written[k])
                    _decay_back(dh, decay[k], decayed[k])
                    _rate_back(decayed[k], a[n], length[k], dlength[k], d.a[n])
                    if reset[t, b]:
                        for i in range(I):
                            d.initial[n, i] += dh[i]
                    if stop[t, b]:
                        for i in range(I):
                            dh[i] = dtype.type(0)
            for k in range(steps):
                t = start + k
                _inputs_back(x.u[t, b], s[k], skip, length[k], dwritten[k], d.x.u[t, b], d.skip)
                _length_back(x.u[t, b], x.dt[t, b], dlength[k], dwritten[k], d.x.dt[t, b])


@compiled
def _gate_back(y, z, dy, s, dz):
    """Fill s = dy silu(z), and the gradient of z, from the outputs before the gate."""
    one = y.dtype.type(1)
    for i in range(len(y)):
        gate = sigmoid(z[i])
        silu = z[i] * gate
        s[i] = dy[i] * silu
        dz[i] = dy[i] * y[i] * (gate + silu * (one - gate))


@compiled
def _step_again(h, rate, length, written, write, decay, decayed):
    """`_step`, of which decay = exp(d A) and decayed = decay h are kept."""
    for i in range(len(h)):
        decay[i] = exp2(rate[i] * length[i])
        decayed[i] = decay[i] * h[i]
    for i in range(len(h)):
        h[i] = decayed[i] + write * written[i]


@compiled
def _step_back(dh, s, read, write, dwritten):
    for i in range(len(dh)):
        dh[i] += read * s[i]
        dwritten[i] += write * dh[i]


@compiled
def _decay_back(dh, decay, decayed):
    """`decayed` becomes the gradient of d A, and dh that of the state before the step."""
    for i in range(len(dh)):
        decayed[i] *= dh[i]
        dh[i] *= decay[i]


@compiled
def _rate_back(d_da, a, length, dlength, da):
    for i in range(len(a)):
        dlength[i] += d_da[i] * a[i]
        da[i] += d_da[i] * length[i]


@compiled
def _inputs_back(u, s, skip, length, dwritten, du, dskip):
    for i in range(len(u)):
        du[i] = fma(s[i], skip[i], dwritten[i] * length[i])
    for i in range(len(u)):
        dskip[i] += s[i] * u[i]


@compiled
def _length_back(u, dt, dlength, dwritten, ddt):
    for i in range(len(u)):
        ddt[i] = (dlength[i] + dwritten[i] * u[i]) * sigmoid(dt[i])
