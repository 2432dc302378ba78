"""What torch has once for a whole process, kept as its owner has set it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")


def threads_kept() -> AbstractContextManager[None]:
    """Leave as many threads as there were, whatever number is set within."""
    return _kept(torch.get_num_threads, torch.set_num_threads)


def default_dtype_kept() -> AbstractContextManager[None]:
    """Leave the default type of floating-point tensors as it was, whatever is set within."""
    return _kept(torch.get_default_dtype, torch.set_default_dtype)


@contextmanager
def _kept(get: Callable[[], T], put: Callable[[T], object]) -> Iterator[None]:
    before = get()
    try:
        yield
    finally:
        put(before)
