"""The learner actors: one, or several replicas that share out each update's fragments and keep equal weights.

Every replica reads its own share of the fragments from the object store. The first of them is heard: its report, its
weights and its state are those of all.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from math import ceil
from typing import Any, Literal

import psutil
import pyarrow as pa
import ray
from ray.exceptions import ObjectLostError, RayError
from ray.util import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from mneme.controllers import Weights
from mneme.distributed.blueprint import Blueprint
from mneme.distributed.fleet import failure_reason
from mneme.distributed.runners import FragmentRef, FragmentsLost, PendingUpdate, ServiceError
from mneme.distributed.workers import LearnerWorker, State
from mneme.learner import (
    FailedUpdate,
    GroupError,
    NonfiniteGradient,
    TorchGroup,
    UpdateReport,
    join_store,
    open_store,
    resolve_device,
)
from mneme.rollout_workers import FragmentError

_STRATEGIES = {"packed": "PACK", "spread": "SPREAD"}
_LEAST = {"memory": 1.0}  # bytes, as Ray places no bundle that reserves nothing, and on a CPU learners reserve no more
_GRACE = 5.0  # seconds in which the other replicas may say why, once one has failed
_LOST = "fragments were lost with their node before the learner could read them"


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

    def follow(self, fragments: Sequence[FragmentRef]) -> list[str]:
        """Do as `update`, for a replica that is not the first; a sentence for each of its fragments that was lost."""
        return self._updated(fragments)[2]

    def _updated(self, fragments: Sequence[FragmentRef]) -> tuple[UpdateReport, Weights, list[str]]:
        batches, lost = _fetched(fragments)
        try:
            return *self._worker.update(*batches), lost
        except FragmentError:
            if lost:
                raise FragmentsLost(_LOST) from None
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

    def next_mode(self) -> None:
        """See `LearnerWorker.next_mode`."""
        self._worker.next_mode()

    def take_up(self, state: State) -> None:
        """Do as `set_state`, for a replica that is not the first."""
        self._worker.set_state(state)


class Learners:
    """The replicas as the driver sees them: one learner.

    Args:
        blueprint: what they are built from.
    """

    def __init__(self, blueprint: Blueprint) -> None:
        service, self._size = blueprint.config.service, blueprint.config.learner.replicas
        gpus = service.learner_gpus
        if gpus is None:
            gpus = _share_of(ray.cluster_resources().get("GPU", 0.0), self._size)
        resources = {service.learner_resource: 1.0} if service.learner_resource else {}
        self.demand: Mapping[str, float] = {
            name: self._size * amount for name, amount in {"GPU": gpus, **resources}.items()
        }
        # A learner reserves no CPU: it and the rollout actors take turns in synchronous mode.
        actor: Any = ray.remote(num_cpus=0, num_gpus=gpus, resources=resources)(LearnerReplica)
        given = ray.put(blueprint)
        self._placement: Any = None
        if self._size == 1:
            self.actors = [actor.remote(given, 0, 1)]
            self.weights: Any = self.actors[0].weights.remote()
            self._starting = [self.weights]
            return
        bundle = _LEAST | resources | ({"GPU": gpus} if gpus else {})
        self._placement = placement_group(
            [bundle for _ in range(self._size)], strategy=_STRATEGIES[service.learner_placement]
        )
        self.actors = [
            actor.options(scheduling_strategy=PlacementGroupSchedulingStrategy(self._placement, rank)).remote(
                given, rank, self._size
            )
            for rank in range(self._size)
        ]
        first = self.actors[0].open.remote()
        joined = [each.join.remote(first, gpus >= 1) for each in self.actors]
        # What a network starts from may differ in its last bits from one kind of processor to another.
        state = self.actors[0].state.remote()
        self.weights = self.actors[0].weights.remote()
        self._starting = [*joined, *(each.take_up.remote(state) for each in self.actors[1:]), self.weights]

    def wait(self) -> None:
        """Wait until all are there, with the weights that they start from. Raises as `end` does."""
        self._all(self._starting)

    def next_mode(self) -> None:
        """Let all enter the next mode, before whatever is asked of them next."""
        for each in self.actors:
            each.next_mode.remote()

    def begin(self, fragments: Sequence[FragmentRef]) -> PendingUpdate:
        """Start an update, each replica with its share of the fragments, in their order."""
        bounds = [len(fragments) * rank // self._size for rank in range(self._size + 1)]
        first, *others = (list(fragments[start:stop]) for start, stop in pairwise(bounds))
        report, weights = self.actors[0].update.options(num_returns=2).remote(first)
        following = [each.follow.remote(own) for each, own in zip(self.actors[1:], others, strict=True)]
        return PendingUpdate(report, weights, tuple(following), tuple(fragments))

    def ready(self, update: PendingUpdate) -> bool:
        """True if `end` would return, or raise, at once."""
        refs = [update.report, *update.following]
        done = ray.wait(refs, num_returns=len(refs), timeout=0)[0]
        return len(done) == len(refs) or any(_error(ref) for ref in done)

    def end(self, update: PendingUpdate) -> UpdateReport:
        """Wait for an update.

        Raises:
            FragmentsLost: it did not take place.
            ValueError, FloatingPointError: what the learner said.
            ServiceError: a replica is lost, or they do not agree.
        """
        try:
            self._all([update.report, *update.following])
        except NonfiniteGradient as error:
            if error.update is not None and update.following:  # each replica knows its own share alone
                with suppress(RayError):
                    error.update = FailedUpdate(error.update.state, tuple(ray.get(list(update.fragments))))
            raise
        report: Any = ray.get(update.report)
        lost = [sentence for of_rank in ray.get(list(update.following)) for sentence in of_rank]
        return report._replace(refused=(*report.refused, *lost))

    def state(self) -> State:
        """See `Learner.state`; it is the same on all."""
        ref = self.actors[0].state.remote()
        self._all([ref])
        state: State = ray.get(ref)
        return state

    def set_state(self, state: State) -> Any:
        """Give all of them the state of one; a reference to its weights."""
        given = ray.put(state)
        weights = self.actors[0].set_state.remote(given)
        self._all([weights, *(each.take_up.remote(given) for each in self.actors[1:])])
        return weights

    def close(self) -> None:
        """Let the replicas go, with what was reserved for them."""
        if self._placement is not None:
            with suppress(RayError, RuntimeError, ConnectionError):
                remove_placement_group(self._placement)

    def _all(self, refs: Sequence[Any]) -> None:
        """Wait until all of these are there, or one of them is an error."""
        waiting, errors = list(refs), list[RayError]()
        while waiting and not errors:
            done, waiting = ray.wait(waiting, num_returns=1, timeout=None, fetch_local=False)
            errors += _errors(done)
        if not errors:
            return
        if waiting:  # those who lost touch with one that died may say so before Ray knows of its death
            errors += _errors(ray.wait(waiting, num_returns=len(waiting), timeout=_GRACE, fetch_local=False)[0])
        raise min((_explained(error) for error in errors), key=_remoteness)


def _share_of(gpus: float, size: int) -> float:
    """The GPU of each learner where `size` of them share so many."""
    return 1.0 / ceil(size / gpus) if gpus >= 1 else 0.0


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
            return [], [_LOST]
    parts = [_fetched([fragment]) for fragment in fragments]
    return [batch for found, _ in parts for batch in found], [said for _, lost in parts for said in lost]


def _error(ref: Any) -> RayError | None:
    try:
        ray.get(ref)
    except RayError as error:
        return error
    return None


def _errors(refs: Iterable[Any]) -> list[RayError]:
    return [error for ref in refs if (error := _error(ref)) is not None]


def _explained(error: RayError) -> Exception:
    """The error that the learner itself raised for the user, or one that says that the learner is gone."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, (ValueError, FloatingPointError, FragmentsLost)):
        return cause
    if isinstance(cause, GroupError):
        return _Apart(f"{cause}; continue from the last checkpoint, if there is one: --resume")
    return ServiceError(
        f"the learner actor was lost ({failure_reason(error)}); continue from the last checkpoint, "
        f"if there is one: --resume"
    )


class _Apart(ServiceError):
    """Replicas that lost touch: mostly because of what another one has to say."""


def _remoteness(error: Exception) -> int:
    """The distance of an error from its cause, where one has led to others."""
    return 2 if isinstance(error, _Apart) else 0 if isinstance(error, FragmentsLost) else 1
