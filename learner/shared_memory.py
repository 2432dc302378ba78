"""Objects for another process of the same machine, whose arrays lie in memory that both see."""

import io
import mmap
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from weakref import finalize

import cloudpickle
import numpy as np
import torch
from torch import Tensor, nn

AVAILABLE = hasattr(os, "memfd_create")
"""Whether the system, Linux, gives memory that has a descriptor and no name, so that it ends with its processes."""
_CONTAINER = Path("/sys/fs/cgroup")
_ALIGNED = 64  # bytes; as numpy and vector instructions like arrays to begin


def container_limit() -> int | None:
    """Bytes of memory that the container that this runs in may use; None if there is no limit."""
    file = _CONTAINER / "memory.max"
    limit = file.read_text().strip() if file.exists() else ""
    return int(limit) if limit.isdecimal() else None


def free_memory() -> int:
    """Bytes that this machine, a Linux, or the container that this runs in, still has."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free, limit = 1024 * int(lines["MemAvailable"].split()[0]), container_limit()
    return free if limit is None else min(free, limit - int((_CONTAINER / "memory.current").read_text()))


class Put(NamedTuple):
    """A value whose arrays lie in shared memory; its other parts, and where these are."""

    rest: bytes
    spans: list[tuple[int, int]]  # first byte, and the one after the last
    size: int  # bytes


class SharedMemory:
    """Memory that grows as it has to. What was read from it is good until something else is written.

    Args:
        descriptor: of the memory of another process, inherited; new memory by default.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self.descriptor = os.memfd_create("mneme") if descriptor is None else descriptor
        finalize(self, os.close, self.descriptor)
        self._map: mmap.mmap | None = None

    def bytes(self, size: int) -> memoryview:
        """The first `size` bytes."""
        if self._map is None or len(self._map) < size:
            if os.fstat(self.descriptor).st_size < size:
                os.ftruncate(self.descriptor, size)
            self._map = mmap.mmap(self.descriptor, os.fstat(self.descriptor).st_size)
        return memoryview(self._map)[:size]

    def numbers(self, count: int, like: Tensor) -> Tensor:
        """A tensor [count] of the type of another."""
        dtype = like.new_empty(0).numpy().dtype
        return torch.from_numpy(np.frombuffer(self.bytes(count * dtype.itemsize), dtype))

    def put(self, value: Any) -> Put:
        """Write the arrays and tensors of a value."""
        buffers: list[pickle.PickleBuffer] = []
        rest = pickled(value, buffers.append)
        raw = [buffer.raw() for buffer in buffers]
        ends = np.cumsum([0, *(-(-len(part) // _ALIGNED) * _ALIGNED for part in raw)]).tolist()
        spans = [(start, start + len(part)) for start, part in zip(ends[:-1], raw, strict=True)]
        room = self.bytes(max(1, ends[-1]))
        for (start, stop), part in zip(spans, raw, strict=True):
            room[start:stop] = part
        return Put(rest, spans, len(room))

    def get(self, given: Put) -> Any:
        """What another process has `put` there; its arrays are the memory itself."""
        room = self.bytes(given.size)
        return pickle.loads(given.rest, buffers=[room[start:stop] for start, stop in given.spans])


def pickled(value: Any, put: Callable[[pickle.PickleBuffer], Any] | None = None) -> bytes:
    """A value with whatever another process cannot import; arrays and tensors go to `put`, if it is given."""
    stream = io.BytesIO()
    _Pickler(stream, protocol=5, buffer_callback=put).dump(value)
    return stream.getvalue()


class _Pickler(cloudpickle.Pickler):
    """Tensors on the host become arrays, whose memory pickle leaves out, and are tensors again where they are read."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, nn.Parameter):
            return _parameter, (value.detach().numpy(), value.requires_grad)
        if type(value) is Tensor and value.layout == torch.strided and value.device.type == "cpu":
            return torch.from_numpy, (value.detach().contiguous().numpy(),)
        return super().reducer_override(value)


def _parameter(array: np.ndarray, requires_grad: bool) -> nn.Parameter:
    return nn.Parameter(torch.from_numpy(array), requires_grad)
