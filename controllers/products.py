"""Matrix products on CPUs, by the library that is fastest on the one at hand.

PyTorch hands float32 products to MKL, which on AMD's processors works with vectors half as wide as theirs. oneDNN,
which comes with PyTorch as well, uses the whole width: on a Zen 5 it takes 0.45 of MKL's time for 2048 rows of 128
by 384, and 0.65 for 64 rows, where its dearer call shows. Elsewhere, for small products and for other types, all here
is torch's own; `torch.backends.mkldnn.enabled = False` has it so everywhere.

Axis letters: R rows, M inputs, N outputs.
"""

import math
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAST = 8_000_000
"""Multiplications below which oneDNN's dearer call costs more than its product saves, on a Zen 5."""


class Linear(nn.Linear):
    """`torch.nn.Linear` through `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def linear(x: Tensor, w_NM: Tensor, b_N: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`: [..., M] -> [..., N]; torch.func's transforms do not know the larger ones."""
    pays = _pays(x, w_NM, math.prod(x.shape[:-1])) and _fit(x, w_NM, b_N) and not torch.is_autocast_enabled("cpu")
    if not pays:
        return F.linear(x, w_NM, b_N)
    x_RM = x.reshape(-1, x.shape[-1])
    y_RN: Tensor = _Linear.apply(x_RM, w_NM, b_N) if torch.is_grad_enabled() else _one_dnn(x_RM, w_NM, b_N)
    return y_RN.view(*x.shape[:-1], -1)


def _fit(x: Tensor, w: Tensor, b: Tensor | None) -> bool:
    """Whether they are an input, a matrix and its bias; what else torch takes, and what it refuses, is left to it."""
    if x.dim() == 0 or w.dim() != 2 or x.shape[-1] != w.shape[1]:
        return False
    return b is None or (b.shape == w.shape[:1] and b.dtype == w.dtype and b.device == w.device)


def product(a_RM: Tensor, b_MN: Tensor) -> Tensor:
    """`a_RM @ b_MN`, outside autograd and autocast."""
    if _pays(a_RM, b_MN, len(a_RM)):
        return _one_dnn(a_RM, b_MN.t(), None)
    if not torch.is_autocast_enabled(a_RM.device.type):
        return a_RM @ b_MN
    with torch.autocast(a_RM.device.type, enabled=False):  # takes as long as a small product
        return a_RM @ b_MN


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_RM: Tensor, w_NM: Tensor, b_N: Tensor | None) -> Tensor:
        of_x, of_w, _ = ctx.needs_input_grad
        ctx.save_for_backward(x_RM if of_w else None, w_NM if of_x else None)
        return _one_dnn(x_RM, w_NM, b_N)

    @staticmethod
    def backward(ctx: Any, dy_RN: Tensor) -> tuple[Tensor | None, ...]:
        x_RM, w_NM = ctx.saved_tensors
        dx_RM = None if w_NM is None else linear(dy_RN, w_NM.t())
        dw_NM = None if x_RM is None else linear(x_RM.t(), dy_RN.t()).t()
        return dx_RM, dw_NM, dy_RN.sum(0) if ctx.needs_input_grad[2] else None


def _one_dnn(x_RM: Tensor, w_NM: Tensor, b_N: Tensor | None) -> Tensor:
    b_N = None if b_N is None else b_N.contiguous()  # its strides are not asked for
    y_RN: Tensor = torch.ops.mkldnn._linear_pointwise(_dense(x_RM), _dense(w_NM), b_N, "none", [], "")
    return y_RN


def _dense(a_RM: Tensor) -> Tensor:
    """Rows or columns without gaps, copied if need be: with others oneDNN can take a thousand times as long."""
    return a_RM.t().contiguous().t() if a_RM.stride(0) == 1 else a_RM.contiguous()


def _pays(x: Tensor, w: Tensor, rows: int) -> bool:
    return (
        _mkl_is_held_back()
        and bool(torch.backends.mkldnn.enabled)
        and rows * w.numel() >= LEAST
        and x.dtype == w.dtype == torch.float32
        and x.device.type == w.device.type == "cpu"
    )


@cache
def _mkl_is_held_back() -> bool:
    """Whether this is one of AMD's processors with AVX-512, and oneDNN at hand."""
    info = Path("/proc/cpuinfo")
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return wide and info.exists() and "AuthenticAMD" in info.read_text() and one_dnn_works()


def one_dnn_works() -> bool:
    """Whether this PyTorch has oneDNN's products, which are no part of its public interface."""
    one = torch.ones(1, 1, dtype=torch.float32, device="cpu")
    try:
        return bool(_one_dnn(one, one, None) == 1)
    except (AttributeError, RuntimeError):
        return False
