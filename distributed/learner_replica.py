"""One learner actor: a learner that reads its fragments from the object store, alone or as one of several replicas."""

import os
from collections.abc import Sequence
from typing import Any, Literal

import psutil
import pyarrow as pa
import ray
from ray.exceptions import ObjectLostError

from mneme.controllers import Weights
from mneme.distributed.blueprint import Blueprint
from mneme.distributed.runners import FRAGMENTS_LOST, FragmentRef, FragmentsLost
from mneme.distributed.workers import LearnerWorker
from mneme.learner import TorchGroup, UpdateReport, join_store, open_store, resolve_device
from mneme.rollout_workers import FragmentError
from mneme.rollout_workers.state import State


class LearnerReplica:
    """One learner actor.

    Args:
        blueprint: what the learner is built from.
        rank: of this replica, from 0.
        size: how many there are.
    """

    def __init__(self, blueprint: Blueprint, rank: int, size: int) -> None:
        self._blueprint, self._rank, self._size = blueprint, rank, size
        self._store: Any = None
        if size == 1:
            self._worker = LearnerWorker(blueprint)

    def open(self) -> tuple[str, int]:
        """The address and port at which this replica, the first, lets the others find each other."""
        address = ray.util.get_node_ip_address()
        self._store, port = open_store(address)
        return address, port

    def join(self, first: tuple[str, int], own_gpu: bool) -> None:
        """Build the learner as one of a group, once all of them do.

        Args:
            first: what `open` of the first replica has given.
            own_gpu: whether this replica, if it learns on a GPU, shares it with no other.
        """
        service, address = self._blueprint.config.service, ray.util.get_node_ip_address()
        device = resolve_device(self._blueprint.config.learner.device)
        backend: Literal["gloo", "nccl"] = "nccl" if own_gpu and device.type == "cuda" else "gloo"
        if backend == "nccl" and (interface := _interface(address)):
            os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={interface}")
        store = self._store or join_store(*first, service.learner_timeout)
        group = TorchGroup(
            store, self._rank, self._size,
            backend=backend, device=device, address=address, timeout=service.learner_timeout,
        )  # fmt: skip
        self._worker = LearnerWorker(self._blueprint, group)

    def update(self, fragments: Sequence[FragmentRef]) -> tuple[UpdateReport, Weights]:
        """Train on these fragments, and all other replicas on theirs; see `Learner.update`.

        Raises:
            FragmentsLost: nobody has a fragment, as some of this replica's are gone.
        """
        report, weights, lost = self._updated(fragments)
        return report._replace(refused=(*report.refused, *lost)), weights

    def follow(self, fragments: Sequence[FragmentRef]) -> tuple[list[str], tuple[str, ...]]:
        """Do as `update`, for a replica that is not the first; a sentence for each of its fragments that was lost, and
        its warnings."""
        report, _, lost = self._updated(fragments)
        return lost, report.warnings

    def _updated(self, fragments: Sequence[FragmentRef]) -> tuple[UpdateReport, Weights, list[str]]:
        batches, lost = _fetched(fragments)
        try:
            return *self._worker.update(*batches), lost
        except FragmentError:
            if lost:
                raise FragmentsLost(FRAGMENTS_LOST) from None
            raise

    def weights(self) -> Weights:
        """See `LearnerWorker.weights`."""
        return self._worker.weights()

    def state(self) -> State:
        """See `LearnerWorker.state`."""
        return self._worker.state()

    def set_state(self, state: State) -> Weights:
        """See `LearnerWorker.set_state`."""
        return self._worker.set_state(state)

    def skip(self) -> Weights:
        """See `LearnerWorker.skip`."""
        return self._worker.skip()

    def next_mode(self) -> None:
        """See `LearnerWorker.next_mode`."""
        self._worker.next_mode()

    def take_up(self, state: State) -> None:
        """Do as `set_state`, for a replica that is not the first."""
        self._worker.set_state(state)


def _interface(address: str) -> str | None:
    """The network interface that has this address."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(found.address == address for found in addresses):
            return str(name)
    return None


def _fetched(fragments: Sequence[FragmentRef]) -> tuple[list[pa.RecordBatch], list[str]]:
    """The fragments that can still be read, and a sentence for each of the others."""
    try:
        return ray.get(list(fragments)), []
    except ObjectLostError:
        if len(fragments) == 1:
            return [], [FRAGMENTS_LOST]
    parts = [_fetched([fragment]) for fragment in fragments]
    return [batch for found, _ in parts for batch in found], [said for _, lost in parts for said in lost]
