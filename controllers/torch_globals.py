"""What torch has once for a whole process, kept as its owner has set it."""

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


@contextmanager
def default_dtype_kept() -> Iterator[None]:
    """Leave the default type of floating-point tensors as it was, whatever is set within."""
    before = torch.get_default_dtype()
    try:
        yield
    finally:
        torch.set_default_dtype(before)
