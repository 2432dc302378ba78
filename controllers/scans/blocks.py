"""Cutting a scan into blocks of steps that stay in a core's cache."""

import torch

ROWS = 1024
"""Rows (steps x lanes) of a block; at hidden size 128 and 1 MiB of cache, 512 to 2048 measure alike."""


def blocks(steps: int, lanes: int) -> list[tuple[int, int]]:
    """The (start, stop) of consecutive blocks that cover `steps`, each of about ROWS / lanes steps."""
    size = max(1, ROWS // lanes) if lanes else steps
    return [(start, min(start + size, steps)) for start in range(0, steps, size)]


def blocks_on(device: torch.device, steps: int, lanes: int) -> list[tuple[int, int]]:
    """`blocks` on a CPU; on a GPU, which would rather have few launches, one block."""
    return blocks(steps, lanes) if device.type == "cpu" else [(0, steps)]
