"""The way of arrays to the learner's device.

To a GPU they go through pinned memory and on a stream of their own. Nothing waits for a copy but what is asked of the
GPU after it: it runs beside the work that was asked for before, while the host puts the next one together in other
pinned memory. (Torch gives pinned memory out again once the copies from it are through.)
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor


def staging(shape: tuple[int, ...], dtype: np.dtype, device: torch.device) -> Tensor:
    """Memory on the host for what goes to this device, to be filled and sent; what it holds is not defined."""
    room = torch.from_numpy(np.empty(shape, dtype))  # costs nothing until it is filled
    return torch.empty_like(room, pin_memory=True) if device.type == "cuda" else room


def sent(staged: Tensor, device: torch.device) -> Tensor:
    """What was staged for this device, there; to be left alone from now on."""
    if device.type != "cuda":
        return staged.to(device)
    aside, asking = _stream(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(aside):
        copied = staged.to(device, non_blocking=True)
    asking.wait_stream(aside)
    copied.record_stream(asking)  # so that its memory is not given out again while this stream may read it
    return copied


def moved(x: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host, there."""
    return sent(x.pin_memory() if device.type == "cuda" else x, device)


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
