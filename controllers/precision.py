"""Mixed precision (Micikevicius et al. 2018): products of matrices in bfloat16, under torch's autocast, and recurrences
in float32.

A product's operands are rounded, its sums are float32, and what it gives is bfloat16. Whatever goes on from step to
step, where such roundings would add up, enters and leaves in float32, gradients included, as does all that leaves a
policy.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Result = TypeVar("Result")


def autocast(device: torch.device, enabled: bool) -> torch.autocast:
    """Products in bfloat16, or where that is not enabled everything as it is, in this thread.

    Torch's cache of rounded weights is off: those from a pass without gradient would have no graph in the next pass,
    and those of before an optimizer's step would be stale after it.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled, cache_enabled=False)


def autocasting(device: torch.device) -> bool:
    """True under autocast."""
    return torch.is_autocast_enabled(device.type)


def wide(x: Tensor) -> Tensor:
    """In single precision at least."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def in_float32(operation: Callable[..., Result]) -> Callable[..., Result]:
    """The operation on tensors and named tuples of tensors, the first of them first, with autocast ending before it:
    what has been rounded is made wide."""

    @wraps(operation)
    def run(*arguments: Any, **named: Any) -> Result:
        first: Tensor = arguments[0] if isinstance(arguments[0], Tensor) else arguments[0][0]
        if not autocasting(first.device):
            return operation(*arguments, **named)
        with autocast(first.device, enabled=False):
            return operation(*map(_wide, arguments), **named)

    return run


def _wide(argument: Any) -> Any:
    if isinstance(argument, tuple):
        return type(argument)(*map(_wide, argument))
    return wide(argument) if isinstance(argument, Tensor) else argument


def factor(x: Tensor) -> Tensor:
    """x as a scan is to multiply it with weights: in bfloat16 under autocast."""
    return x.bfloat16() if x.dtype == torch.float32 and autocasting(x.device) else x


def add_product(out: Tensor, added: Tensor, left: Tensor, right: Tensor) -> None:
    """out = added + left @ right, where the product is of the left factor's type and all else of the output's."""
    if left.dtype == out.dtype:
        torch.addmm(added, left, right, out=out)
    else:
        torch.add(added, left @ right.to(left.dtype), out=out)


def gates(layer: nn.Linear, x: Tensor) -> Tensor:
    """The layer's output in float32. The bias of a gate that keeps for long is many times what the input adds to it,
    and rounded with it would leave little of that."""
    if not autocasting(x.device):
        y: Tensor = layer(x)
        return y
    return wide(F.linear(x, layer.weight)) + layer.bias
