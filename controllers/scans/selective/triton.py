"""The selective scan (`scans.selective.cell`) in one Triton kernel a pass.

    d = softplus(dt)      h' = exp(d A) h + d B u      y = (C h' + D u) silu(z)      A = -exp(a_log)

A program has an environment and a block of channels, whose N states each stay in registers for all steps. If they are
few, one warp has them, so that sums over states or channels need no barrier. Loads do not wait for the states, and
there are enough programs, environments times blocks, to hide their latency.

The states are kept once every sqrt(T) steps. Backward, a program computes the states of such a span again, into a
buffer that it reuses for each span, and goes back through them: with g the gradient of h' from later steps,

    s = dy silu(z)            g' = g + C s                          dC = sum over channels of s h'
    dw = sum over states of B g'                                    dB = sum over channels of d u g'
    f = g' exp(d A) h         dd = u dw + sum over states of f A    du = D s + d dw        da_log = f d A

and exp(d A) g' goes on to the step before, or at a reset to the initial state. Sums over blocks of channels and over
environments are taken from buffers afterwards, so that results are the same at every run. Everything is computed in
float32 at least. It has not been measured on a GPU yet: `python -m benchmarks.gpu` does.

Axis letters: T steps, B environments, I inner channels, N states a channel, P spans of K steps, G blocks of channels.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from mneme.controllers.scans.persistent import plus, sigmoid
from mneme.controllers.scans.resets import gradient_stops
from mneme.controllers.scans.selective.cell import SelectiveInputs, SelectiveParameters

BLOCK_I = 32  # channels of a program: rows of 128 bytes of float32
WARP_STATES = 16  # of each channel for one warp: 16 registers a thread for each of the dozen arrays backward


@triton.jit
def _softplus(a):
    """As in torch, and exact where 1 + exp(a) rounds to 1."""
    grown = tl.exp(tl.minimum(a, 20.0))
    over = (1.0 + grown) - 1.0
    below = tl.where(over == 0.0, grown, tl.log(1.0 + grown) * (grown / tl.where(over == 0.0, 1.0, over)))
    return tl.where(a > 20.0, a, below)


@triton.jit
def _place(inner, N, BN: tl.constexpr, BI: tl.constexpr):
    """This program's lane, channels [BI] and states [BN], and which of those there are."""
    blocks = (inner + BI - 1) // BI
    lane = (tl.program_id(0) // blocks).to(tl.int64)  # what it indexes may have more numbers than 32 bits count
    channels = tl.program_id(0) % blocks * BI + tl.arange(0, BI)
    states = tl.arange(0, BN)
    return lane, channels, states, channels < inner, states < N


@triton.jit
def _rates(a_log_ptr, channels, states, there, N, ACC: tl.constexpr):
    """-A, [BN, BI]."""
    return tl.exp(tl.load(a_log_ptr + channels[None, :] * N + states[:, None], there, 0.0).to(ACC))


@triton.jit
def _step(u_ptr, dt_ptr, write_ptr, row, channels, states, i_there, n_there, inner, N, ACC: tl.constexpr):
    """Load the inputs that a step writes: u [BI], the step's length d [BI], and B [BN, 1]."""
    u = tl.load(u_ptr + row * inner + channels, i_there, 0.0).to(ACC)
    dt = tl.load(dt_ptr + row * inner + channels, i_there, 0.0).to(ACC)
    write = tl.load(write_ptr + row * N + states, n_there, 0.0).to(ACC)
    return u, _softplus(dt), write[:, None]


@triton.jit
def _forward_kernel(
    u_ptr, dt_ptr, z_ptr, write_ptr, read_ptr, a_log_ptr, skip_ptr, reset_ptr, initial_ptr, h_ptr,
    y_ptr, kept_ptr, T, B, inner, N, K, ACC: tl.constexpr, BN: tl.constexpr, BI: tl.constexpr,
):  # fmt: skip
    lane, channels, states, i_there, n_there = _place(inner, N, BN, BI)
    own, there = states[:, None] * inner + channels[None, :], n_there[:, None] & i_there[None, :]
    rate = _rates(a_log_ptr, channels, states, there, N, ACC)
    skip = tl.load(skip_ptr + channels, i_there, 0.0).to(ACC)
    initial = tl.load(initial_ptr + own, there, 0.0).to(ACC)
    h = tl.load(h_ptr + lane * N * inner + own, there, 0.0).to(ACC)
    kept = lane * N * inner + own
    for first in range(0, T, K):
        tl.store(kept_ptr + kept, h, there)
        kept += B * N * inner
        for t in range(first, tl.minimum(first + K, T)):
            row = t * B + lane
            u, d, write = _step(u_ptr, dt_ptr, write_ptr, row, channels, states, i_there, n_there, inner, N, ACC)
            h = tl.where(tl.load(reset_ptr + row) != 0, initial, h)
            h = tl.exp(-rate * d[None, :]) * h + write * (d * u)[None, :]
            read = tl.load(read_ptr + row * N + states, n_there, 0.0).to(ACC)[:, None]
            z = tl.load(z_ptr + row * inner + channels, i_there, 0.0).to(ACC)
            y = (tl.reduce(read * h, 0, plus) + skip * u) * z * sigmoid(z)
            tl.store(y_ptr + row * inner + channels, y, i_there)
    tl.store(kept_ptr + kept, h, there)


@triton.jit
def _backward_kernel(
    u_ptr, dt_ptr, z_ptr, write_ptr, read_ptr, a_log_ptr, skip_ptr, reset_ptr, initial_ptr, kept_ptr, stop_ptr, dy_ptr,
    dlast_ptr, again_ptr, du_ptr, ddt_ptr, dz_ptr, dwrite_ptr, dread_ptr, da_log_ptr, dskip_ptr, dh_ptr, dinitial_ptr,
    T, B, inner, N, K, ACC: tl.constexpr, BN: tl.constexpr, BI: tl.constexpr,
):  # fmt: skip
    lane, channels, states, i_there, n_there = _place(inner, N, BN, BI)
    block = tl.program_id(0).to(tl.int64) % ((inner + BI - 1) // BI)
    own, there = states[:, None] * inner + channels[None, :], n_there[:, None] & i_there[None, :]
    rate = _rates(a_log_ptr, channels, states, there, N, ACC)
    skip = tl.load(skip_ptr + channels, i_there, 0.0).to(ACC)
    initial = tl.load(initial_ptr + own, there, 0.0).to(ACC)
    dh = tl.load(dlast_ptr + lane * N * inner + own, there, 0.0).to(ACC)
    da_log = tl.full((BN, BI), 0.0, ACC)
    dinitial = tl.full((BN, BI), 0.0, ACC)
    dskip = tl.full((BI,), 0.0, ACC)
    spans = (T + K - 1) // K
    for back in range(spans):
        span = spans - 1 - back
        first = span * K
        steps = tl.minimum(K, T - first)
        h = tl.load(kept_ptr + (span * B + lane) * N * inner + own, there, 0.0)
        for k in range(steps):
            row = (first + k) * B + lane
            u, d, write = _step(u_ptr, dt_ptr, write_ptr, row, channels, states, i_there, n_there, inner, N, ACC)
            h = tl.where(tl.load(reset_ptr + row) != 0, initial, h)
            tl.store(again_ptr + (lane * K + k) * N * inner + own, h, there)
            h = tl.exp(-rate * d[None, :]) * h + write * (d * u)[None, :]
        tl.debug_barrier()  # the states are written, whichever thread reads them
        for passed in range(steps):
            k = steps - 1 - passed
            row = (first + k) * B + lane
            dt = tl.load(dt_ptr + row * inner + channels, i_there, 0.0).to(ACC)
            u, d, write = _step(u_ptr, dt_ptr, write_ptr, row, channels, states, i_there, n_there, inner, N, ACC)
            read = tl.load(read_ptr + row * N + states, n_there, 0.0).to(ACC)[:, None]
            z = tl.load(z_ptr + row * inner + channels, i_there, 0.0).to(ACC)
            dy = tl.load(dy_ptr + row * inner + channels, i_there, 0.0).to(ACC)
            before = tl.load(again_ptr + (lane * K + k) * N * inner + own, there, 0.0)
            decay = tl.exp(-rate * d[None, :])
            h = decay * before + write * (d * u)[None, :]
            gate = sigmoid(z)
            y = tl.reduce(read * h, 0, plus) + skip * u
            tl.store(dz_ptr + row * inner + channels, dy * y * gate * (1 + z * (1 - gate)), i_there)
            s = dy * z * gate
            partial = (block * T * B + row) * N + states
            tl.store(dread_ptr + partial, tl.reduce(s[None, :] * h, 1, plus), n_there)
            dh += read * s[None, :]
            tl.store(dwrite_ptr + partial, tl.reduce((d * u)[None, :] * dh, 1, plus), n_there)
            dwritten = tl.reduce(write * dh, 0, plus)
            dh *= decay
            flow = dh * before * rate
            tl.store(du_ptr + row * inner + channels, skip * s + d * dwritten, i_there)
            dd = u * dwritten - tl.reduce(flow, 0, plus)
            tl.store(ddt_ptr + row * inner + channels, dd * sigmoid(dt), i_there)
            da_log -= flow * d[None, :]
            dskip += s * u
            fresh = tl.load(reset_ptr + row) != 0
            dinitial += tl.where(fresh, dh, 0.0)
            dh = tl.where(tl.load(stop_ptr + row) != 0, 0.0, dh)
        tl.debug_barrier()  # the states are read, and the next span's may take their place
    tl.store(dh_ptr + lane * N * inner + own, dh, there)
    tl.store(dinitial_ptr + lane * N * inner + own, dinitial, there)
    tl.store(da_log_ptr + lane * N * inner + own, da_log, there)
    tl.store(dskip_ptr + lane * inner + channels, dskip, i_there)


def triton_selective_scan(
    x: SelectiveInputs,
    reset_TB: Tensor,
    h_BNI: Tensor,
    initial_NI: Tensor,
    p: SelectiveParameters,
    cut_TB: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`scans.selective.scan.selective_scan`: every output [T, B, I], and the last state [B, N, I]."""
    y_TBI, last_BNI = _TritonSelectiveScan.apply(reset_TB, gradient_stops(reset_TB, cut_TB), h_BNI, initial_NI, *x, *p)
    return y_TBI, last_BNI


def warps(block: int) -> int:
    """The number of warps of a program that has this many states of each channel."""
    return min(8, max(1, block // WARP_STATES))


def _launch(kernel: Any, tensors: tuple[Tensor, ...], u_TBI: Tensor, states: int, span: int) -> None:
    T, B, inner = u_TBI.shape
    block = triton.next_power_of_2(states)
    with torch.cuda.device_of(u_TBI):
        kernel[(triton.cdiv(inner, BLOCK_I) * B,)](
            *tensors, T, B, inner, states, span,
            ACC=tl.float64 if u_TBI.dtype == torch.float64 else tl.float32,
            BN=block,
            BI=BLOCK_I,
            num_warps=warps(block),
            enable_fp_fusion=True,
        )  # fmt: skip


class _TritonSelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, reset_TB: Tensor, stop_TB: Tensor, h_BNI: Tensor, initial_NI: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        *kept, h_BNI = given = [value.contiguous() for value in (*tensors, reset_TB, initial_NI, h_BNI)]
        u_TBI, (T, B, inner), N = given[0], given[0].shape, len(initial_NI)
        sums = torch.float64 if u_TBI.dtype == torch.float64 else torch.float32
        span = math.isqrt(T - 1) + 1 if any(ctx.needs_input_grad) else T
        kept_PBNI = torch.empty(triton.cdiv(T, span) + 1, B, N, inner, dtype=sums, device=u_TBI.device)
        y_TBI = torch.empty_like(u_TBI)
        _launch(_forward_kernel, (*given, y_TBI, kept_PBNI), u_TBI, N, span)
        ctx.span = span
        ctx.save_for_backward(*kept, kept_PBNI, stop_TB.contiguous())
        return y_TBI, kept_PBNI[-1].to(h_BNI.dtype, copy=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_TBI: Tensor, dlast_BNI: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, reset_TB, initial_NI, kept_PBNI, _ = ctx.saved_tensors
        x, p = SelectiveInputs(*tensors[:5]), SelectiveParameters(*tensors[5:])
        (_, B, N, inner), T = kept_PBNI.shape, len(reset_TB)
        again_BKNI = kept_PBNI.new_empty(B, ctx.span, N, inner)
        du_TBI, ddt_TBI, dz_TBI = (torch.empty_like(value) for value in (x.u, x.dt, x.z))
        dwrite_GTBN, dread_GTBN = kept_PBNI.new_empty(2, triton.cdiv(inner, BLOCK_I), T, B, N)
        da_log_BNI, dh_BNI, dinitial_BNI = kept_PBNI.new_empty(3, B, N, inner)
        dskip_BI = kept_PBNI.new_empty(B, inner)
        given = (*ctx.saved_tensors, dy_TBI.contiguous(), dlast_BNI.contiguous())
        found = (du_TBI, ddt_TBI, dz_TBI, dwrite_GTBN, dread_GTBN, da_log_BNI, dskip_BI, dh_BNI, dinitial_BNI)
        _launch(_backward_kernel, (*given, again_BKNI, *found), x.u, N, ctx.span)
        dwrite_TBN, dread_TBN = (value.sum(0).to(x.write.dtype) for value in (dwrite_GTBN, dread_GTBN))
        dparameters = da_log_BNI.sum(0).t().to(p.a_log.dtype), dskip_BI.sum(0).to(p.skip.dtype)
        dstates = dh_BNI.to(dlast_BNI.dtype), dinitial_BNI.sum(0).to(initial_NI.dtype)
        return None, None, *dstates, du_TBI, ddt_TBI, dz_TBI, dwrite_TBN, dread_TBN, *dparameters
