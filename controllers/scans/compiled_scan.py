"""The scan around a pair of compiled kernels: what is set aside for them, and how autograd sees it.

Axis letters: T time, B lanes, N states a channel, I channels, P blocks of STEPS steps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from controllers.scans.compiled import arrays

STEPS = 16
"""Backward, states are computed again from the one before each so many steps: what is kept is a sixteenth of them."""


class Kernels(NamedTuple):
    """Of a recurrence whose inputs are some of each step, the state [B, N, I], the initial state [N, I], parameters."""

    forward: Callable[..., None]  # (reset, *inputs, y, last, before)
    backward: Callable[..., None]  # (reset, *inputs, before, dy, dlast, *slopes)
    of_steps: int  # how many inputs each step has of its own


def compiled_scan(kernels: Kernels, reset_TB: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Every output [T, B, I], and the last state [B, N, I]; differentiable, once, in every input."""
    if torch.is_grad_enabled():
        y_TBI, last_BNI = _CompiledScan.apply(kernels, reset_TB, *inputs)
        return y_TBI, last_BNI
    return _run(kernels, reset_TB, inputs, keep=False)[:2]


def _run(kernels: Kernels, reset_TB: Tensor, inputs: tuple[Tensor, ...], keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, last state, and unless not `keep` the states before each block, [P, B, N, I]."""
    (T, B), h_BNI = reset_TB.shape, inputs[kernels.of_steps]
    y_TBI, last_BNI = h_BNI.new_empty(T, B, h_BNI.shape[2]), h_BNI.new_empty(h_BNI.shape)
    before_PBNI = h_BNI.new_empty(-(-T // STEPS) if keep else 0, *h_BNI.shape)
    kernels.forward(*arrays(reset_TB, *inputs, y_TBI, last_BNI, before_PBNI))
    return y_TBI, last_BNI, before_PBNI


class _CompiledScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernels: Kernels, reset_TB: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        y_TBI, last_BNI, before_PBNI = _run(kernels, reset_TB, inputs, keep=True)
        ctx.kernels = kernels
        ctx.save_for_backward(reset_TB, before_PBNI, *inputs)
        return y_TBI, last_BNI

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_TBI: Tensor, dlast_BNI: Tensor) -> tuple[Tensor | None, ...]:
        reset_TB, before_PBNI, *inputs = ctx.saved_tensors
        written = ctx.kernels.of_steps + 1  # with the state's; the others are sums over time
        slopes = [value.new_empty(value.shape) for value in inputs[:written]]
        slopes += [value.new_zeros(value.shape) for value in inputs[written:]]
        ctx.kernels.backward(*arrays(reset_TB, *inputs, before_PBNI, dy_TBI, dlast_BNI, *slopes))
        return None, None, *slopes
