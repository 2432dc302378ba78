"""The time of every scan, forward alone and with the backward pass, with resets at 2 % of the steps.

The share says how near a time comes to its floor: what the matrix products, or reading the inputs and writing the
outputs, take at the rates that this device reaches on large ones. A backward pass has two products for each of the
forward one's.
"""

from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.clock import median_seconds, rates
from benchmarks.gpu.scans import (
    MODULE,
    MODULES,
    PRECISIONS,
    Contestant,
    Shape,
    arguments,
    build,
    contestants,
    other_tiles,
    products_in,
    tiled,
)
from benchmarks.gpu.stages import Tell

SHAPES: tuple[Shape, ...] = ((128, 256, 128), (128, 1024, 128), (128, 256, 512), (1024, 256, 128))
TINY: tuple[Shape, ...] = ((6, 3, 8),)
OTHER_TILES = 5  # tried beside the best by the estimate


def items(device: torch.device, kinds: list[str], tiny: bool) -> list[str]:
    """The scans to time: all of them in TF32, those that torch has too in the other types, and with other tiles."""
    both = [kind for kind in kinds if kind in MODULES]
    found = [*contestants(device, kinds, ["tf32"]), *contestants(device, both, ["float32", "bfloat16"])]
    return list(map(str, found + other_tiles(device, kinds, 1 if tiny else OTHER_TILES)))


def shapes(tiny: bool) -> tuple[Shape, ...]:
    """The sizes that are timed."""
    return TINY if tiny else SHAPES


def work(item: str, device: torch.device, tiny: bool, tell: Tell) -> None:
    """Tell the medians at each size; one for which the device's memory does not suffice is told as such."""
    contestant = Contestant.of(item)
    torch.set_num_threads(1)
    with products_in(contestant.precision), tiled(contestant):
        for shape in shapes(tiny):
            try:
                tell({"shape": shape} | _times(contestant, shape, device))
            except torch.OutOfMemoryError:
                tell({"shape": shape, "failure": "it does not fit into the device's memory"})


def _times(contestant: Contestant, shape: Shape, device: torch.device) -> dict[str, Any]:
    kind, backend, precision = contestant
    dtype = PRECISIONS[precision]
    T, B, H = shape
    controller = build(kind, H, "auto" if backend == MODULE else backend).to(device, dtype)
    x, reset, carry = arguments(controller, shape, dtype, device)
    module = MODULES[kind](H, H).to(device, dtype) if backend == MODULE else controller

    def forward() -> Tensor:
        y: Tensor = module(x)[0] if backend == MODULE else controller.scan(x, reset, carry)[0]
        return y

    known = rates(dtype, device)
    weights = sum(parameter.numel() for parameter in module.parameters())
    floor = max(2 * weights * T * B / known.flops, 2 * T * B * H * x.element_size() / known.bytes)
    inputs = [x, *module.parameters()]
    dy = torch.randn(T, B, controller.output_size).to(x)
    with torch.no_grad():
        alone = median_seconds(forward, device)
    both = median_seconds(lambda: torch.autograd.grad(forward(), inputs, dy, allow_unused=True), device)
    return {
        "forward_ms": 1e3 * alone,
        "both_ms": 1e3 * both,
        "forward_share": floor / alone,
        "both_share": 3 * floor / both,
    }
