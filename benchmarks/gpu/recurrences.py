"""The recurrences alone, between the products of their controllers: how near do they come to the memory's speed?

The floor is the time to read every argument and to write every result once, as fast as a large copy goes; with the
backward pass that for reading the arguments again, and the gradients of the results, and for writing those of the
arguments. In float32, with resets at 2 % of the steps.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu.clock import median_seconds, rates
from benchmarks.gpu.scans import RESETS, products_in
from benchmarks.gpu.stages import Tell
from mneme.controllers.scans.backends import chosen_backend
from mneme.controllers.scans.linear.scan import linear_scan
from mneme.controllers.scans.selective.cell import SelectiveInputs, SelectiveParameters
from mneme.controllers.scans.selective.scan import selective_scan
from mneme.controllers.scans.ssd.scan import ssd_scan

T, B, CHANNELS, STATES, HEADS, CHUNK = 1024, 256, 256, 16, 8, 64
TINY_T, TINY_B, TINY_CHANNELS = 5, 3, 8

Outputs = tuple[Tensor, Tensor]


class Recurrence(NamedTuple):
    """One of them, ready to run."""

    arguments: Sequence[Tensor]  # that have gradients
    run: Callable[[], Outputs]  # every output, and the last state


def items(device: torch.device, kinds: list[str], tiny: bool) -> list[str]:
    """Each in every implementation that runs on this device, but for those in numba."""
    offered = {
        "linear": ("mingru", ("triton", "torch")),
        "selective": ("mamba", ("triton", "torch")),
        "ssd": ("mamba2", ("mamba_ssm", "torch") if device.type == "cuda" else ("torch",)),
    }
    return [
        f"{name}/{backend}"
        for name, (kind, backends) in offered.items()
        for backend in backends
        if kind in kinds and chosen_backend(backend, device, backends) == backend
    ]


def work(item: str, device: torch.device, tiny: bool, tell: Tell) -> None:
    """Tell the medians and the shares of the floor."""
    name, backend = item.split("/")
    steps, lanes, channels = (TINY_T, TINY_B, TINY_CHANNELS) if tiny else (T, B, CHANNELS)
    with products_in("tf32"):
        recurrence = _PREPARED[name](steps, lanes, channels, backend, device)
        outputs = recurrence.run()
        slopes = [torch.randn_like(output) for output in outputs]
        with torch.no_grad():
            alone = median_seconds(recurrence.run, device)
        both = median_seconds(lambda: torch.autograd.grad(recurrence.run(), recurrence.arguments, slopes), device)
        rate = rates(torch.float32, device).bytes
    read, written = _bytes(recurrence.arguments), _bytes(outputs)
    tell(
        {
            "shape": (steps, lanes, channels),
            "forward_ms": 1e3 * alone,
            "both_ms": 1e3 * both,
            "forward_share": (read + written) / rate / alone,
            "both_share": (3 * read + 2 * written) / rate / both,
        }
    )


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


def _leaves(device: torch.device, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator).to(device).requires_grad_() for shape in shapes]


def _resets(steps: int, lanes: int, device: torch.device) -> Tensor:
    return (torch.rand(steps, lanes, generator=torch.Generator().manual_seed(2)) < RESETS).to(device)


def _linear(steps: int, lanes: int, channels: int, backend: str, device: torch.device) -> Recurrence:
    of_steps, of_lanes = (steps, lanes, channels), (lanes, channels)
    factor, added, h, initial = _leaves(device, of_steps, of_steps, of_lanes, (channels,))
    factor = factor.detach().sigmoid().requires_grad_()
    resets = _resets(steps, lanes, device)
    return Recurrence((factor, added, h, initial), lambda: linear_scan(factor, added, resets, h, initial, backend))


def _selective(steps: int, lanes: int, channels: int, backend: str, device: torch.device) -> Recurrence:
    wide, narrow = (steps, lanes, channels), (steps, lanes, STATES)
    *x, h, initial, rate, skip = _leaves(
        device, wide, wide, wide, narrow, narrow, (lanes, STATES, channels), (STATES, channels), (channels, STATES),
        (channels,),
    )  # fmt: skip
    inputs, parameters, resets = SelectiveInputs(*x), SelectiveParameters(rate, skip), _resets(steps, lanes, device)
    return Recurrence(
        (*x, h, initial, rate, skip), lambda: selective_scan(inputs, resets, h, initial, parameters, backend)
    )


def _ssd(steps: int, lanes: int, channels: int, backend: str, device: torch.device) -> Recurrence:
    xbc, dt, h, skip, rate = _leaves(
        device, (steps, lanes, channels + 2 * STATES), (steps, lanes, HEADS), (lanes, STATES, channels), (HEADS,),
        (HEADS,),
    )  # fmt: skip
    dt, rate = (x.detach().exp().mul(0.1).requires_grad_() for x in (dt, rate))
    initial, resets = torch.zeros(STATES, channels, device=device), _resets(steps, lanes, device)
    return Recurrence(
        (xbc, dt, h, skip, rate), lambda: ssd_scan(xbc, dt, resets, h, initial, -rate, skip, CHUNK, backend)
    )


_PREPARED: dict[str, Any] = {"linear": _linear, "selective": _selective, "ssd": _ssd}
