"""The rollout actors: asked for fragments, waited for, replaced when they die or hang, joined by others as nodes come.

A request returns two objects that this process owns: a small delivery, fetched here, and the fragment, which stays in
the object store until the learner maps it. A dead actor therefore loses only what it had in flight. Another takes its
number, and joins once there is room for it: those that are absent are asked for nothing, and nobody waits for them.
"""

import logging
from itertools import takewhile
from time import monotonic, sleep
from typing import Any, Literal, NamedTuple

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayError, RayTaskError

from mneme.distributed.blueprint import Blueprint
from mneme.distributed.doubts import Doubts
from mneme.distributed.failures import failure_reason, never_ran
from mneme.distributed.runners import Arrival, ServiceError, episode_shares
from mneme.distributed.waiting import Waiting, Waits, has_process
from mneme.distributed.workers import RolloutWorker
from mneme.envs import EnvironmentMisuse
from mneme.rollout_workers import Evaluation, EvaluationError
from mneme.rollout_workers.state import State

_log = logging.getLogger(__name__)

_STRATEGIES: dict[str, Literal["DEFAULT", "SPREAD"]] = {"packed": "DEFAULT", "spread": "SPREAD"}


_DOUBTFUL = 60.0  # seconds without an answer after which an actor may be idle
_BETWEEN = 0.2  # seconds between two questions to an actor that is out of reach


class _Request(NamedTuple):
    worker: int
    fragment: ray.ObjectRef  # type: ignore[type-arg]
    started: float


class _Absent(NamedTuple):
    worker: int
    since: float  # when this was looked at last
    placed: bool  # whether it had a process then


