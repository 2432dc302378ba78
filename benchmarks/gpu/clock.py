"""The time that something takes on a device, and the rates that it reaches there."""

from collections.abc import Callable
from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import NamedTuple

import torch

SECONDS, ROUNDS = 0.2, (5, 50)  # about how long each time is measured for, and in how many rounds
LONG = 0.5  # seconds of a round that is not repeated


class Rates(NamedTuple):
    """The rates that the device reaches."""

    flops: float  # a second, in a large matrix product
    bytes: float  # a second, read and written by a large copy


_known: dict[tuple[torch.dtype, torch.device, bool], Rates] = {}


def rates(dtype: torch.dtype, device: torch.device) -> Rates:
    """The rates for this type, with TF32 if it is allowed now; measured once."""
    key = dtype, device, torch.backends.cuda.matmul.allow_tf32
    if key not in _known:
        size = 8192 if device.type == "cuda" else 512
        left, right = torch.randn(2, size, size, device=device).to(dtype)
        large = torch.empty(size, 8 * size, device=device)
        _known[key] = Rates(
            flops=2 * size**3 / median_seconds(lambda: left @ right, device),
            bytes=2 * large.numel() * large.element_size() / median_seconds(lambda: large.clone(), device),
        )
    return _known[key]


def median_seconds(run: Callable[[], object], device: torch.device) -> float:
    """The median time of as many rounds as fit into SECONDS, after one to warm up and one to see how long it takes."""
    run()
    first = _seconds(run, 1, device)[0]
    if first > LONG:
        return first
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
