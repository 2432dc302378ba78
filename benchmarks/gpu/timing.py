"""The time of every scan, forward alone and with the backward pass, with resets at 2 % of the steps.

The share says how near a time comes to its floor: what the matrix products, or reading the inputs and writing the
outputs, take at the rates that this device reaches on large ones. A backward pass has two products for each of the
forward one's.
"""

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

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
SECONDS, ROUNDS = 0.2, (5, 50)  # about how long each time is measured for, and in how many rounds


class Rates(NamedTuple):
    """The rates that the device reaches."""

    flops: float  # a second, in a large matrix product
    bytes: float  # a second, read and written by a large copy


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

    rates = _rates(precision, device)
    weights = sum(parameter.numel() for parameter in module.parameters())
    floor = max(2 * weights * T * B / rates.flops, 2 * T * B * H * x.element_size() / rates.bytes)
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


@cache
def _rates(precision: str, device: torch.device) -> Rates:
    size = 8192 if device.type == "cuda" else 512
    left, right = torch.randn(2, size, size, device=device).to(PRECISIONS[precision])
    large = torch.empty(size, 8 * size, device=device)
    return Rates(
        flops=2 * size**3 / median_seconds(lambda: left @ right, device),
        bytes=2 * large.numel() * large.element_size() / median_seconds(lambda: large.clone(), device),
    )


def median_seconds(run: Callable[[], object], device: torch.device) -> float:
    """The median time of as many rounds as fit into SECONDS, after one to warm up and one to see how long it takes."""
    run()
    first = _seconds(run, 1, device)[0]
    least, most = ROUNDS
    return median(_seconds(run, min(most, max(least, int(SECONDS / first))), device))


def _seconds(run: Callable[[], object], rounds: int, device: torch.device) -> list[float]:
    if device.type != "cuda":
        marks = [perf_counter()]
        for _ in range(rounds):
            run()
            marks.append(perf_counter())
        return [stop - start for start, stop in pairwise(marks)]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
    events[0].record()
    for event in events[1:]:
        run()
        event.record()
    torch.cuda.synchronize()
    return [1e-3 * start.elapsed_time(stop) for start, stop in pairwise(events)]