class RolloutFleet:
    """One actor for each worker number, present or absent, with at most one request in flight each.

    Args:
        blueprint: what the workers are built from.
    """

    def __init__(self, blueprint: Blueprint) -> None:
        service, rollout = blueprint.config.service, blueprint.config.rollout
        self._actor_class: Any = ray.remote(
            num_cpus=service.worker_cpus, scheduling_strategy=_STRATEGIES[service.worker_placement]
        )(RolloutWorker)
        self._blueprint = ray.put(blueprint)
        self._timeout, self._max_restarts = service.collect_timeout, service.max_restarts
        self._limit, self._each = service.wait_for_resources, {"CPU": service.worker_cpus}
        self._evaluation_timeout = blueprint.config.train.evaluation_timeout
        self._num_workers, self._least = rollout.num_workers, rollout.min_workers
        self._incarnations = [0] * self._num_workers
        self._failures = [0] * self._num_workers
        self._absent: dict[ray.ObjectRef, _Absent] = {}  # type: ignore[type-arg]  # by what is ready once the worker is
        self._requests: dict[ray.ObjectRef, _Request] = {}  # type: ignore[type-arg]  # oldest first
        self._out_of_reach: dict[int, float] = {}  # worker -> since when
        self._doubts = Doubts()
        self._idle_since: dict[int, float] = {}  # worker -> when its last fragment arrived
        self.waits = Waits("workers", "driver_for_workers")
        self.restarts = 0
        self._actors = [self._spawn(worker) for worker in range(self._num_workers)]

    @property
    def demand(self) -> dict[str, float]:
        """Resources that all of them ask for."""
        return {name: self._num_workers * amount for name, amount in self._each.items()}

    @property
    def present(self) -> list[int]:
        """Workers that are there."""
        absent = {absent.worker for absent in self._absent.values()}
        return [worker for worker in range(self._num_workers) if worker not in absent]

    @property
    def num_present(self) -> int:
        """Number of workers that are there."""
        return self._num_workers - len(self._absent)

    @property
    def idle(self) -> list[int]:
        """Workers that are there, without a request in flight."""
        # soon said, as the loops ask after every arrival
        if len(self._requests) + len(self._absent) >= self._num_workers:
            return []
        busy = {request.worker for request in self._requests.values()}
        return [worker for worker in self.present if worker not in busy]

    @property
    def busy(self) -> bool:
        """True if a request is in flight."""
        return bool(self._requests)

    def muster(self, *, all_of_them: bool = False) -> None:
        """Wait until enough workers are there: `rollout.min_workers`, or, where that is unset, one.

        Args:
            all_of_them: where `rollout.min_workers` is unset, all, as when a run begins.

        Raises:
            ServiceError: they are not, after `service.wait_for_resources`.
        """
        least = self._least or (self._num_workers if all_of_them else 1)
        waiting = Waiting(self._limit)
        self._welcome(0.0)
        while self.num_present < least:
            self._welcome(1.0)
            waiting.go_on(
                f"{least - self.num_present} of the {least} rollout actors that the run waits for",
                self._each,
                "add nodes, or lower rollout.num_workers, rollout.min_workers or service.worker_cpus",
            )

    def _welcome(self, timeout: float) -> None:
        """Take note of workers that have come, within `timeout` seconds, or could not be made."""
        if not self._absent:
            return
        ray.wait(list(self._absent), num_returns=1, timeout=timeout, fetch_local=False)
        for ref in ray.wait(list(self._absent), num_returns=len(self._absent), timeout=0, fetch_local=False)[0]:
            worker = self._absent.pop(ref).worker
            try:
                ray.get(ref)
            except RayError as error:
                if never_ran(error):
                    self._begin_anew(worker)
                else:
                    self._fail(worker, error)
        self._replace_unready()

    def _replace_unready(self) -> None:
        """Replace workers that have a process and do not get ready; others wait for room, however long that takes."""
        now = monotonic()
        for ref, absent in list(self._absent.items()):
            if now - absent.since < self._timeout:
                continue
            if absent.placed:
                self._replace(absent.worker, f"it did not get ready within {self._timeout:g} seconds")
            else:
                placed = has_process(self._actors[absent.worker])
                self._absent[ref] = absent._replace(since=now, placed=placed)

    def request(self, worker: int, weights: Any, level: int) -> None:
        """Ask one worker for a fragment under the weights that the reference names, at a level of the curriculum."""
        delivery, fragment = self._actors[worker].collect.options(num_returns=2).remote(weights, level)
        now = monotonic()
        self.waits.add("workers", (now - self._idle_since.pop(worker, now)) / self._num_workers)
        self._requests[delivery] = _Request(worker, fragment, now)

    def wait(self, *others: Any, timeout: float = 1.0) -> list[Arrival]:
        """Arrivals, as soon as there is one, or one of `others` is ready, or `timeout` seconds have passed.

        Raises:
            ServiceError: a worker failed more often in a row than `service.max_restarts`.
            EnvironmentMisuse: another actor would fail in the same way.
        """
        awaited = [*self._requests, *others]
        with self.waits("driver_for_workers"):
            if awaited:
                ray.wait(awaited, num_returns=1, timeout=timeout, fetch_local=False)
            self._welcome(0.0 if awaited else timeout)
        arrivals = [arrival for ref in self._ready() if (arrival := self._take(ref)) is not None]
        self._replace_hung()
        return arrivals

    def _ready(self) -> list[Any]:
        if not self._requests:
            return []
        return ray.wait(list(self._requests), num_returns=len(self._requests), timeout=0, fetch_local=False)[0]

    def _take(self, ref: Any) -> Arrival | None:
        request = self._requests.pop(ref)
        self._doubts.forget(request.worker)
        try:
            delivery = ray.get(ref)
        except RayError as error:
            self._fail(request.worker, error)
            return None
        self._idle_since[request.worker] = monotonic()
        self._out_of_reach.pop(request.worker, None)
        self._incarnations[request.worker] = delivery.incarnation
        if delivery.error is None:
            self._failures[request.worker] = 0
            return Arrival(delivery, request.fragment if delivery.nbytes else None)
        self._count_failure(request.worker, delivery.error)
        _log.warning(f"a fragment was not used: {delivery.error}", extra={"worker": request.worker})
        return Arrival(delivery, None)

    def _replace_hung(self) -> None:
        now = monotonic()
        doubtful = now - min(_DOUBTFUL, self._timeout)
        for request in list(takewhile(lambda request: request.started < doubtful, self._requests.values())):
            worker = request.worker
            if now - request.started > self._timeout:
                self._replace(worker, f"it did not deliver within {self._timeout:g} seconds")
            elif self._doubts.idle(worker, self._actors[worker]):
                self._replace(worker, "it owes a fragment and has nothing to do: a message was lost on the way")

    def _fail(self, worker: int, error: RayError) -> None:
        if isinstance(error, RayTaskError) and isinstance(error.cause, EnvironmentMisuse):
            raise error.cause from None
        if not (isinstance(error, ActorUnavailableError) and self._may_come_back(worker)):
            self._replace(worker, failure_reason(error))

    def _may_come_back(self, worker: int) -> bool:
        """Expect an actor that is out of reach, as through a network that is cut; false if that has lasted too long."""
        now = monotonic()
        if worker not in self._out_of_reach:
            _log.warning(f"rollout actor {worker} is out of reach; it is waited for", extra={"worker": worker})
        if now - self._out_of_reach.setdefault(worker, now) > self._timeout:
            return False
        sleep(_BETWEEN)
        self._expect(worker, self._actors[worker])
        return True

    def _replace(self, worker: int, reason: str, lost: Any = None) -> None:
        """Put another one in a worker's place, unless that was done since it was this actor that was lost."""
        if lost is not None and lost is not self._actors[worker]:
            return
        self._count_failure(worker, reason)
        _log.warning(f"rollout actor {worker} was lost ({reason}); a new one takes its place", extra={"worker": worker})
        self.restarts += 1
        self._begin_anew(worker)

    def _begin_anew(self, worker: int) -> None:
        ray.kill(self._actors[worker])
        self._requests = {ref: request for ref, request in self._requests.items() if request.worker != worker}
        self._forget_absent(worker)
        self._doubts.forget(worker)
        self._idle_since.pop(worker, None)
        self._out_of_reach.pop(worker, None)
        self._incarnations[worker] += 1
        self._actors[worker] = self._spawn(worker)

    def _count_failure(self, worker: int, reason: str) -> None:
        self._failures[worker] += 1
        if self._failures[worker] > self._max_restarts:
            raise ServiceError(f"rollout actor {worker} failed {self._failures[worker]} times in a row: {reason}")

    def _spawn(self, worker: int) -> Any:
        actor = self._actor_class.remote(self._blueprint, worker, self._incarnations[worker])
        self._expect(worker, actor)
        return actor

    def _expect(self, worker: int, actor: Any) -> None:
        """Count a worker as absent until this actor is ready."""
        self._absent[actor.ready.remote()] = _Absent(worker, monotonic(), placed=False)

    def _forget_absent(self, worker: int) -> None:
        self._absent = {ref: absent for ref, absent in self._absent.items() if absent.worker != worker}

    def evaluate(self, weights: Any, episodes: int, seed: int) -> Evaluation:
        """Greedy complete episodes, shared out over the actors that are there; the share of one that is lost is given
        to another.

        Raises:
            EvaluationError: no result, for a reason that asking again would not change.
        """
        self.muster()
        workers = self.present
        share = episode_shares(episodes, len(workers))
        parts: list[Evaluation | EvaluationError] = []
        asked = [(worker, *self._evaluation(worker, weights, share, seed, part)) for part, worker in enumerate(workers)]
        deadline = monotonic() + self._evaluation_timeout + self._timeout
        for part, (worker, actor, ref) in enumerate(asked):
            found = self._evaluated(worker, actor, ref, deadline)
            if found is None:
                self.muster()
                another = self.present[0]
                again = self._evaluation(another, weights, share, seed, part)
                found = self._evaluated(another, *again, monotonic() + self._evaluation_timeout + self._timeout)
            parts.append(found or EvaluationError("two rollout actors were lost, one after the other"))
        for found in parts:  # only now, so that no actor is still busy with it
            if isinstance(found, EvaluationError):
                raise found
        return Evaluation.joined([found for found in parts if isinstance(found, Evaluation)])

    def _evaluation(self, worker: int, weights: Any, share: int, seed: int, part: int) -> tuple[Any, Any]:
        actor = self._actors[worker]
        return actor, actor.evaluate.remote(weights, share, seed, self._evaluation_timeout, part)

    def _evaluated(self, worker: int, actor: Any, ref: Any, deadline: float) -> "Evaluation | EvaluationError | None":
        """A share of an evaluation, why there is none, or None if its actor was lost and is being replaced."""
        try:
            evaluation: Evaluation = ray.get(ref, timeout=max(0.0, deadline - monotonic()))
        except RayTaskError as error:
            return EvaluationError(str(error.cause))
        except GetTimeoutError as error:
            self._replace(worker, failure_reason(error), actor)
            return EvaluationError(f"rollout actor {worker} did not answer within {self._evaluation_timeout:g} seconds")
        except RayError as error:
            self._replace(worker, failure_reason(error), actor)
            return None
        return evaluation

    def states(self) -> list[State | None]:
        """The workers' states, after what they have in flight; None for those that are not there."""
        states: list[State | None] = [None] * self._num_workers
        for worker, ref in [(worker, self._actors[worker].state.remote()) for worker in self.present]:
            try:
                states[worker] = ray.get(ref, timeout=self._timeout)
            except RayError as error:
                self._replace(worker, failure_reason(error))
        return states

    def set_states(self, states: list[State | None], version: int) -> None:
        """Give every worker the state it had; one without a state starts new episodes, numbered by the weights'
        version so that they repeat none of the past."""
        self._incarnations = [version if state is None else int(state["incarnation"]) for state in states]
        for worker, (state, incarnation) in enumerate(zip(states, self._incarnations, strict=True)):
            actor = self._actors[worker]
            done = actor.restart.remote(incarnation) if state is None else actor.set_state.remote(state)
            self._forget_absent(worker)
            self._absent[done] = _Absent(worker, monotonic(), placed=False)
        self.muster(all_of_them=True)
