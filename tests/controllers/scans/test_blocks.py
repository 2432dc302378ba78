"""Blocks of steps."""

import pytest
import torch

from mneme.controllers.scans.blocks import blocks, blocks_on


@pytest.mark.parametrize("steps", [1, 7, 65])
@pytest.mark.parametrize("lanes", [1, 3, 128, 5000])
def test_blocks_cover_every_step_once(steps: int, lanes: int) -> None:
    assert [t for start, stop in blocks(steps, lanes) for t in range(start, stop)] == list(range(steps))


def test_only_a_cpu_cuts_a_scan_into_blocks() -> None:
    assert blocks_on(torch.device("cpu"), 65, 128) == blocks(65, 128)
    assert blocks_on(torch.device("cuda"), 65, 128) == [(0, 65)]
