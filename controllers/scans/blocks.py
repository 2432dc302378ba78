"""Dividing a scan into blocks of steps whose tensors fit a core's cache."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

ROWS = 2048
"""Rows of a block, steps times environments; at hidden size 128, 1024 to 4096 are equally fast with 2 MiB of cache."""


def blocks(steps: int, lanes: int) -> list[tuple[int, int]]:
    """The (start, stop) of consecutive blocks that cover `steps`, each of about ROWS / lanes steps."""
    size = max(1, ROWS // lanes) if lanes else steps
    return [(start, min(start + size, steps)) for start in range(0, steps, size)]


def blocks_on(device: torch.device, steps: int, lanes: int) -> list[tuple[int, int]]:
    """`blocks` on a CPU; one block on a GPU, where every block starts kernels of its own."""
    return blocks(steps, lanes) if device.type == "cpu" else [(0, steps)]


_Carry = TypeVar("_Carry")


def in_blocks(
    run: Callable[[Tensor, Tensor, _Carry, Tensor | None], tuple[Tensor, _Carry]],
    x_TBD: Tensor,
    reset_TB: Tensor,
    carry: _Carry,
    cut_TB: Tensor | None,
) -> tuple[Tensor, _Carry]:
    """Call the scan `run` on one block after the other: the outputs [T, B, H], and the last carry."""
    T, B, _ = x_TBD.shape
    sizes = [stop - start for start, stop in blocks_on(x_TBD.device, T, B)]
    if len(sizes) == 1:
        return run(x_TBD, reset_TB, carry, cut_TB)
    outputs = []
    cuts = [None] * len(sizes) if cut_TB is None else cut_TB.split(sizes)
    # split, because the gradient of each slice would be as large as the whole
    for x_KBD, reset_KB, cut_KB in zip(x_TBD.split(sizes), reset_TB.split(sizes), cuts, strict=True):
        y_KBH, carry = run(x_KBD, reset_KB, carry, cut_KB)
        outputs.append(y_KBH)
    return torch.cat(outputs), carry
