"""Torch's threads, which are set for a whole process."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def threads_kept() -> Iterator[None]:
    """Leave as many threads as there were, whatever number is set within."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
