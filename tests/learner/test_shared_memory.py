"""What one process puts into shared memory is what another finds there."""

import os
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from mneme.learner.shared_memory import AVAILABLE, SharedMemory, free_memory, pickled

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="this system has no memory without a name")

TENSORS = {
    "numbers": torch.arange(12.0).view(3, 4),
    "turned": torch.arange(12.0).view(3, 4).t(),
    "flags": torch.tensor([True, False]),
    "words": torch.tensor([2**40, -1]),
    "nothing": torch.zeros(0, 5),
    "one": torch.tensor(3.5, dtype=torch.float64),
}


def another_end(memory: SharedMemory) -> SharedMemory:
    return SharedMemory(os.dup(memory.descriptor))


def test_tensors_and_arrays_arrive_as_they_were() -> None:
    memory = SharedMemory()
    value = (TENSORS, {"array": np.arange(5, dtype=np.uint8)}, "text", None)
    tensors, arrays, text, nothing = another_end(memory).get(memory.put(value))
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype and torch.equal(tensors[name], tensor), name
    assert np.array_equal(arrays["array"], np.arange(5)) and arrays["array"].dtype == np.uint8
    assert (text, nothing) == ("text", None)


def test_arrays_are_the_memory_itself_and_lie_where_vector_instructions_like_them() -> None:
    memory = SharedMemory()
    given = memory.put([torch.ones(3), torch.zeros(100)])
    a, b = another_end(memory).get(given)
    assert a.data_ptr() % 64 == b.data_ptr() % 64 == 0
    memory.put([torch.full((3,), 7.0), torch.zeros(100)])
    assert a.tolist() == [7.0] * 3
    assert len(given.rest) < 1000


def test_it_grows_for_both_ends() -> None:
    memory = SharedMemory()
    other = another_end(memory)
    for size in (10, 100_000, 1_000, 3_000_000):
        x = torch.rand(size)
        assert torch.equal(other.get(memory.put(x)), x)


def test_numbers_are_seen_by_both() -> None:
    memory = SharedMemory()
    here, there = memory.numbers(7, torch.zeros(1)), another_end(memory).numbers(7, torch.zeros(1))
    here[3] = 5.0
    assert there.tolist() == [0, 0, 0, 5, 0, 0, 0] and there.dtype == torch.float32


def test_a_module_with_a_class_of_this_file_is_pickled_whole() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.fixed = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(1), requires_grad=False)
            self.register_buffer("mean", torch.arange(3.0))

    found = pickle.loads(pickled(Own()))
    assert isinstance(found.weight, nn.Parameter) and found.weight.requires_grad and not found.fixed.requires_grad
    assert found.mean.tolist() == [0, 1, 2]


def test_free_memory_is_some_of_the_machines() -> None:
    assert 0 < free_memory() < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
