"""Learners that work on one batch together, and all that they say to each other: sums of tensors, and plain data.

Legend: N ranks.
"""

import json
from collections.abc import Sequence
from datetime import timedelta
from socket import create_server
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
Store = Any  # a torch.distributed.Store
dist: Any = torch.distributed  # whose types torch declares for some platforms only


class GroupError(RuntimeError):
    """The learners of a group cannot go on together; the message is for the user."""


class GroupLost(GroupError):
    """One of them is gone, or does not answer."""


class Group:
    """A learner by itself: a group of one."""

    rank = 0
    size = 1

    def sum(self, x: Tensor) -> Tensor:
        """The sum of all ranks' `x`, of one shape and type; the same bits on every rank. May overwrite `x`."""
        return x

    def gather(self, value: T) -> list[T]:
        """Every rank's `value`, by rank: plain data, as JSON has them."""
        return [value]

    def stack(self, x: Tensor) -> Tensor:
        """Every rank's `x`, of one shape and type, by rank: [N, ...]."""
        return x[None]

    def sum_gradients(self, gradients: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor | None]:
        """The sums of all ranks' gradients of parameters; None where no rank has one.

        Args:
            gradients: this rank's, one or none a parameter.
            like: the parameters.
        """
        return list(gradients)


class TorchGroup(Group):
    """Several learners, each in a process or a thread of its own, over torch.distributed.

    All make the same calls in the same order; each waits for all.

    Args:
        store: by which they find each other.
        rank: of this one, from 0.
        size: N.
        backend: gloo, or nccl where every rank has a GPU of its own.
        device: on which this one learns.
        address: of this machine, on which gloo listens.
        timeout: seconds after which a rank gives up waiting for the others.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        size: int,
        *,
        backend: Literal["gloo", "nccl"],
        device: torch.device,
        address: str,
        timeout: float,
    ) -> None:
        self.rank, self.size = rank, size
        self._timeout = timeout
        self._device = device if backend == "nccl" else torch.device("cpu")
        store = dist.PrefixStore("learners", store)
        try:
            self._backend = (_nccl if backend == "nccl" else _gloo)(store, rank, size, address, timeout)
        except RuntimeError as error:
            raise self._lost(error) from None

    def sum(self, x: Tensor) -> Tensor:
        there = x.to(self._device).contiguous()
        try:
            self._backend.allreduce([there]).wait()
        except RuntimeError as error:
            raise self._lost(error) from None
        return there.to(x.device)

    def gather(self, value: T) -> list[T]:
        own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = self.stack(torch.tensor(len(own))).tolist()
        row = torch.zeros(max(lengths), dtype=torch.uint8)
        row[: len(own)] = own
        rows = self.stack(row)
        return [json.loads(bytes(row[:length].tolist())) for row, length in zip(rows, lengths, strict=True)]

    def stack(self, x: Tensor) -> Tensor:
        rows = x.new_zeros(self.size, *x.shape)
        rows[self.rank] = x
        return self.sum(rows)

    def sum_gradients(self, gradients: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor | None]:
        present = like[0].new_tensor([gradient is not None for gradient in gradients])
        parts = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, like, strict=True)]
        flat = self.sum(torch.cat([*(part.reshape(-1) for part in parts), present]))
        *found, anywhere = flat.split([*(p.numel() for p in like), len(present)])
        return [
            part.view(p.shape).to(p.dtype) if had else None
            for part, p, had in zip(found, like, anywhere.tolist(), strict=True)
        ]

    def _lost(self, error: RuntimeError) -> GroupLost:
        reason = str(error).partition("] ")[2] or str(error)
        return GroupLost(
            f"learner replica {self.rank} of {self.size} lost touch with the others, or waited longer for them than "
            f"service.learner_timeout, {self._timeout:g} seconds ({reason.partition('. ')[0]})"
        )


def open_store(address: str) -> tuple[Store, int]:
    """A store for a group's first rank to hold, and the port on which it listens: at `address` and nowhere else."""
    listener = create_server((address, 0))
    port = listener.getsockname()[1]
    # Given an address alone, torch's store would listen on all that the machine has.
    store = dist.TCPStore(address, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())
    return store, port


def join_store(address: str, port: int, timeout: float) -> Store:
    """The store that a group's first rank has opened, within so many seconds.

    Raises:
        GroupLost: it does not answer.
    """
    try:
        return dist.TCPStore(
            address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=timeout)
        )  # fmt: skip
    except RuntimeError as error:
        reason = str(error).partition(". ")[0]
        raise GroupLost(
            f"the first learner replica does not answer at {address}:{port} ({reason}); let the machines of the "
            f"learners reach each other, or set service.learner_placement=packed"
        ) from None


def _gloo(store: Store, rank: int, size: int, address: str, timeout: float) -> Any:
    options = dist.ProcessGroupGloo._Options()
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=address)]
    options._timeout = timedelta(seconds=timeout)
    return dist.ProcessGroupGloo(store, rank, size, options)


def _nccl(store: Store, rank: int, size: int, address: str, timeout: float) -> Any:
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = timedelta(seconds=timeout)
    return dist.ProcessGroupNCCL(store, rank, size, options)
