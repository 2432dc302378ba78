"""The selective scan in PyTorch, with a gradient derived by hand; `scans.selective.cell` has the equations.

It runs over blocks of environments and steps whose states fit a processor's cache. exp(d A) is computed for a block at
once as 2^(d A / ln 2), in a quarter of the time that exp takes on CPUs, so that the loop over time needs two operations
a step forward and five backward. Only the state before each block is kept, [P, B, N, I]; the backward pass computes a
block's states again. Channels are the last axis, along which all operations run; weighted sums are batched matrix
products. At a reset the initial state takes the place of h in exp(d A) h.

Axis letters: T steps (K of one block), B environments, I inner channels, N states a channel, P blocks, R = K B rows.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mneme.controllers.scans.resets import gradient_stops, lanes_to_reset
from mneme.controllers.scans.selective.cell import SelectiveInputs, SelectiveParameters

LANES, ROWS = 64, 256
"""Environments of a block, and environments times steps: at 232 channels of 16 states, two buffers of 3.8 MB."""


def torch_selective_scan(
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
    return _forward(x, reset_TB, h_BNI, initial_NI, p, keep=False)[:2]


def torch_selective_step(x: SelectiveInputs, h_BNI: Tensor, p: SelectiveParameters) -> Tensor:
    """The output of one step [B, I], without autograd and in the fewest operations; `h_BNI` becomes the next state."""
    d_BI = F.softplus(x.dt)
    h_BNI.mul_((_rates(p) * d_BI.unsqueeze(1)).exp2_()).addcmul_(x.write.unsqueeze(2), (d_BI * x.u).unsqueeze(1))
    y_BI = torch.bmm(x.read.unsqueeze(1), h_BNI).squeeze(1)
    return y_BI.addcmul_(x.u, p.skip).mul_(F.silu(x.z))


def _rates(p: SelectiveParameters) -> Tensor:
    """A / ln 2, [N, I]."""
    return (p.a_log.exp() * -math.log2(math.e)).t().contiguous()


def _blocks(T: int, B: int) -> tuple[list[slice], list[slice]]:
    """The environments and the steps of all blocks."""
    lanes = max(1, min(LANES, B))
    return _spans(B, lanes), _spans(T, max(1, ROWS // lanes))


def _spans(size: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


def _scratch(h_BNI: Tensor, rooms: int) -> Tensor:
    """Memory for the states of one block, used again for the next: [rooms, R, N, I]."""
    return h_BNI.new_empty(rooms, max(ROWS, LANES), *h_BNI.shape[1:])


def _like(d_KBI: Tensor, scratch: Tensor) -> tuple[Tensor, ...]:
    """The rooms, each as [K, B, N, I]."""
    K, B = d_KBI.shape[:2]
    return scratch[:, : K * B].unflatten(1, (K, B)).unbind()


def _at(x: SelectiveInputs, steps: slice, lanes: slice) -> SelectiveInputs:
    return SelectiveInputs(*(value[steps, lanes] for value in x))


def _over_states(weight_KBN: Tensor, h_KBNI: Tensor) -> Tensor:
    """The weighted sum: [K, B, N], [K, B, N, I] -> [K, B, I]."""
    return torch.bmm(weight_KBN.flatten(0, 1).unsqueeze(1), h_KBNI.flatten(0, 1)).view(*h_KBNI.shape[:2], -1)


def _over_channels(weight_KBI: Tensor, h_KBNI: Tensor) -> Tensor:
    """The weighted sum: [K, B, I], [K, B, N, I] -> [K, B, N]."""
    h_RIN = h_KBNI.flatten(0, 1).transpose(1, 2)
    return torch.bmm(weight_KBI.flatten(0, 1).unsqueeze(1), h_RIN).view(*h_KBNI.shape[:2], -1)


def _states(
    x: SelectiveInputs,
    d_KBI: Tensor,
    h_BNI: Tensor,
    initial_NI: Tensor,
    resets: tuple[Tensor, ...],
    rate_NI: Tensor,
    decay_KBNI: Tensor,
    h_KBNI: Tensor,
) -> Tensor:
    """Fill `decay_KBNI` and `h_KBNI`, the states after each step of a block; return the last state.

    If both are the same tensor, it holds the states.
    """
    torch.mul(rate_NI, d_KBI.unsqueeze(2), out=decay_KBNI).exp2_()
    written = (x.write.unsqueeze(3).unbind(), (d_KBI * x.u).unsqueeze(2).unbind())
    for decay, write, u, after, lanes in zip(decay_KBNI.unbind(), *written, h_KBNI.unbind(), resets, strict=True):
        afresh = decay.index_select(0, lanes) * initial_NI if len(lanes) else None
        torch.mul(decay, h_BNI, out=after)
        if afresh is not None:
            after.index_copy_(0, lanes, afresh)
        h_BNI = after.addcmul_(write, u)
    return h_BNI


def _forward(
    x: SelectiveInputs, reset_TB: Tensor, h_BNI: Tensor, initial_NI: Tensor, p: SelectiveParameters, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, last state, and the states before each block [P, B, N, I], which are scratch unless `keep`."""
    T, B = reset_TB.shape
    lane_spans, step_spans = _blocks(T, B)
    rate_NI, scratch = _rates(p), _scratch(h_BNI, 1)
    y_TBI = torch.empty_like(x.u)
    before_PBNI = h_BNI.new_empty(len(step_spans) + 1 if keep else 1, *h_BNI.shape)
    before_PBNI[0] = h_BNI
    for lanes in lane_spans:
        resets, h = lanes_to_reset(reset_TB[:, lanes]), before_PBNI[0, lanes]
        for i, steps in enumerate(step_spans):
            block = _at(x, steps, lanes)
            d_KBI = F.softplus(block.dt)
            (states,) = _like(d_KBI, scratch)
            last = _states(block, d_KBI, h, initial_NI, resets[steps], rate_NI, states, states)
            h = before_PBNI[i + 1 if keep else 0, lanes].copy_(last)
            y_KBI = _over_states(block.read, states).addcmul_(block.u, p.skip)
            torch.mul(y_KBI, F.silu(block.z), out=y_TBI[steps, lanes])
    return y_TBI, before_PBNI[-1].clone(), before_PBNI


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, reset_TB: Tensor, stop_TB: Tensor, h_BNI: Tensor, initial_NI: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        x, p = SelectiveInputs(*tensors[:5]), SelectiveParameters(*tensors[5:])
        y_TBI, last_BNI, before_PBNI = _forward(x, reset_TB, h_BNI, initial_NI, p, keep=True)
        ctx.save_for_backward(reset_TB, stop_TB, initial_NI, before_PBNI, *tensors)
        return y_TBI, last_BNI

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_TBI: Tensor, dlast_BNI: Tensor) -> tuple[Tensor | None, ...]:
        reset_TB, stop_TB, initial_NI, before_PBNI, *tensors = ctx.saved_tensors
        x, p = SelectiveInputs(*tensors[:5]), SelectiveParameters(*tensors[5:])
        lane_spans, step_spans = _blocks(*reset_TB.shape)
        a_NI, rate_NI, scratch = -p.a_log.exp().t().contiguous(), _rates(p), _scratch(dlast_BNI, 2)
        dx = SelectiveInputs(*map(torch.empty_like, x))
        da_log_NI, dskip_I, dinitial_NI = map(torch.zeros_like, (a_NI, p.skip, initial_NI))
        dh_BNI = dlast_BNI.clone()
        for lanes in lane_spans:
            resets, stops = (lanes_to_reset(flags_TB[:, lanes]) for flags_TB in (reset_TB, stop_TB))
            dh = dh_BNI[lanes]
            for i, steps in reversed(list(enumerate(step_spans))):
                block, grads, before = _at(x, steps, lanes), _at(dx, steps, lanes), before_PBNI[i, lanes]
                d_KBI = F.softplus(block.dt)
                decay, states = _like(d_KBI, scratch)
                _states(block, d_KBI, before, initial_NI, resets[steps], rate_NI, decay, states)

                y_KBI = _over_states(block.read, states).addcmul_(block.u, p.skip)
                grads.z.copy_(torch.ops.aten.silu_backward(y_KBI.mul_(dy_TBI[steps, lanes]), block.z))
                dread_KBI = F.silu(block.z).mul_(dy_TBI[steps, lanes])
                grads.read.copy_(_over_channels(dread_KBI, states))

                written_KBI = d_KBI * block.u
                dwritten_KBI = torch.empty_like(written_KBI)
                rows = zip(
                    range(len(d_KBI)),
                    (before, *states[:-1].unbind()),
                    decay.unbind(),
                    block.read.unsqueeze(3).unbind(),
                    dread_KBI.unsqueeze(2).unbind(),
                    resets[steps],
                    stops[steps],
                    strict=True,
                )
                for k, before_k, decay_k, read, dread, lanes_k, stops_k in reversed(list(rows)):
                    dh.addcmul_(read, dread)
                    now = slice(k, k + 1)
                    dwritten_KBI[now] = _over_states(block.write[now], dh.unsqueeze(0))
                    grads.write[now] = _over_channels(written_KBI[now], dh.unsqueeze(0))
                    dh.mul_(decay_k)
                    torch.mul(dh, before_k, out=decay_k)  # from here on the gradient of d A
                    if len(lanes_k):
                        dh_reset = dh.index_select(0, lanes_k)
                        decay_k.index_copy_(0, lanes_k, dh_reset * initial_NI)
                        dinitial_NI += dh_reset.sum(0)
                    if len(stops_k):
                        dh.index_fill_(0, stops_k, 0)

                dskip_I += (dread_KBI * block.u).sum((0, 1))
                torch.addcmul(dread_KBI * p.skip, dwritten_KBI, d_KBI, out=grads.u)
                dd_KBI = decay.mul_(a_NI).sum(2).addcmul_(dwritten_KBI, block.u)
                torch.mul(dd_KBI, torch.sigmoid(block.dt), out=grads.dt)
                da_log_NI += decay.mul_(d_KBI.unsqueeze(2)).sum((0, 1))
        return None, None, dh_BNI, dinitial_NI, *dx, da_log_NI.t(), dskip_I
