"""The learner actors: one, or several replicas that share out each update's fragments and keep equal weights.

Every replica reads its own share of the fragments from the object store. The first of them is heard: its report, its
weights and its state are those of all.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from math import ceil
from time import monotonic
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from mneme.distributed.blueprint import Blueprint
from mneme.distributed.failures import GO_ON, failure_reason
from mneme.distributed.learner_replica import LearnerReplica
from mneme.distributed.runners import FragmentRef, FragmentsLost, PendingUpdate, ServiceError, ServiceLost
from mneme.distributed.waiting import Waiting
from mneme.learner import FailedUpdate, GroupError, GroupLost, NonfiniteGradient, UpdateReport
from mneme.rollout_workers.state import State

_STRATEGIES = {"packed": "PACK", "spread": "SPREAD"}
_LEAST = {"memory": 1.0}  # bytes, as Ray places no bundle that reserves nothing, and on a CPU learners reserve no more
_GRACE = 5.0  # seconds in which the other replicas may say why, once one has failed


class LearnerLost(ServiceLost):
    """A learner actor is gone, or does not answer: another may go on from its last state."""


class Learners:
    """The replicas as the driver sees them: one learner, until one of them is lost.

    Args:
        blueprint: what they are built from.
    """

    def __init__(self, blueprint: Blueprint) -> None:
        service, self._size = blueprint.config.service, blueprint.config.learner.replicas
        self._patience = service.learner_timeout
        gpus = service.learner_gpus
        if gpus is None:
            gpus = _share_of(ray.cluster_resources().get("GPU", 0.0), self._size)
        resources = {service.learner_resource: 1.0} if service.learner_resource else {}
        self._each: Mapping[str, float] = {"GPU": gpus, **resources}
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

    @property
    def demand(self) -> Mapping[str, float]:
        """Resources that all of them ask for."""
        return {name: self._size * amount for name, amount in self._each.items()}

    def wait(self, limit: float) -> None:
        """Wait until all are there, with the weights that they start from.

        Raises:
            ServiceError: they are not, after `limit` seconds. Else as `end`.
        """
        waiting, refs = Waiting(limit), list(self._starting)
        what = "the learner" if self._size == 1 else f"the {self._size} replicas of the learner"
        while refs:
            done, refs = ray.wait(refs, num_returns=1, timeout=1.0, fetch_local=False)
            if _errors(done):
                break
            if not done:
                waiting.go_on(what, self._each, "add nodes, or lower service.learner_gpus or learner.replicas")
        self._all(self._starting)

    def next_mode(self) -> None:
        """Let all enter the next mode, before whatever is asked of them next."""
        for each in self.actors:
            each.next_mode.remote()

    def skip(self) -> Any:
        """Let all count an update that is not made; a reference to the weights, whose version is then the next."""
        first, *_ = [each.skip.remote() for each in self.actors]
        return first

    def begin(self, fragments: Sequence[FragmentRef]) -> PendingUpdate:
        """Start an update, each replica with its share of the fragments, in their order."""
        bounds = [len(fragments) * rank // self._size for rank in range(self._size + 1)]
        first, *others = (list(fragments[start:stop]) for start, stop in pairwise(bounds))
        report, weights = self.actors[0].update.options(num_returns=2).remote(first)
        following = [each.follow.remote(own) for each, own in zip(self.actors[1:], others, strict=True)]
        return PendingUpdate(report, weights, tuple(following), tuple(fragments), monotonic() + self._patience)

    def pending(self, update: PendingUpdate) -> list[Any]:
        """What to wait for until an update is done, at least one reference."""
        refs = [update.report, *update.following]
        return ray.wait(refs, num_returns=len(refs), timeout=0)[1] or refs

    def ready(self, update: PendingUpdate) -> bool:
        """True if `end` would return, or raise, at once."""
        refs = [update.report, *update.following]
        done = ray.wait(refs, num_returns=len(refs), timeout=0)[0]
        return len(done) == len(refs) or any(_error(ref) for ref in done) or monotonic() > update.deadline

    def end(self, update: PendingUpdate) -> UpdateReport:
        """Wait for an update.

        Raises:
            FragmentsLost: it did not take place.
            ValueError, FloatingPointError: what the learner said.
            LearnerLost: a replica is gone, or has not answered for `service.learner_timeout`.
            ServiceError: they do not agree, or one failed.
        """
        try:
            self._all([update.report, *update.following], update.deadline)
        except NonfiniteGradient as error:
            if error.update is not None and update.following:  # each replica knows its own share alone
                with suppress(RayError):
                    error.update = FailedUpdate(error.update.state, tuple(ray.get(list(update.fragments))))
            raise
        report: Any = ray.get(update.report)
        for lost, warnings in ray.get(list(update.following)):
            report = report._replace(refused=(*report.refused, *lost), warnings=(*report.warnings, *warnings))
        return report

    def state(self) -> Any:
        """A reference to their state after what they have been asked so far; see `Learner.state`. The same on all."""
        return self.actors[0].state.remote()

    def fetched(self, ref: Any) -> Any:
        """What a reference to something of theirs stands for. Raises as `end` does."""
        self._all([ref])
        try:
            return ray.get(ref)
        except RayError as error:
            raise _explained(error) from None

    def set_state(self, state: State) -> Any:
        """Give all of them the state of one; a reference to its weights."""
        given = ray.put(state)
        weights = self.actors[0].set_state.remote(given)
        self._all([weights, *(each.take_up.remote(given) for each in self.actors[1:])])
        return weights

    def close(self) -> None:
        """Let the replicas go, with what was reserved for them."""
        with suppress(RayError, RuntimeError, ConnectionError):
            for actor in self.actors:
                ray.kill(actor)
            if self._placement is not None:
                remove_placement_group(self._placement)

    def _all(self, refs: Sequence[Any], deadline: float | None = None) -> None:
        """Wait until all of these are there, or one of them is an error, or time is up."""
        waiting, errors = list(refs), list[RayError]()
        deadline = deadline or monotonic() + self._patience
        while waiting and not errors:
            left = max(0.0, deadline - monotonic())
            done, waiting = ray.wait(waiting, num_returns=1, timeout=left, fetch_local=False)
            errors += _errors(done) if done else [GetTimeoutError()]
        if not errors:
            return
        if waiting:  # those who lost touch with one that died may say so before Ray knows of its death
            errors += _errors(ray.wait(waiting, num_returns=len(waiting), timeout=_GRACE, fetch_local=False)[0])
        raise min((_explained(error) for error in errors), key=_remoteness)


def _share_of(gpus: float, size: int) -> float:
    """The GPU of each learner where `size` of them share so many."""
    return 1.0 / ceil(size / gpus) if gpus >= 1 else 0.0


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
    if isinstance(cause, GroupLost):
        return _Apart(str(cause))
    if isinstance(cause, GroupError):
        return ServiceError(f"{cause}; {GO_ON}")
    reason = failure_reason(error)
    if isinstance(error, RayTaskError):  # an error of ours, which would come again
        return ServiceError(f"the learner failed ({reason}); {GO_ON}")
    return LearnerLost(f"the learner actor was lost ({reason})")


class _Apart(LearnerLost):
    """Replicas that lost touch: mostly because of what another one has to say."""


def _remoteness(error: Exception) -> int:
    """The distance of an error from its cause, where one has led to others."""
    return 2 if isinstance(error, _Apart) else 0 if isinstance(error, FragmentsLost) else 1
